"""The ``deploykit`` command. Heavy packages are imported inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="A cookbook on deploying neural networks efficiently that measures what it teaches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DATASETS = "auto, cifar10, shapes32, or a folder with train/<class>/* and test/<class>/*"
SPLITS = "train reports on val, to choose a recipe; train+val reports on test, once it is chosen"


def _fail(message: object, code: int = 2) -> typer.Exit:
    typer.echo(f"deploykit: {message}", err=True)
    return typer.Exit(code)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help=DATASETS)] = "auto",
    *,
    download: Annotated[bool, typer.Option(help="Fetch CIFAR-10 when it is not there yet.")] = True,
) -> None:
    """Find or fetch a dataset and say what is in it."""
    from deploykit.data import load_dataset

    try:
        dataset = load_dataset(name, download=download)
    except (ValueError, OSError) as error:
        raise _fail(error) from error
    typer.echo(f"{dataset.name}: {dataset.source}")
    typer.echo(f"{len(dataset.classes)} classes: {', '.join(dataset.classes)}")
    typer.echo(f"train {len(dataset.train):,}, val {len(dataset.val):,}, test {len(dataset.test):,} images")
    typer.echo(f"fingerprint {dataset.fingerprint}")


@app.command()
def train(
    depth: Annotated[int, typer.Argument(help="Layers of the CIFAR ResNet: 8, 20, 32, 56, …")],
    *,
    dataset: Annotated[str, typer.Option(help=DATASETS)] = "auto",
    split: Annotated[str, typer.Option(help=SPLITS)] = "train",
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    optimizer: Annotated[str, typer.Option(help="sgd or muon")] = "sgd",
    peak_lr: Annotated[float | None, typer.Option(help="The optimizer's own default when not given.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="The optimizer's own default when not given.")] = None,
    schedule: Annotated[str, typer.Option(help="cosine or one-cycle")] = "one-cycle",
    warmup: Annotated[float, typer.Option(help="Share of training with a rising learning rate.")] = 0.2,
    label_smoothing: Annotated[float, typer.Option()] = 0.0,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    ema_decay: Annotated[float | None, typer.Option(help="End with an average of the weights at this decay.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    width: Annotated[float, typer.Option(help="Factor on the channels 16, 32, 64.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Default: data/checkpoints/<model>-<dataset>.")] = None,
) -> None:
    """Train a CIFAR ResNet and write a checkpoint folder: weights, configuration, model card, log.

    Stopped with Ctrl-C (or killed), the same command goes on from where it was.
    """
    import torch

    from deploykit import training
    from deploykit.cards import model_card
    from deploykit.cost import macs, parameters
    from deploykit.data import Batches, load_dataset
    from deploykit.machine import machine
    from deploykit.models import resnet, save_checkpoint
    from deploykit.places import data_folder

    if optimizer not in training.OPTIMIZERS or split not in {"train", "train+val"}:
        raise _fail(f"optimizer is {optimizer!r}, split {split!r}; use sgd or muon, and train or train+val")
    chosen = {key: value for key, value in (("peak_lr", peak_lr), ("weight_decay", weight_decay)) if value is not None}
    make = functools.partial(training.OPTIMIZERS[optimizer], **chosen)
    try:
        loaded = load_dataset(dataset)
        torch.manual_seed(seed)
        model = resnet(depth, width=width, classes=len(loaded.classes))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        part, judged = (loaded.train, loaded.val) if split == "train" else (loaded.train_val, loaded.test)
        name = f"resnet{depth}" + ("" if width == 1 else f"x{width:g}")
        folder = out or data_folder() / "checkpoints" / f"{name}-{loaded.name}"
        judging = Batches(judged, loaded, batch_size=500)
        log = training.fit(
            model,
            Batches(part, loaded, batch_size=batch_size, augment=True, shuffle=True, drop_last=True, seed=seed),
            epochs=epochs,
            loss=training.cross_entropy(label_smoothing=label_smoothing),
            optimizer=make,
            schedule=schedule,
            warmup=warmup,
            precision=precision,
            ema_decay=ema_decay,
            validation=judging if split == "train" else None,
            checkpoint=folder / "training-state.pt",
            progress=sys.stderr.isatty(),
        )
    except (ValueError, OSError, ImportError) as error:
        raise _fail(error) from error
    except training.DivergedError as error:
        raise _fail(error, 1) from error
    except KeyboardInterrupt as error:
        raise _fail(error, 130) from error
    accuracy = training.evaluate(model, judging)
    recipe = {
        "optimizer": optimizer,
        **{name: p.default for name, p in inspect.signature(make).parameters.items() if p.default is not p.empty},
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": f"{schedule} to 0, warm-up {warmup:.0%}",
        "label_smoothing": label_smoothing,
        "precision": training.resolve_precision(precision, next(model.parameters()).device),
        "weight_average": ema_decay or "none",
        "seed": seed,
        "augmentation": "random crop with padding 4, horizontal flip",
    }
    model.cpu()
    card = model_card(
        name=name,
        dataset=loaded.name,
        description=f"A ResNet-{depth} for 32x32 images, a starting point of the deploykit cookbook.",
        accuracy=accuracy,
        trained_on=f"{split} ({len(part):,} images)",
        recipe=recipe,
        machine=machine(),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        minutes=log.rows[-1]["seconds"] / 60,
        command=" ".join(["deploykit", *map(_portable, sys.argv[1:])]),
        parameters=parameters(model),
        macs=macs(model, torch.zeros(1, 3, 32, 32)),
    )
    save_checkpoint(model, folder, card=card)
    log.to_csv(folder / "training-log.csv")
    (folder / "training-state.pt").unlink(missing_ok=True)
    typer.echo(f"{name} on {loaded.name}: {accuracy}")
    typer.echo(f"written to {folder}")


def _portable(argument: str) -> str:
    """Cut a path of this machine to its last part: the command goes into a committed card."""
    return Path(argument).name if Path(argument).is_absolute() else argument


if __name__ == "__main__":
    app()
