"""Comparing outputs: the numbers are those of a case computed by hand, and nothing broken passes as similar."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deploykit.quantization.outputs import compare_outputs

REFERENCE = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
OTHER = torch.tensor([[2.0, 4.0], [0.0, 1.0]])


def always(logits: Tensor):
    """A predictor that returns the first rows of these logits, whatever it is shown."""
    return lambda images: logits[: len(images)]


def images(count: int) -> Tensor:
    """Black pictures, float32 [count, 3, 4, 4]."""
    return torch.zeros(count, 3, 4, 4)


class TestNumbers:
    def test_two_images_by_hand(self):
        """Differences 1, 0, 1, 1; signal 26 over noise 3; cosines 22 / (5 * sqrt 20) and 0; one class changes."""
        found = compare_outputs(always(REFERENCE), always(OTHER), [images(2)])

        assert (found.mean_error, found.max_error, found.images, found.agreement) == (0.75, 1.0, 2, 0.5)
        assert found.sqnr_db == pytest.approx(10 * math.log10(26 / 3))
        assert found.cosine == pytest.approx(22 / (5 * math.sqrt(20)) / 2)

    def test_batches_of_any_size_count_by_image(self):
        """One batch of seven and batches of four and three, with labels or without, give the same numbers."""
        torch.manual_seed(0)
        pixels, matrix = torch.randn(7, 3, 4, 4), torch.randn(48, 5)
        pair = (lambda x: x.flatten(1) @ matrix, lambda x: (x.flatten(1) @ matrix).round())
        whole = compare_outputs(*pair, [pixels])
        parts = compare_outputs(*pair, [(pixels[:4], torch.zeros(4)), (pixels[4:], torch.zeros(3))])

        assert (whole.images, parts.images) == (7, 7)
        for name in ("mean_error", "max_error", "cosine", "agreement", "sqnr_db"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)

    def test_one_bit_is_six_decibels(self):
        """Rounding to a grid of half the step halves the error: 20 log10 2 dB more."""
        logits = torch.rand(4000, 10, generator=torch.Generator().manual_seed(0))
        coarse, fine = (
            compare_outputs(always(logits), always((logits * steps).round() / steps), [images(4000)])
            for steps in (64, 128)
        )

        assert fine.sqnr_db - coarse.sqnr_db == pytest.approx(20 * math.log10(2), abs=0.1)

    def test_sums_are_kept_in_float64(self):
        """A small error that a float32 sum would lose beside a large one is counted."""
        found = compare_outputs(always(torch.tensor([[1e4, 1e-4]])), always(torch.zeros(1, 2)), [images(1)])

        assert found.mean_error == pytest.approx((1e4 + 1e-4) / 2, rel=1e-10)

    def test_a_predictor_against_itself(self):
        """Nothing differs: no error, the same direction, endless signal to noise; NumPy arrays will do."""
        found = compare_outputs(
            always(REFERENCE), lambda x: REFERENCE.numpy()[: len(x)].astype(np.float64), [images(2)]
        )

        assert (found.mean_error, found.max_error, found.agreement, found.sqnr_db) == (0, 0, 1, math.inf)
        assert found.cosine == pytest.approx(1)

    def test_it_prints_itself_in_one_line(self):
        """All numbers, with their units."""
        assert str(compare_outputs(always(REFERENCE), always(OTHER), [images(2)])) == (
            "logits differ by 0.75 on average and 1 at most, cosine 0.491935, SQNR 9.4 dB, "
            "same class for 50.00% of 2 images"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("a", "b", "batches", "message"),
        [
            (REFERENCE, OTHER, [], r"there is no image to compare on; give batches of at least one"),
            (
                REFERENCE,
                OTHER[:, :1],
                [2],
                r"a returns \(2, 2\) and b \(2, 1\); compare predictors of the same classes",
            ),
            (REFERENCE, OTHER[0], [2], r"b turned images \(2, 3, 4, 4\) into \(2,\); logits are \[N, classes\]"),
            (REFERENCE, OTHER[:1], [2], r"b turned images \(2, 3, 4, 4\) into \(1, 2\); logits are \[N, classes\]"),
            (REFERENCE * math.nan, OTHER, [2], r"a returned NaN or infinity; look at its weights, its scales"),
            (REFERENCE, OTHER / 0, [2], r"b returned NaN or infinity"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, a, b, batches, message):
        """No image, other shapes, NaN and infinity are errors, and say whose."""
        with pytest.raises(ValueError, match=message):
            compare_outputs(always(a), always(b), [images(count) for count in batches])
