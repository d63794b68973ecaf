"""TensorRT: an engine for one kind of GPU and one version of the library, run through PyCUDA."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from .files import existing
from .onnx_file import read_onnx
from .predictor import Predictor
from .tensorrt_execution import NAME, Execution
from .tensorrt_library import gpu_here, import_pycuda, import_tensorrt
from .tensorrt_manifest import Manifest, is_built_here, sha256


def load(
    engine_path: Path | str, *, onnx_path: Path | str | None = None, cuda_graph: bool = False
) -> TensorRTPredictor:
    """Return the engine as a predictor; use it in a ``with`` statement, which gives its memory back.

    A plan is a program. What this machine did not build, or what was changed since, is never loaded.

    Args:
        engine_path: what :func:`build_engine` wrote.
        onnx_path: refuse an engine that was not built from this file.
        cuda_graph: record the work for a size of batch once and replay it, which saves launching each kernel.

    Raises:
        FileNotFoundError: no such file.
        ImportError: TensorRT or PyCUDA is missing; the message names the extra.
        ValueError: an engine that was not built here, or for another version, GPU or model; the message says which.
        RuntimeError: there is no CUDA device.
        MemoryError: the GPU has no room for it.
    """
    path = existing(engine_path)
    trt = import_tensorrt()
    manifest = Manifest.read(path)
    plan = path.read_bytes()
    if sha256(plan) != manifest.plan_sha256 or not is_built_here(plan, path):
        raise ValueError(
            f"{path} is not what build_engine wrote here, or was changed since; loading it would run what is in it. "
            "Build it again"
        )
    _check_fits(trt, path, manifest, onnx_path)
    execution = Execution(trt, import_pycuda(), plan, path, cuda_graph=cuda_graph)
    return TensorRTPredictor(execution, path, manifest)


def _check_fits(trt: Any, path: Path, manifest: Manifest, onnx_path: Path | str | None) -> None:
    library, version = trt.__name__, trt.__version__
    if (library, version) != (manifest.library, manifest.version):
        raise ValueError(
            f"{path} was built by {manifest.library} {manifest.version}, and here is {library} {version}: an "
            "engine fits its own version only. Build it again with build_engine"
        )
    if onnx_path is not None:
        proto_and_weights = read_onnx(onnx_path)
        contents = [existing(file).read_bytes() for file in (onnx_path, *proto_and_weights[1:])]
        if sha256(*contents) != manifest.onnx_sha256:
            raise ValueError(f"{path} was built from another model than {onnx_path}. Build it again with build_engine")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"there is no CUDA device: torch {torch.__version__} finds no NVIDIA GPU, and an engine runs on nothing "
            "else. nvidia-smi tells whether there is a driver; ONNX Runtime runs the ONNX file anywhere"
        )
    here = gpu_here(library)
    if here != (manifest.gpu, manifest.compute_capability):
        raise ValueError(
            f"{path} was built for {manifest.gpu} (compute capability {manifest.compute_capability}), and here is "
            f"{here[0]} ({here[1]}). Build it again with build_engine"
        )


class TensorRTPredictor:
    """An engine on the GPU: call it with images float32 [N, C, H, W] on the CPU, it returns logits of their own.

    It has one stream and one pair of buffers, used again in each call: one thread at a time. :meth:`close`, or the end
    of a ``with`` block, gives all of it back.

    Attributes:
        runtime: "TensorRT".
        source: the plan.
        manifest: what it was built from and for.
    """

    runtime = NAME

    def __init__(self, execution: Execution, path: Path, manifest: Manifest) -> None:
        self.source, self.manifest, self._execution = path, manifest, execution
        self._predictor = Predictor(NAME, execution.image, torch.get_num_threads(), path, self._forward)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits, float32 [N, classes].

        Raises:
            TypeError: something else than a tensor.
            ValueError: another dtype, device or shape than the engine takes, or a batch outside its profile.
            RuntimeError: it is closed, or TensorRT fails; the message has its words.
            MemoryError: the GPU has no room for the batch.
        """
        if self._execution.is_closed:
            raise RuntimeError(f"the predictor of {self.source} is closed; load it again")
        return self._predictor(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the memory, the engine and the hold on torch's context; a second time does nothing."""
        self._execution.close()

    def _forward(self, images: Tensor) -> Tensor:
        smallest, usual, largest = self.manifest.profile
        if not smallest <= len(images) <= largest:
            raise ValueError(
                f"{NAME} was given a batch of {len(images)}; the profile of this engine is ({smallest}, {usual}, "
                f"{largest}): give batches of {smallest} to {largest}, or build it again with another profile"
            )
        return torch.from_numpy(self._execution.run(images.numpy()))
