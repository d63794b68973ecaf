"""Is the ONNX file still the model? Its logits against torch's, image by image, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .files import load_onnx, opset_of

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4  # of a logit: what float32 arithmetic in another order costs a network of ordinary depth
ODD_BATCHES = (1, 3)  # in which a file that fixed the batch size, or a part of the graph that did, gives itself away


@dataclass(frozen=True, repr=False)
class Verification:
    """What :func:`verify_onnx` found.

    Attributes:
        images: how many were compared.
        batch_sizes: that the file computed, ascending.
        max_error: the largest difference of a logit.
        agreement: share of the images whose top class is the same.
        opset: of the file.
        size_bytes: of the file, or of the model as one.
    """

    images: int
    batch_sizes: tuple[int, ...]
    max_error: float
    agreement: float
    opset: int
    size_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.images:,} images, batches of {', '.join(map(str, self.batch_sizes))}: logits differ by up to "
            f"{self.max_error:.1e}, {self.agreement:.2%} have the same top class; opset {self.opset}, "
            f"{self.size_bytes / 2**20:.2f} MiB"
        )

    __repr__ = __str__


def verify_onnx(
    model: nn.Module,
    source: Path | str | onnx.ModelProto,
    batches: Iterable[Any],
    *,
    tolerance: float | None = TOLERANCE,
) -> Verification:
    """Compare an ONNX file with the model that it was made from, in ONNX Runtime, and raise if it is another.

    Args:
        model: in evaluation mode, on the CPU.
        source: a path, or the model in memory.
        batches: images, float32 [N, C, H, W], or pairs of images and labels. The first images are also given one by
            one and by threes.
        tolerance: the largest difference of a logit that is accepted; None only reports, which is what a file of
            another precision needs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is broken or cannot be run, gives something else than the model, or there is no image.
        ImportError: onnx or onnxruntime is missing.
    """
    if any(module.training for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is in training mode; call .eval() before verify_onnx")
    proto = load_onnx(source)
    run = _session(proto, "the model" if not isinstance(source, Path | str) else str(source))
    images = agreeing = 0
    max_error, sizes = 0.0, set()
    for batch, counts in _with_odd_sizes(batches):
        found, wanted = run(batch), _logits(model, batch)
        if found.shape != wanted.shape:
            raise ValueError(f"the file returns {list(found.shape)} where the model returns {list(wanted.shape)}")
        error = (found.double() - wanted.double()).abs().max().item()
        max_error = max(max_error, error if error == error else float("inf"))  # noqa: PLR0124 - NaN is no number
        if counts:
            agreeing += int((found.argmax(1) == wanted.argmax(1)).sum())
            images += len(batch)
        sizes.add(len(batch))
    if not images:
        raise ValueError("there is no image to compare; give at least one batch")
    size = Path(source).stat().st_size if isinstance(source, Path | str) else proto.ByteSize()
    result = Verification(images, tuple(sorted(sizes)), max_error, agreeing / images, opset_of(proto), size)
    if tolerance is not None and not max_error <= tolerance:
        raise ValueError(
            f"the file is not the model: {result}. Accepted are {tolerance:.1e}; export it again, or give "
            "tolerance=None where a difference is meant"
        )
    return result


def _with_odd_sizes(batches: Iterable[Any]) -> Iterable[tuple[Tensor, bool]]:
    """Yield each batch, and before the first some of its images in odd sizes, which count as no images of their own."""
    for number, batch in enumerate(batches):
        images = batch[0] if isinstance(batch, tuple | list) else batch
        if number == 0:
            yield from ((images[:size], False) for size in ODD_BATCHES if len(images) > size)
        yield images, True


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def _session(proto: onnx.ModelProto, what: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX Runtime is missing: pip install 'deploykit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed as well
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common root but this
        raise ValueError(f"ONNX Runtime cannot load {what}: {error}") from error
    names = [value.name for value in session.get_inputs()]
    if len(names) != 1:
        raise ValueError(f"{what} takes {len(names)} inputs ({', '.join(names)}); one of images can be verified")

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {names[0]: images.contiguous().numpy()})[0])
        except Exception as error:
            raise ValueError(f"{what} cannot compute images of shape {list(images.shape)}: {error}") from error

    return run
