"""From a file, a folder or a network to the predictor that is served."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifacts import HINTS, batch_of
from deploykit.benchmarking import loaded_apart, opened_apart
from deploykit.export import export_onnx
from deploykit.runtimes import onnxruntime, openvino

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deploykit.data import Dataset
    from deploykit.runtimes.predictor import Predictor

KINDS = (".onnx", ".xml")


def artifact_in(folder: Path) -> Path | None:
    """Return the artifact of a folder that ``optimize`` wrote; None where the folder is something else."""
    return next((folder / f"model{kind}" for kind in KINDS if (folder / f"model{kind}").is_file()), None)


def open_artifact(path: Path, *, batch: int, threads: int | None = None, precision: str = "float32") -> Predictor:
    """Return the predictor of a file, which is opened in a child process first.

    Args:
        path: an .onnx file, or an .xml of OpenVINO with its .bin beside it.
        batch: images that it has to take at once, and every number below that.
        threads: for one batch; as many as torch uses if None.
        precision: "float32" or "bfloat16", in OpenVINO, of what is not quantized.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, a file that cannot be opened safely, or one for batches of a fixed size.
        ImportError: the runtime is missing.
    """
    if path.suffix == ".xml":
        loaded_apart(path)
        return openvino.load(path, threads=threads, precision=HINTS.get(precision, "f32"))
    if path.suffix != ".onnx":
        raise ValueError(f"{path.name} ends in neither {' nor '.join(KINDS)}; export the model to one of them")
    with tempfile.TemporaryDirectory(prefix="deploykit-serve-", ignore_cleanup_errors=True) as folder:
        whole = Path(folder) / "model.onnx"
        fixed = opened_apart(path, whole)["batch"]
        if fixed is not None and (fixed, batch) != (1, 1):
            raise ValueError(
                f"{path.name} takes batches of {fixed} only, and the service makes them of 1 to {batch}; export the "
                "model with a free batch size"
            )
        return onnxruntime.load(whole, threads=threads)


def open_network(network: nn.Module, dataset: Dataset, *, threads: int | None = None) -> Predictor:
    """Return a network as ONNX Runtime computes it.

    Args:
        network: in evaluation mode, float32.
        dataset: whose images it takes.
        threads: for one batch; as many as torch uses if None.

    Raises:
        ValueError: it cannot be exported.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    example: torch.Tensor = dataset.train.images[:1].permute(0, 3, 1, 2).float()
    return onnxruntime.load(export_onnx(network, batch_of(example, 2)), threads=threads)
