"""One network in each form of a plan, made in a child process and tried once; what an earlier call made is taken."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deploykit.contestants import MOST_IN_A_GRAPH, Setting, row_of_artifact, rows_of_file
from deploykit.data import Dataset
from deploykit.export import export_onnx
from deploykit.optimize.folder import origin
from deploykit.optimize.plan import Form
from deploykit.places import atomic_write
from deploykit.rows import Row, words_for
from deploykit.runtimes import onnxruntime

MADE = "made-from"  # the file that says what an artifact was made of, and that it was tried


def rows_of_forms(model: nn.Module, forms: Sequence[Form], setting: Setting, dataset: Dataset) -> list[Row]:
    """Return the row of each form; one that cannot be made says why, and the others go on.

    Args:
        model: float32, in evaluation mode on the CPU.
        forms: to make.
        setting: its ``folder`` is this network's own.
        dataset: that the network is for.

    Raises:
        ImportError: the exporter is missing.
    """
    made_from = origin(model, setting.calibration, dataset)
    kinds = [(form.runtime, form.precision) for form in forms]
    marks = {kind: setting.artifact(*kind).parent.with_suffix(f".{MADE}") for kind in kinds}
    missing = [kind for kind, mark in marks.items() if not mark.is_file() or mark.read_text("ascii") != made_from]
    found = {kind: row_of_artifact(*kind, setting) for kind in kinds if kind not in missing}
    if missing and (obstacle := _export(model, setting)):
        return [found.get(kind) or Row(*kind, status=obstacle) for kind in kinds]
    if missing:
        for kind in missing:
            marks[kind].unlink(missing_ok=True)  # an artifact that is being replaced is of no origin
        for kind, row in zip(missing, rows_of_file(missing, setting), strict=True):
            found[kind] = row
            if row.ok:
                with atomic_write(marks[kind]) as partial:
                    partial.write_text(made_from, encoding="ascii")
    return [found[kind] for kind in kinds]


def _export(model: nn.Module, setting: Setting) -> str:
    """Write the network as ONNX; returns why that cannot be, "" where it can."""
    setting.report("exporting to ONNX")
    setting.folder.mkdir(parents=True, exist_ok=True)
    try:
        exported = export_onnx(model, setting.calibration[:2], max_batch=max(*setting.batches, MOST_IN_A_GRAPH))
        onnxruntime.save(exported, setting.model)
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an exporter raises is the row's status
        return words_for(error)
    return ""
