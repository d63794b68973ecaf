"""A network in its fastest form that keeps its accuracy: planned, measured, chosen on val and reported on test."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from deploykit import ledger
from deploykit.artifacts import batch_of, try_out
from deploykit.benchmarking import judge_rows, time_rows
from deploykit.contestants import Setting, baseline_row
from deploykit.data import Batches, Dataset, Split
from deploykit.evaluation import Accuracy, evaluate
from deploykit.optimize.bottleneck import find_bottleneck
from deploykit.optimize.choice import UNMADE, choose
from deploykit.optimize.folder import usable
from deploykit.optimize.forms import rows_of_forms
from deploykit.optimize.plan import Plan, Smaller, plan_optimization
from deploykit.optimize.result import Optimized, forget_winner, write_winner
from deploykit.optimize.shrink import batch_size
from deploykit.optimize.teach import make_smaller
from deploykit.rows import Row, words_for

LEAST_VAL_IMAGES, LEAST_TEST_IMAGES = 500, 2000


def optimize(
    model: nn.Module,
    dataset: Dataset,
    folder: Path | str,
    *,
    max_drop: float = 1.0,
    batch: int = 1,
    calibration_images: int = 256,
    plan: Plan | None = None,
    report: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Optimized:
    """Try each step on a copy, and hand back the fastest form that loses at most ``max_drop`` points.

    Chosen is on validation images; test images are seen once the choice is made. Each step leaves a row in the ledger.
    Interrupted, the same call goes on: an artifact or a taught network in ``folder`` is taken if it was made of the
    same network, data and versions, and a fine-tuning goes on from its last state.

    Args:
        model: float32; it is not changed.
        dataset: training images calibrate int8 and teach smaller networks, validation images choose, test images are
            reported on. The network must not have been trained on the validation images: on what it knows by heart
            all that is made of it seems to lose too much.
        folder: where to write; new, empty, or of an earlier call.
        max_drop: points of accuracy on val that the winner may be below the network.
        batch: images in a batch, as in the use that it is meant for.
        calibration_images: how many of the training split.
        plan: from :func:`~.plan.plan_optimization`; all steps when left out.
        report: is told what is being done.
        progress: show a progress bar while a network is taught.

    Raises:
        ValueError: a number out of its range, a folder with something else in it, a module that does not fit the
            images or classes, or a budget too small for an interval.
        ImportError: onnx is missing.
        KeyboardInterrupt: stopped, with all that was finished in the folder.
    """
    for name, given, least in (
        ("max_drop", max_drop, 0),
        ("batch", batch, 1),
        ("calibration_images", calibration_images, 1),
    ):
        if not given >= least:
            raise ValueError(f"{name} is {given}; give at least {least}")
    clock = time.monotonic()
    plan = plan or plan_optimization()
    folder = usable(Path(folder))
    model = copy.deepcopy(model).cpu().eval()
    train = Batches(dataset.train.take(calibration_images), dataset, batch_size=calibration_images)
    images = torch.cat([images for images, _ in train]).contiguous()
    setting = Setting(folder, images, (batch,), len(dataset.classes), report or (lambda _: None))
    setting.check_classes(try_out(model, images, (1, batch)), type(model).__name__)
    setting.report("profiling")
    bottleneck = find_bottleneck(model, batch_of(images, batch), budget_s=plan.profiling_s)
    work = _Work(model, dataset, setting, plan, clock, progress)
    rows = [baseline_row(model), *work.rows()]
    judge_rows(rows, work.part(dataset.val, rows, LEAST_VAL_IMAGES), setting.report)
    if untimed := time_rows(rows, batch, setting, plan.timing_s):
        raise ValueError(_about_the_whole_budget(untimed, plan))
    for row in rows:
        ledger.record(row.name, kind="optimize", dataset=dataset.name, split="val", batch=batch, **_columns(row))
    winner = choose(rows, max_drop)
    before, after = _on_test(rows[0], winner, work)
    forget_winner(folder)
    if winner is not rows[0]:
        write_winner(winner, work.setting_of(winner.network), dataset, folder)
    return Optimized(
        plan, tuple(rows), winner, before, after, max_drop, batch, len(dataset.classes),
        folder if winner is not rows[0] else None, work.done, bottleneck,
    )  # fmt: skip


@dataclass
class _Work:
    """The making of all that is compared, within the budget."""

    model: nn.Module
    dataset: Dataset
    setting: Setting
    plan: Plan
    started: float
    progress: bool

    def __post_init__(self) -> None:
        self.done: dict[str, str] = {}

    def setting_of(self, network: str) -> Setting:
        """Return the setting with a network's own folder; "" is the network as it was given."""
        return replace(self.setting, folder=self.setting.folder / (network.replace(" ", "-") or "as-given"))

    def rows(self) -> list[Row]:
        """Return the rows of all steps."""
        begun = time.monotonic()
        forms = self.plan.forms if self.plan.as_given else self.plan.forms[:1]  # one shows whether it can be exported
        as_given = rows_of_forms(self.model, forms, self.setting_of(""), self.dataset)
        making_s = time.monotonic() - begun
        rows = as_given if self.plan.as_given else []
        for number, step in enumerate(self.plan.smaller):
            left = len(self.plan.smaller) - number
            share = (self._left_s() - self.plan.timing_s - self.plan.judging_s) / left - making_s
            if not any(row.ok for row in as_given):
                rows.append(_failed(step, f"left out: no form of the network works ({as_given[0].status})"))
            else:
                rows += self._rows_of(step, min(share, self.plan.teaching_s))
        return rows

    def part(self, split: Split, rows: list[Row], least: int) -> Batches:
        """Return as many images of a split as the budget allows to ask rows about, in the classes' proportions.

        Args:
            split: val or test.
            rows: the first of them is timed, and all are taken to be as slow.
            least: images that are asked for whatever they cost.
        """
        size = batch_size(self.setting.calibration.shape[-1])
        images = batch_of(self.setting.calibration, size)
        begun = time.monotonic()
        if rows[0].predictor is not None:
            rows[0].predictor(images)
        seconds = (time.monotonic() - begun) / size * sum(row.ok for row in rows)
        most = int(self.plan.judging_s / max(seconds, 1e-9))
        return Batches(split.take(max(least, most)), self.dataset, batch_size=size)

    def _rows_of(self, step: Smaller, seconds: float) -> list[Row]:
        setting = self.setting_of(step.name)
        try:
            network, self.done[step.name] = make_smaller(
                step, self.model, setting, self.dataset,
                seconds=seconds, share_s=self.plan.teaching_s, progress=self.progress,
            )  # fmt: skip
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - of pruning, training and the reader's own module; the others go on
            return [_failed(step, words_for(error))]
        rows = rows_of_forms(network, self.plan.forms, setting, self.dataset)
        for row in rows:
            row.network = step.name
        return rows

    def _left_s(self) -> float:
        return self.plan.budget_s - (time.monotonic() - self.started)


def _failed(step: Smaller, words: str) -> Row:
    return Row(UNMADE, "float32", status=words, network=step.name)


def _on_test(base: Row, winner: Row, work: _Work) -> tuple[Accuracy, Accuracy]:
    """See test images for the first time: accuracies of the baseline and of the winner, which the ledger gets."""
    if base.predictor is None or winner.predictor is None or not base.ok:
        raise ValueError(f"the network cannot be measured: {base.status}")
    work.setting.report("accuracy on test")
    test = work.part(work.dataset.test, [base, winner], LEAST_TEST_IMAGES)
    before = evaluate(base.predictor, test)
    after = before if winner is base else evaluate(winner.predictor, test)
    low, high = after.interval
    figures = {"accuracy": after.accuracy, "accuracy_low": low, "accuracy_high": high}
    ledger.record(f"{winner.name}, chosen", kind="optimize", dataset=work.dataset.name, split="test", **figures)
    return before, after


def _about_the_whole_budget(untimed: str, plan: Plan) -> str:
    """Turn the seconds that the timing asks for into those of the whole budget."""
    scale = plan.budget_s / plan.timing_s
    return re.sub(r"budget_s=(\d+)", lambda found: f"a budget of {scale * int(found[1]):.0f} s", untimed)


def _columns(row: Row) -> dict[str, object]:
    """Return what the ledger takes of a row: its figures that there are."""
    return {name: value for name, value in row.figures().items() if value is not None}
