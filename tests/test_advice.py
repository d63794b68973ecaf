"""Claims are checked when they are read."""

import math

import pytest

from deploykit.advice import load_claims

GOOD = """[[claim]]
id = "a-claim"
words = "w"
source = "s"
measured = "m"
quantity = "q"
threshold = 5.0
direction = "below"
unit = "%"
notebook = "01"
question = "?"
options = [{ answer = "less", up_to = 5.0 }, { answer = "more" }]
"""


def test_a_claim_says_what_would_make_it_hold(tmp_path):
    """The stake has direction, threshold and unit; the answers' ranges meet there and leave no number out."""
    (tmp_path / "claims.toml").write_text(GOOD.replace('"w"', '"<b>wide</b>"'))
    claim = load_claims(tmp_path / "claims.toml")["a-claim"]

    assert claim.stake == "below 5 %"
    assert str(claim) == "a-claim: <b>wide</b> Holds if q is below 5 %. Source: s."
    assert "&lt;b&gt;wide" in claim._repr_markdown_()
    assert [(option.above, option.up_to) for option in claim.options] == [(-math.inf, 5), (5, math.inf)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('words = "w"\n', "", "claim 'a-claim' in claims.toml lacks words"),
        ('"below"', '"under"', "direction is 'under', it must be 'above' or 'below'"),
        ('"01"', '"1"', "notebook is '1', it must be two digits, like '01'"),
        ('"a-claim"', '"A claim"', "claim 'A claim' in claims.toml: an id is kebab-case"),
        ("threshold = 5.0", 'threshold = "5"', "threshold is '5', it must be a finite number"),
        ("threshold = 5.0", "threshold = 4.0", r"no option ends at the threshold 4\.0"),
        (", up_to = 5.0", "", "every option but the last has an up_to"),
        ('"more"', '"less"', "two options have the same answer"),
        ('unit = "%"', 'unit = "%"\nunits = "%"', "has unknown keys: units"),
        ('unit = "%"', 'unit = "%"\nbut = ""', "but must be text in quotes, not empty"),
        (GOOD, GOOD + GOOD, "claim 'a-claim' in claims.toml is there twice"),
        (GOOD, "", r"claims.toml holds no \[\[claim\]\]"),
    ],
)
def test_a_bad_claim_is_named(tmp_path, old, new, message):
    """Every mistake in the file is an error that names the claim and the mistake."""
    (tmp_path / "claims.toml").write_text(GOOD.replace(old, new))

    with pytest.raises(ValueError, match=message):
        load_claims(tmp_path / "claims.toml")
