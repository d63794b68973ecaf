"""Does mixed precision keep the accuracy of float32, over the same seeds? And with --speed: what does it save?

    python benchmarks/mixed_precision.py                                       # 5 seeds of 5 epochs, half an hour
    python benchmarks/mixed_precision.py --images 1000 --epochs 1 --seeds 0 1  # a trial, nothing recorded
    python benchmarks/mixed_precision.py --speed                               # on a quiet machine, 4 minutes

The arms start from the same random weights and see the same batches in the same order, seed by seed, so that
differences are paired; in the third one, batch norm's own numbers are bf16 too. A seed that is done is kept in build/
and not trained again. Writes data/results/mixed-precision.json. With --speed a training step and the inference of
--speed-model are timed instead, all forms of one in turns, and data/results/mixed-precision-speed.json is written.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.data import Batches, Dataset, load_dataset
from deploykit.free_speed import fast_predictor
from deploykit.measure import compare
from deploykit.models import build, load_pretrained
from deploykit.places import atomic_write
from deploykit.precision import autocast_inference
from deploykit.recorded import recorded, write_recorded
from deploykit.significance import mean_paired_difference
from deploykit.training import cross_entropy, evaluate, fit, resolve_precision, sgd

Predictor = Callable[[Tensor], Tensor]

PRECISIONS = ("fp32", "bf16")
NORMS_TOO = "bf16, batch norm too"  # its weights and statistics are converted as well
ARMS = (*PRECISIONS, NORMS_TOO)
WARMUP = 0.2
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def trained(arm: str, seed: int, dataset: Dataset, given: argparse.Namespace, *, kept: Path) -> dict[str, float]:
    """Train one network; return its accuracy (0 to 1), as it was trained, and minutes, from ``kept`` if it is there."""
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    part = dataset.train_val if given.images is None else dataset.train_val.take(given.images)
    judged = dataset.test if given.images is None else dataset.test.take(given.images)
    batches = Batches(part, dataset, batch_size=128, augment=True, shuffle=True, drop_last=True, seed=seed)
    torch.manual_seed(seed)
    model = build(given.model, classes=len(dataset.classes))
    bf16 = arm != "fp32"
    if arm == NORMS_TOO:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.to(torch.bfloat16)
    log = fit(
        model, batches, epochs=given.epochs, optimizer=functools.partial(sgd, peak_lr=given.peak_lr), warmup=WARMUP,
        precision="bf16" if bf16 else "fp32", progress=sys.stderr.isatty(),
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        accuracy = evaluate(model, Batches(judged, dataset, batch_size=500)).accuracy
    found = {"accuracy": accuracy, "minutes": log.rows[-1]["seconds"] / 60}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as partial:
        partial.write_text(json.dumps(found), encoding="utf-8")
    return found


def accuracy_rows(results: Mapping[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return one row for each arm: the mean over the seeds, and paired differences from fp32 and bf16, in points."""
    rows = []
    for arm, found in results.items():
        accuracies = [one["accuracy"] for one in found]
        row: dict[str, Any] = {
            "arm": arm,
            "seeds": len(found),
            "mean_accuracy": round(statistics.fmean(accuracies), 5),
            "accuracies_percent": ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies),
            "minutes_a_seed": round(statistics.fmean(one["minutes"] for one in found), 2),
        }
        for other in PRECISIONS[: ARMS.index(arm)] if len(found) > 1 else ():
            gained = mean_paired_difference([one["accuracy"] for one in results[other]], accuracies)
            for end, points in {"points": gained.mean, "low": gained.low, "high": gained.high}.items():
                row[f"minus_{other}_{end}"] = round(100 * points, 2)
        rows.append(row)
    return rows


def step(model: nn.Module, labels: Tensor, layout: torch.memory_format, *, bf16: bool) -> Predictor:
    """Return a whole training step, the optimizer's part included, as a predictor that ``compare`` can call."""
    network = copy.deepcopy(model).to(memory_format=layout).train()
    optimizer, loss = sgd(network, peak_lr=1e-3), cross_entropy()

    def one_step(images: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            given = images.clone(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss(network, given, labels)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        return torch.zeros(len(images), 1)

    return one_step


def in_float32(model: nn.Module, layout: torch.memory_format) -> Predictor:
    """Return the network as it is, in a layout."""
    network = copy.deepcopy(model).to(memory_format=layout)
    return lambda images: network(images.to(memory_format=layout))


def speed_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a training step and inference, all forms of one in turns."""
    dataset = load_dataset("cifar10")
    model = load_pretrained(given.speed_model, dataset.name)
    images, labels = next(iter(Batches(dataset.train, dataset, batch_size=128, augment=True)))
    images = images.contiguous()
    steps = {
        f"{precision}, {name}": step(model, labels, layout, bf16=precision == "bf16")
        for precision in PRECISIONS
        for name, layout in LAYOUTS.items()
    }
    answers = {f"fp32, {name}": in_float32(model, layout) for name, layout in LAYOUTS.items()} | {
        f"bf16, {name}": autocast_inference(model, torch.bfloat16, channels_last=name == "channels_last")
        for name in LAYOUTS
    }
    answers["bf16 converted once, channels_last"] = fast_predictor(model, fold=False, bf16=True)
    rows = rows_of("training step", steps, images, given)
    for batch in (64, 1):
        rows += rows_of("inference", answers, images[:batch], given)
    return rows


def rows_of(
    what: str, forms: Mapping[str, Predictor], images: Tensor, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row for each form: its median, and its speed over plain fp32 and over fp32 in the same layout."""
    found = compare(forms, images, budget_s=given.budget_s)
    rows = []
    for name in forms:
        layout = name.rpartition(", ")[2]
        row: dict[str, Any] = {"what": what, "batch": len(images), "form": name}
        row["median_ms"] = round(found.measurements[name].median_ms, 2)
        for column, over in (("times_plain_fp32", "fp32, contiguous"), ("times_fp32_same_layout", f"fp32, {layout}")):
            if name != over:
                ratio = found.ratio(name, over=over)
                row[column] = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append(row)
    return rows


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8", help="trained from random weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--peak-lr", type=float, default=0.1)
    parser.add_argument("--images", type=int, help="train and judge on so many only: a trial")
    parser.add_argument("--speed", action="store_true", help="time steps instead, on a quiet machine")
    parser.add_argument("--speed-model", default="resnet20", help="a pretrained network")
    parser.add_argument("--budget-s", type=float, default=60, help="of each of three comparisons")
    return parser.parse_args()


def main() -> None:
    """Train seed by seed, all arms of one before the next, or time; record and print the table."""
    given = arguments()
    command = shlex.join(["python", "benchmarks/mixed_precision.py", *sys.argv[1:]])
    if given.speed:
        native = resolve_precision("auto", torch.device("cpu")) == "bf16"
        what = (
            f"{given.speed_model}, 32x32 images, in fp32 and under bf16 autocast in two layouts, forms timed in turns; "
            f"this CPU {'has' if native else 'lacks'} instructions for bf16"
        )
        write_recorded("mixed-precision-speed", speed_rows(given), what=what, command=command)
        print(recorded("mixed-precision-speed"))
        return
    dataset = load_dataset("cifar10")
    folder = Path("build/mixed-precision")
    settings = f"{given.model}-{given.images}-{given.epochs}-{given.peak_lr:g}"
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in given.seeds:
        for arm in ARMS:
            kept = folder / f"{settings}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            results[arm].append(trained(arm, seed, dataset, given, kept=kept))
            print(f"seed {seed}, {arm}: {results[arm][-1]}", flush=True)
    rows = accuracy_rows(results)
    if given.images is not None:
        print(*rows, sep="\n")
        return
    what = (
        f"{given.model} on {dataset.name} from random weights, {given.epochs} epochs in fp32, under bf16 autocast, and "
        f"with batch norm's weights and statistics in bf16 too; the same {len(given.seeds)} seeds, "
        f"{len(dataset.test):,} test images"
    )
    write_recorded("mixed-precision", rows, what=what, command=command)
    print(recorded("mixed-precision"))


if __name__ == "__main__":
    main()
