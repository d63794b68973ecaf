"""A network in its fastest form that keeps its accuracy: planned, measured, chosen on val and reported on test."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deploykit import ledger
from deploykit.artifacts import try_out
from deploykit.benchmarking import judge_rows, time_rows
from deploykit.contestants import MOST_IN_A_GRAPH, Row, Setting, baseline_row, row_of_artifact, rows_of_file
from deploykit.data import Batches, Dataset
from deploykit.evaluation import Accuracy, evaluate
from deploykit.export import export_onnx
from deploykit.places import atomic_write
from deploykit.runtimes import onnxruntime
from deploykit.significance import PairedDifference, paired_difference
from deploykit.standalone import script_for

if TYPE_CHECKING:
    import pandas as pd

MADE = "made-from"  # the file that says what an artifact was made of, and that it was tried
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")  # whose version may change an artifact


@dataclass(frozen=True)
class Step:
    """One thing to try: a form of the network, and why it may help."""

    runtime: str
    precision: str
    why: str

    @property
    def name(self) -> str:
        """What it is called in the plan, the ledger and ``only`` and ``skip``."""
        return f"{self.runtime} {self.precision}"


STEPS = (
    Step("ONNX Runtime", "float32", "the same numbers, without Python between the operators"),
    Step("OpenVINO", "float32", "the same numbers, operators fused for this processor"),
    Step("OpenVINO", "bfloat16", "half of the bytes, where the processor has instructions for it"),
    Step("ONNX Runtime", "int8", "a quarter of the bytes, integer kernels; calibrated on training images"),
    Step("OpenVINO", "int8", "a quarter of the bytes, integer kernels; calibrated on training images"),
)


@dataclass(frozen=True, repr=False)
class Optimized:
    """What :func:`optimize` found.

    Attributes:
        rows: the baseline, and each step; accuracies are of val.
        winner: of the rows; the baseline where no step helped.
        before: accuracy of the baseline on test.
        after: that of the winner.
        folder: holds ``winner/`` with the artifact and ``run.py``; None where the baseline won, which is the model.
    """

    rows: tuple[Row, ...]
    winner: Row
    before: Accuracy
    after: Accuracy
    folder: Path | None

    @property
    def difference(self) -> PairedDifference:
        """The winner's accuracy minus the baseline's, on the same test images."""
        return paired_difference(self.before.correct, self.after.correct)

    def table(self) -> pd.DataFrame:
        """Return one row for each form, see :meth:`Row.figures`."""
        import pandas as pd

        return pd.DataFrame([row.figures() for row in self.rows])

    def __str__(self) -> str:
        if self.winner is self.rows[0]:
            return f"no step helped: the network stays as it is, {self.before}"
        return f"{self.winner.name}, {self.winner.ratio} as fast; on test {self.difference}"

    __repr__ = __str__


def plan_optimization(*, only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[Step, ...]:
    """Return what :func:`optimize` would try, in this order, and try nothing.

    Args:
        only: names of steps; all if there are none.
        skip: names of steps to leave out.

    Raises:
        ValueError: a name that no step has, or nothing is left to try.
    """
    names = [step.name for step in STEPS]
    if unknown := [name for name in (*only, *skip) if name not in names]:
        raise ValueError(f"there is no step {unknown[0]!r}; there are {', '.join(map(repr, names))}")
    chosen = tuple(step for step in STEPS if step.name not in skip and (not only or step.name in only))
    if not chosen:
        raise ValueError("every step is skipped; leave at least one to try")
    return chosen


def optimize(
    model: nn.Module,
    dataset: Dataset,
    folder: Path | str,
    *,
    max_drop: float = 1.0,
    batch: int = 1,
    calibration_images: int = 256,
    budget_s: float = 20.0,
    steps: Sequence[Step] = STEPS,
    report: Callable[[str], None] | None = None,
) -> Optimized:
    """Try each step on a copy, and hand back the fastest form that loses at most ``max_drop`` points.

    Chosen is on validation images; test images are seen once the choice is made. Each step leaves a row in the ledger.
    Interrupted, the same call goes on: an artifact in ``folder`` is taken if it was made of the same network, data and
    versions.

    Args:
        model: float32; it is not changed.
        dataset: training images calibrate int8, validation images choose, test images are reported on. The network
            must not have been trained on the validation images: on what it knows by heart it loses too little.
        folder: where to write; new, empty, or of an earlier call.
        max_drop: points of accuracy on val that the winner may be below the network.
        batch: images in a batch, as in the use that it is meant for.
        calibration_images: how many of the training split.
        budget_s: seconds for the timing.
        steps: from :func:`plan_optimization`.
        report: is told what is being done.

    Raises:
        ValueError: a number out of its range, a folder with something else in it, a module that does not fit the
            images or classes or cannot be exported, or a budget too small for an interval.
        ImportError: onnx is missing.
    """
    for name, given, least in (
        ("max_drop", max_drop, 0),
        ("batch", batch, 1),
        ("calibration_images", calibration_images, 1),
    ):
        if given < least:
            raise ValueError(f"{name} is {given}; give at least {least}")
    folder = _usable(Path(folder))
    report = report or (lambda _: None)
    model = copy.deepcopy(model).cpu().eval()
    train = Batches(dataset.train.take(calibration_images), dataset, batch_size=calibration_images)
    images = torch.cat([images for images, _ in train]).contiguous()
    setting = Setting(folder, images, (batch,), len(dataset.classes), report)
    setting.check_classes(try_out(model, images, (1, batch)), type(model).__name__)
    rows = [baseline_row(model), *_made(model, setting, steps, dataset)]
    judge_rows(rows, Batches(dataset.val, dataset, batch_size=500), report)
    if untimed := time_rows(rows, batch, setting, budget_s):
        raise ValueError(untimed)
    for row in rows:
        ledger.record(row.name, kind="optimize", dataset=dataset.name, split="val", batch=batch, **_columns(row))
    winner = choose(rows, max_drop)
    return _reported(rows, winner, dataset, setting)


def choose(rows: Sequence[Row], max_drop: float) -> Row:
    """Return the fastest row that is surely faster than the first and keeps the accuracy; else the first.

    Args:
        rows: the baseline first; with ratios and differences to it.
        max_drop: points of accuracy that a row may lose, as measured.
    """
    able = [
        (row.ratio.value, number)
        for number, row in enumerate(rows)
        if row.ok
        and row.ratio is not None
        and row.difference is not None
        and row.ratio.low > 1
        and -100 * row.difference.difference <= max_drop
    ]
    return rows[max(able)[1]] if able else rows[0]


def _usable(folder: Path) -> Path:
    """Create the folder, or see that it is empty or that of an earlier call, which may have left hidden files."""
    earlier = (folder / "model.onnx").exists()
    entries = sorted(folder.glob("[!.]*"))
    if entries and not earlier:
        raise ValueError(f"{folder} holds something else ({entries[0].name}); give a new folder, or an earlier call's")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _made(model: nn.Module, setting: Setting, steps: Sequence[Step], dataset: Dataset) -> list[Row]:
    """Return the rows of all steps; what an earlier call made of the same things is not made again."""
    origin = _origin(model, setting.calibration, dataset)
    kinds = [(step.runtime, step.precision) for step in steps]
    marks = {kind: setting.artifact(*kind).parent.with_suffix(f".{MADE}") for kind in kinds}
    missing = [kind for kind, mark in marks.items() if not mark.is_file() or mark.read_text("ascii") != origin]
    found = {kind: row_of_artifact(*kind, setting) for kind in kinds if kind not in missing}
    if missing:
        setting.report("exporting to ONNX")
        exported = export_onnx(model, setting.calibration[:2], max_batch=max(*setting.batches, MOST_IN_A_GRAPH))
        onnxruntime.save(exported, setting.model)
        for kind in missing:
            marks[kind].unlink(missing_ok=True)  # an artifact that is being replaced is of no origin
        for kind, row in zip(missing, rows_of_file(missing, setting), strict=True):
            found[kind] = row
            if row.ok:
                with atomic_write(marks[kind]) as partial:
                    partial.write_text(origin, encoding="ascii")
    return [found[kind] for kind in kinds]


def _origin(model: nn.Module, calibration: Tensor, dataset: Dataset) -> str:
    """Return a hash of all that artifacts are made of: weights, structure, calibration images, data, versions."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    digest = hashlib.sha256(f"{model}\0{dataset.fingerprint}\0{versions}".encode())
    for name, tensor in (*model.state_dict().items(), ("", calibration)):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reported(rows: list[Row], winner: Row, dataset: Dataset, setting: Setting) -> Optimized:
    """See the test images for the first time, and write the winner with the script that runs it."""
    test = Batches(dataset.test, dataset, batch_size=500)
    base = rows[0]
    if base.predictor is None or winner.predictor is None:
        raise ValueError(f"the network cannot be measured: {base.status}")
    before = evaluate(base.predictor, test)
    after = before if winner is base else evaluate(winner.predictor, test)
    low, high = after.interval
    figures = {"accuracy": after.accuracy, "accuracy_low": low, "accuracy_high": high}
    ledger.record(f"{winner.name}, chosen", kind="optimize", dataset=dataset.name, split="test", **figures)
    target = setting.folder / "winner"
    if target.exists():
        shutil.rmtree(target)
    if winner is base:
        return Optimized(tuple(rows), winner, before, after, None)
    shutil.copytree(setting.artifact(winner.runtime, winner.precision).parent, target)
    side = setting.calibration.shape[-1]
    with atomic_write(target / "run.py") as partial:
        partial.write_text(script_for(winner.runtime, winner.precision, dataset, side), encoding="utf-8")
    return Optimized(tuple(rows), winner, before, after, setting.folder)


def _columns(row: Row) -> dict[str, object]:
    """Return what the ledger takes of a row: its figures that there are."""
    return {name: value for name, value in row.figures().items() if value is not None}
