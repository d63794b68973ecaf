"""The ways to run one model, each a row with what runs it, or with a line that says why it does not."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.artifacts import ENDINGS, load_artifact, make_artifact, try_out
from deploykit.cost import size_mib, tensor_size_mib
from deploykit.export import export_onnx
from deploykit.free_speed import fast_predictor
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.rows import Row, words_for
from deploykit.runtimes import inductor, onnxruntime
from deploykit.untrusted import tried_apart

FLOAT_ROWS = (
    ("ONNX Runtime", "float32"),
    ("ONNX Runtime", "int8"),
    ("OpenVINO", "float32"),
    ("OpenVINO", "bfloat16"),
    ("OpenVINO", "int8"),
)
QUANTIZED_ROWS = (("ONNX Runtime", "as given"), ("OpenVINO", "as given"))
MOST_IN_A_GRAPH = 1024  # images in a batch that exported graphs are made for by default


@dataclass(frozen=True)
class Setting:
    """What all rows of a benchmark share.

    Attributes:
        folder: where artifacts are made.
        calibration: training images, float32 [N, 3, H, W].
        batches: sizes of batches that every row must compute.
        classes: how many a row must tell apart.
        report: is told what is being done.
    """

    folder: Path
    calibration: Tensor
    batches: tuple[int, ...]
    classes: int
    report: Callable[[str], None]

    @property
    def model(self) -> Path:
        """Where the whole ONNX file is that ONNX Runtime's and OpenVINO's rows are made of."""
        return self.folder / "model.onnx"

    def artifact(self, runtime: str, precision: str) -> Path:
        """Where what a runtime runs is made, in a folder of its own."""
        return self.folder / f"{runtime} {precision}".lower().replace(" ", "-") / f"model{ENDINGS[runtime]}"

    def check_classes(self, found: int, what: str) -> None:
        """Raise ValueError unless a model tells as many classes apart as the data has."""
        if found != self.classes:
            raise ValueError(
                f"{what} tells {found} classes apart, and the data has {self.classes}; give the data that it is for"
            )


def rows_of_module(model: nn.Module, setting: Setting, *, compiled: bool) -> list[Row]:
    """Return the rows of PyTorch, those of the model's ONNX form, and of Inductor's packages if ``compiled``.

    Raises:
        ValueError: the module cannot compute the images, or tells another number of classes apart.
    """
    model = copy.deepcopy(model).cpu().eval()
    setting.check_classes(try_out(model, setting.calibration, setting.batches), type(model).__name__)
    faster = fast_predictor(model, fold=False)
    rows = [baseline_row(model)]
    rows += [Row("PyTorch channels_last", "float32", predictor=faster, size_mib=rows[0].size_mib)]
    setting.report("exporting to ONNX")
    try:
        proto = export_onnx(model, setting.calibration[:2], max_batch=max(*setting.batches, MOST_IN_A_GRAPH))
        onnxruntime.save(proto, setting.model)
    except Exception as error:  # noqa: BLE001 - of exporters of several libraries; the other rows go on
        rows += [Row(*kind, status=words_for(error)) for kind in FLOAT_ROWS]
    else:
        rows += rows_of_file(FLOAT_ROWS, setting)
    if compiled:
        rows += [_packaged(model, precision, setting) for precision in ("float32", "int8")]
    return rows


def rows_of_file(kinds: Sequence[tuple[str, str]], setting: Setting) -> Iterator[Row]:
    """Yield rows of ONNX Runtime and OpenVINO; a child process makes and tries the artifact of each before.

    Args:
        kinds: runtime and precision of each.
        setting: its ``model`` is there.

    Raises:
        ValueError: the model tells another number of classes apart.
    """
    calibration = setting.folder / "calibration.npy"
    np.save(calibration, setting.calibration.numpy())
    jobs = [
        {
            "runtime": runtime,
            "precision": precision,
            "source": str(setting.model),
            "artifact": str(setting.artifact(runtime, precision)),
            "calibration": str(calibration),
            "batches": setting.batches,
        }
        for runtime, precision in kinds
    ]
    setting.report("making the artifacts of ONNX Runtime and OpenVINO in a process of their own")
    for kind, outcome in zip(kinds, tried_apart(make_artifact, jobs), strict=True):
        if outcome.error:
            yield Row(*kind, status=outcome.error.replace(f"{setting.folder}{os.sep}", ""))  # a path of this run only
            continue
        setting.check_classes(outcome.value, "the model")
        yield row_of_artifact(*kind, setting)


def row_of_artifact(runtime: str, precision: str, setting: Setting) -> Row:
    """Return the row of an artifact that is there."""
    row, place = Row(runtime, precision), setting.artifact(runtime, precision)
    try:
        row.predictor, row.size_mib = load_artifact(runtime, precision, place), size_mib(place.parent)
    except ValueError as error:
        row.status = words_for(error)
    return row


def baseline_row(model: nn.Module) -> Row:
    """Return the row of a module as it is, in evaluation mode on the CPU."""
    return Row("PyTorch eager", "float32", predictor=_eager(model), size_mib=tensor_size_mib(model))


def _eager(model: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        logits: Tensor = model(images.contiguous())  # batches of a dataset are channels_last
        return logits

    return predict


def _packaged(model: nn.Module, precision: str, setting: Setting) -> Row:
    row, path = Row("Inductor", precision), setting.folder / f"{precision}.pt2"
    setting.report(f"compiling for {row.name}")
    try:
        ready = model if precision == "float32" else quantize_pt2e(model, [setting.calibration]).model
        most = max(*setting.batches, MOST_IN_A_GRAPH)
        inductor.save(ready, path, images=setting.calibration[:2], max_batch=most)
        row.predictor, row.size_mib = inductor.load(path), size_mib(path)
        try_out(row.predictor, setting.calibration, setting.batches)
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises; the other rows go on
        row.status = words_for(error)
    return row
