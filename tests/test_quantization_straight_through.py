"""The straight-through estimator by hand has the values and the gradients of the library's operator."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deploykit.quantization.straight_through import fake_quantize_ste


@pytest.mark.parametrize(
    ("scale", "zero_point", "low", "high"), [(0.05, 3, 0, 255), (0.02, 0, -128, 127), (0.3, 2, 0, 3)]
)
def test_values_and_gradients_are_the_librarys(scale, zero_point, low, high):
    """In range and beyond it, for unsigned, signed and 2-bit integers."""
    ours = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(4).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    slope = torch.arange(1000.0)

    (fake_quantize_ste(ours, scale, zero_point, low, high) * slope).sum().backward()
    (torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, low, high) * slope).sum().backward()

    assert_close(fake_quantize_ste(ours, scale, zero_point, low, high),
                 torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, low, high))  # fmt: skip
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < 1000


def test_three_numbers_by_hand():
    """On the grid 0, 0.5, 1, 1.5: 0.6 goes to 0.5, 9 and -1 to the ends, where no gradient passes."""
    x = torch.tensor([0.6, 9.0, -1.0], requires_grad=True)

    rounded = fake_quantize_ste(x, 0.5, 0, 0, 3)
    rounded.sum().backward()

    assert rounded.tolist() == [0.5, 1.5, 0.0]
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
