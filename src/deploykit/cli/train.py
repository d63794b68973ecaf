"""``deploykit train``: train a network and write its checkpoint folder."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploykit.cli import output
from deploykit.cli.contract import NAME, Status, StopError
from deploykit.cli.data import DATASETS, open_dataset

if TYPE_CHECKING:
    import torch

OWN = "the optimizer's own"
OF_THIS_RUN = {"--json", "--force"}  # nothing that the network depends on


def train(
    context: typer.Context,
    model: Annotated[
        Literal["resnet8", "resnet20", "resnet32", "resnet56", "resnet20x4", "row-lstm", "mlp-mixer"],
        typer.Argument(metavar="MODEL", help="resnet20x4 is four times as wide as resnet20."),
    ],
    *,
    dataset: Annotated[str, typer.Option(help=DATASETS)] = "auto",
    split: Annotated[
        Literal["train", "train+val"],
        typer.Option(help="train reports on val, to choose a recipe; train+val on test, once it is chosen."),
    ] = "train",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step, over all processes together.")] = 256,
    optimizer: Annotated[
        Literal["sgd", "adamw", "muon"], typer.Option(help="muon needs the extra deploykit[training].")
    ] = "sgd",
    peak_lr: Annotated[float | None, typer.Option(min=0, show_default=OWN, help="Highest learning rate.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, show_default=OWN, help="Pull of the weights to 0.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "one-cycle"], typer.Option(help="How the learning rate falls to 0.")
    ] = "one-cycle",
    warmup: Annotated[float, typer.Option(min=0, help="Share of training with a rising learning rate, below 1.")] = 0.2,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the target that all classes divide among them.")
    ] = 0.0,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto is bf16 where the hardware has it; fp16 needs a GPU."),
    ] = "auto",
    ema_decay: Annotated[
        float | None, typer.Option(min=0, max=1, help="End with an average of the weights at this decay, 0.999 say.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights at the start, and of the batches.")] = 0,
    out: Annotated[
        Path | None, typer.Option(show_default="data/checkpoints/MODEL-DATASET", help="Folder to write.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the network that the folder holds.")] = False,
    as_json: output.Json = False,
) -> None:
    """Train a network and write its checkpoint folder.

    The folder holds weights, configuration, model card and log. Stopped with Ctrl-C (or killed), the same command goes
    on from where it was. Under torchrun the batches are divided among the processes: torchrun --nproc-per-node 2 -m
    deploykit.cli train resnet20
    """
    import torch

    from deploykit import distributed, models, training
    from deploykit.cards import model_card
    from deploykit.cost import macs, parameters
    from deploykit.data import Batches
    from deploykit.machine import allowed_threads, machine
    from deploykit.places import data_folder

    chosen = {key: value for key, value in (("peak_lr", peak_lr), ("weight_decay", weight_decay)) if value is not None}
    make = functools.partial(training.OPTIMIZERS[optimizer], **chosen)
    resolved = _checked(model, make, precision=precision, warmup=warmup, ema_decay=ema_decay)
    with distributed.joined(threads=allowed_threads()):
        rank, processes = distributed.place()
        loaded = open_dataset(dataset)
        part, judged = (loaded.train, loaded.val) if split == "train" else (loaded.train_val, loaded.test)
        if batch_size > len(part):
            raise ValueError(
                f"--batch-size is {batch_size}, and {part.name} has {len(part)} images; choose at most that"
            )
        folder = out or data_folder() / "checkpoints" / f"{model}-{loaded.name}"
        _make_writable(folder, force=force)
        torch.manual_seed(seed)
        network = models.build(model, classes=len(loaded.classes))
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        judging = Batches(judged, loaded, batch_size=500)
        try:
            log = training.fit(
                network,
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
        except (training.DivergedError, KeyboardInterrupt) as error:
            words, status = str(error), Status.FAILED_CHECK
            if isinstance(error, KeyboardInterrupt):
                words, status = f"{words.partition(';')[0]}; the same command goes on from there", Status.STOPPED
            if rank > 0:  # all processes end so, and one says it
                raise typer.Exit(status) from error
            raise StopError(words, status) from error
    if rank > 0:
        return
    accuracy = training.evaluate(network, judging)
    network.cpu()
    height, width, channels = part.images.shape[1:]
    facts = {
        "minutes": log.rows[-1]["seconds"] / 60,
        "parameters": parameters(network),
        "macs": macs(network, torch.zeros(1, channels, height, width)),
    }
    recipe = {
        "optimizer": optimizer,
        **{name: p.default for name, p in inspect.signature(make).parameters.items() if p.default is not p.empty},
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": f"{schedule} to 0, warm-up {warmup:.0%}",
        "label_smoothing": label_smoothing,
        "precision": resolved,
        "weight_average": ema_decay or "none",
        "seed": seed,
        "augmentation": "random crop with padding 4, horizontal flip",
        **({"processes": processes} if processes > 1 else {}),
    }
    card = model_card(
        name=model,
        dataset=loaded.name,
        description=(
            f"{network.config.description[0].upper()}{network.config.description[1:]}, for images of {height}x{width} "
            "pixels: a starting point of the deploykit cookbook."
        ),
        accuracy=accuracy,
        trained_on=f"{split} ({len(part):,} images)",
        recipe=recipe,
        machine=machine(),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        command=_command(context.obj["arguments"], processes),
        **facts,
    )
    models.save_checkpoint(network, folder, card=card)
    log.to_csv(folder / "training-log.csv")
    (folder / "training-state.pt").unlink(missing_ok=True)
    if not as_json:
        output.show(f"{model} on {loaded.name}: {accuracy}\nwritten to {folder}")
        return
    low, high = accuracy.interval
    output.document({
        "model": model,
        "dataset": loaded.name,
        "folder": str(folder),
        "accuracy": accuracy.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "judged_on": accuracy.split,
        "judged_images": accuracy.images,
        "trained_on": split,
        "trained_images": len(part),
        "recipe": recipe,
        **facts,
    })  # fmt: skip


def _checked(
    model: str,
    make: Callable[[torch.nn.Module], torch.optim.Optimizer],
    *,
    precision: str,
    warmup: float,
    ema_decay: float | None,
) -> str:
    """Refuse, before any image is loaded, what would fail later; return the precision that "auto" stands for.

    Raises:
        StopError: fp16 without a GPU.
        ValueError: a number out of its range.
        ImportError: a package that the optimizer needs is missing.
    """
    import torch

    from deploykit import models, training

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "fp16" and device.type != "cuda":
        raise StopError("precision fp16 needs a GPU, and torch finds none; use bf16, fp32 or auto", Status.UNABLE)
    if warmup >= 1:
        raise ValueError(f"--warmup is {warmup}; it is a share of the training, below 1")
    if ema_decay == 1:
        raise ValueError("--ema-decay is 1: the average would stay at the weights of the start; choose less, 0.999 say")
    make(models.build(model))
    return training.resolve_precision(precision, device)


def _make_writable(folder: Path, *, force: bool) -> None:
    """Create the folder to write, and see before hours are spent that it can be written.

    Raises:
        StopError: it holds a trained network, which only ``force`` may replace.
        OSError: it cannot be written.
    """
    if (folder / "model.safetensors").exists() and not force:
        raise StopError(
            f"{folder} holds a trained network; choose another --out, or replace it with --force", Status.USAGE
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _command(arguments: Sequence[str], processes: int) -> str:
    """Return the command that trains this network again, for a card that others will read."""
    start = [NAME] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "deploykit.cli"]
    return shlex.join([*start, *(_portable(argument) for argument in arguments if argument not in OF_THIS_RUN)])


def _portable(argument: str) -> str:
    """Cut a path of this machine to its last part."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument
