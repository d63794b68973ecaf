"""The straight-through estimator written out: rounding that a gradient passes as if there were none."""

from __future__ import annotations

from torch import Tensor


def fake_quantize_ste(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Round ``x`` to the grid that integers can hold, in float, with the gradient of the clamp alone.

    The derivative of rounding is 0 almost everywhere, so nothing would be learned through it; the estimator takes 1
    instead wherever the value is in range, and 0 where it was clamped (Bengio et al. 2013, section 4; Jacob et al.
    2018, section 3). This shows how the thing works: ``torch.fake_quantize_per_tensor_affine`` computes the same in one
    kernel, and only that one is exported as Q/DQ.

    Args:
        x: float, any shape.
        scale: distance between two neighbours of the grid.
        zero_point: the integer that stands for 0.0.
        quant_min: the smallest integer, -128 for int8 and 0 for uint8.
        quant_max: the largest.

    Returns:
        float, the shape of ``x``: (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale.
    """
    integers = (x / scale).round() + zero_point
    on_grid = (integers.clamp(quant_min, quant_max) - zero_point) * scale
    in_range = (integers >= quant_min) & (integers <= quant_max)
    passed = x * in_range
    return on_grid.detach() + (passed - passed.detach())
