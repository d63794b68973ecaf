"""Figures of number formats: limits and shares are those of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit import plots
from deploykit.precision import number_format, number_formats

FP16 = number_format(torch.float16)


def test_each_format_reaches_from_its_smallest_to_its_largest():
    """A thick line for normal numbers and a dotted one for the others; tf32 and fp16 do not hide each other."""
    formats = number_formats()
    lines = plots.format_ranges(formats).axes[0].lines

    assert [line.get_xdata().tolist() for line in lines] == [
        ends
        for held in formats.values()
        for ends in ([held.smallest_normal, held.largest], [held.smallest, held.smallest_normal])
    ]
    assert len({line.get_ydata()[0] for line in lines}) == len(formats)


def test_the_alt_text_has_the_limits():
    """Range and step in words."""
    assert plots.format_ranges({"fp16": FP16}).alt == (
        "Lines, the range of number formats, by their resolution: fp16 from 6.1e-05 to 6.6e+04 in steps of 9.8e-04."
    )


def test_magnitudes_are_shares_of_what_is_not_zero():
    """Three numbers in three octaves, a third each; one of them is lost in fp16."""
    plot = plots.magnitudes({"weights": np.array([0, -1, 2.0**-30, 2])}, FP16, name="fp16")
    (steps,) = [patch for patch in plot.axes[0].patches if hasattr(patch, "get_data")]
    values, edges, _ = steps.get_data()

    assert dict(zip(edges, values, strict=False))[2.0**-30] == pytest.approx(100 / 3)
    assert values.sum() == pytest.approx(100)
    assert plot.alt.endswith("6.0e-08 to 6.6e+04: weights, median 1.0e+00, 33.3 % of them lost in fp16.")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.format_ranges({}),
        lambda: plots.magnitudes({}, FP16, name="fp16"),
        lambda: plots.magnitudes({"a": np.zeros(3)}, FP16, name="fp16"),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    """An empty figure would look like a result."""
    with pytest.raises(ValueError, match="to draw: "):
        draw()
