"""Fake quantization whose step size is learned with the weights: LSQ, for the few bits where a good step decides.

After Esser et al. 2020, "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CANDIDATES = 100
LEAST_STEP = 1e-8  # a step that training drives through 0 would divide by it


class LearnedStep(torch.autograd.Function):
    """Round ``values / step`` to the integers of a grid and multiply back (LSQ, equations 1 to 3).

    With v the value, s the step, Qn = -low, Qp = high and v̂ the result, the gradients of equations 5 and 3 are

        dv̂/dv = 1 where -Qn < v/s < Qp, else 0                           (the straight-through estimator)
        dv̂/ds = round(v/s) - v/s where -Qn < v/s < Qp, else -Qn or Qp

    ``torch._fake_quantize_learnable_per_tensor_affine`` computes something else between Qp and Qp + ½ (and below -Qn):
    there it lets the gradient through and takes the step's as small, where LSQ says "outside". At 2 bits a good part
    of all weights lies there.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return float32 of the shape of ``values``.

        Args:
            ctx: autograd's.
            values: float [...], of any floating dtype; computed with in float32.
            step: float32, positive, of as many dimensions as ``values`` and broadcast to it.
            grid: -Qn and Qp, the least and the largest integer.
        """
        ctx.save_for_backward(values, step)
        ctx.grid = grid
        return (values / step).round_().clamp_(*grid).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the values and of the step."""
        values, step = ctx.saved_tensors
        scaled = values / step
        # The gradient where low < scaled < high, elsewhere 0, in one pass over memory.
        through = torch.ops.aten.hardtanh_backward(gradient, scaled, *ctx.grid)
        rounded = scaled.round().clamp_(*ctx.grid)
        return through, (gradient * rounded - through * scaled).sum_to_size(step.shape), None


class LearnedQuantizer(nn.Module):
    """Fake-quantizes a tensor with one step, or one for each of its first dimension, that is trained.

    It computes in float32, under autocast too: a bfloat16 step would have 8 bits of precision.

    Attributes:
        step: float32 [1] or [channels]; it starts at 1 until :meth:`start_from` sets it.
        grid: the least and the largest integer that the bits hold: -2^(b-1) and 2^(b-1) - 1, or 0 and 2^b - 1.
        offset: a level is (integer + offset) * step. With ½ there are as many levels below 0 as above and none at 0
            (a "mid-rise" quantizer): at 2 bits ±½ and ±1½ steps in place of -2, -1, 0 and 1.

    Args:
        bits: 2 to 8.
        signed: whether negative values occur.
        channels: how many steps; 1 for the whole tensor.
        per_image: the first dimension counts images: a step's gradient is scaled by the features of one of them.
        offset: 0 or ½.
    """

    def __init__(
        self, bits: int, *, signed: bool, channels: int = 1, per_image: bool = False, offset: float = 0.0
    ) -> None:
        super().__init__()
        self.bits, self.signed, self.per_image, self.offset = bits, signed, per_image, offset
        self.grid = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        self.step = nn.Parameter(torch.ones(channels))

    def forward(self, values: Tensor) -> Tensor:
        """Return the values on the grid, float32 of the same shape.

        The gradient of the step is scaled by 1 / sqrt(N Qp), N the number of values that share it: then its updates,
        relative to its size, are like those of the weights (LSQ, section 2.2).
        """
        shared = math.prod(values.shape[1:]) if self.per_image else values.numel() // len(self.step)
        step = self._step(values)
        step = step.detach() + (step - step.detach()) * (shared * (self.grid[1] + self.offset)) ** -0.5
        if not self.offset:
            return LearnedStep.apply(values, step, self.grid)
        return LearnedStep.apply(values - self.offset * step, step, self.grid) + self.offset * step

    @torch.no_grad()
    def integers(self, values: Tensor) -> Tensor:
        """Return what would be stored: int8 (uint8 where unsigned) of the shape of ``values``."""
        step = self._step(values)
        rounded = ((values - self.offset * step) / step).round_().clamp_(*self.grid)
        return rounded.to(torch.int8 if self.signed else torch.uint8)

    @torch.no_grad()
    def start_from(self, values: Tensor) -> None:
        """Set the step to the one with the least squared error on ``values``."""
        self.step.copy_(best_step(values.reshape(len(self.step), -1), self.grid, self.offset))

    def extra_repr(self) -> str:
        """Say bits, sign and number of steps where the module is printed."""
        return f"bits={self.bits}, signed={self.signed}, steps={len(self.step)}, offset={self.offset}"

    def positive_step(self) -> Tensor:
        """Return the step that is computed with, float32 [1] or [channels]."""
        return self.step.abs().clamp_min(LEAST_STEP)

    def _step(self, values: Tensor) -> Tensor:
        """Return the step in the dimensions of ``values``."""
        return self.positive_step().view(-1, *[1] * (values.ndim - 1))


def best_step(values: Tensor, grid: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Return the step of each row that has the least mean squared error after rounding.

    Of a hundred candidates up to the one that clips nothing. LSQ itself starts at 2 mean|v| / sqrt(Qp) (section 2.1),
    from which training recovers; without training, at 4 bits, it loses more.

    Args:
        values: float32 [rows, n].
        grid: -Qn and Qp.
        offset: a level is (integer + offset) * step.

    Returns:
        float32 [rows]; 1 for a row of zeros, which any step represents.
    """
    largest = values.abs().amax(dim=1, keepdim=True) / (grid[1] + offset)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.arange(CANDIDATES, 0, -1) / CANDIDATES:
        step = largest * share
        levels = (values / step - offset).round_().clamp_(*grid).add_(offset)
        error = levels.mul_(step).sub_(values).square_().mean(dim=1, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best.squeeze(1)


def quantizers(model: nn.Module) -> Iterator[LearnedQuantizer]:
    """Iterate over the learned quantizers of a model."""
    return (module for module in model.modules() if isinstance(module, LearnedQuantizer))
