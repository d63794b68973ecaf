"""Values are shown as text, with the digits that they deserve."""

import pytest

from deploykit.text import escape_markdown, format_interval, with_unit


def test_markup_in_a_value_is_shown_literally():
    """HTML, Markdown, tables, formulas and line breaks lose their power."""
    assert escape_markdown("<b>|a*b_c`d`\n$x$ & [y](z)") == r"&lt;b&gt;\|a\*b\_c\`d\` \$x\$ &amp; \[y\](z)"


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ((3.14159, 3.02, 3.29), ("3.14", "3.02", "3.29")),
        ((8.23, 7.1, 9.4), ("8.2", "7.1", "9.4")),
        ((1234.5, 1100, 1400), ("1,234", "1,100", "1,400")),
        ((0.12345, 0.12345, 0.12345), ("0.123", "0.123", "0.123")),
        ((0, 0, 0), ("0", "0", "0")),
    ],
)
def test_the_interval_decides_on_the_digits(numbers, texts):
    """The last digit is worth at most a fifth of the interval; a point keeps three digits."""
    assert format_interval(*numbers) == texts


def test_a_ratio_has_no_space_and_other_units_have_one():
    """As in print: 2.1x, 5 %, and a bare number."""
    assert (with_unit("2.1", "x"), with_unit("5", "%"), with_unit("7", "")) == ("2.1x", "5 %", "7")
