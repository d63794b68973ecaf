"""The heat map: its numbers are those of the table, and names are text."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from deploykit import plots

TABLE = pd.DataFrame({0.5: [40.0, 42.0], 0.9: [41.0, 45.26]}, index=[1, 4])


def test_each_number_stands_in_its_field():
    """Rows go down, columns to the right, and the largest is named in the alt text."""
    plot = plots.heat_map(TABLE, x="alpha", y="T", of="accuracy [%]")
    texts = {text.get_position(): text.get_text() for text in plot.axes[0].texts}

    assert texts == {(0, 0): "40.0", (1, 0): "41.0", (0, 1): "42.0", (1, 1): "45.3"}
    assert plot.alt == "Table of accuracy [%], T down, alpha across: from 40.0 to 45.3, largest at 4 and 0.9."


def test_the_largest_value_has_the_darkest_field_and_white_ink():
    """A reader in greyscale sees the order, and can read every number."""
    plot = plots.heat_map(TABLE, x="alpha", y="T", of="accuracy [%]")
    image = plot.axes[0].images[0]
    shades = image.cmap(image.norm(TABLE.to_numpy()))[..., 0]
    ink = {text.get_text(): text.get_color() for text in plot.axes[0].texts}

    assert shades.argmin() == 3
    assert (ink["45.3"], ink["40.0"]) == ("white", "black")


def test_a_missing_number_is_left_out():
    """NaN gets no text; a table of nothing but NaN is refused."""
    plot = plots.heat_map(TABLE.where(TABLE < 45), x="alpha", y="T", of="accuracy")

    assert len(plot.axes[0].texts) == 3
    with pytest.raises(ValueError, match="no number to draw"):
        plots.heat_map(TABLE * math.nan, x="alpha", y="T", of="accuracy")
