"""What samples are worth: statistics are those of the textbook, and a wide spread is said."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from deploykit.measurement import SAMPLES_FOR_PERCENTILE, Conditions, Measurement


def taken(samples_ms) -> Measurement:
    """A measurement with these samples."""
    return Measurement("it", tuple(samples_ms), Conditions(4, 2, "cpu", 10, {}, {}, "2026-01-01"))


def test_median_and_quartiles_by_hand():
    """1 to 8 and a hiccup: median 5, quartiles 3 and 7, whatever the hiccup."""
    found = taken([1, 2, 3, 4, 5, 6, 7, 8, 900])

    assert (found.median_ms, found.iqr_ms) == (5, 4)


@pytest.mark.parametrize(("name", "needed"), [("p90_ms", 64), ("p95_ms", 130), ("p99_ms", 662)])
def test_percentiles_need_their_samples(name, needed):
    """MLPerf's 64 and 662, and 130 between: one sample less gives no number."""
    assert getattr(taken([1.0] * (needed - 1)), name) is None
    assert getattr(taken([1.0] * needed), name) == 1


def test_percentiles_by_hand():
    """Of 0 to 1,000 in any order, 90 % are below 900."""
    found = taken(np.random.default_rng(0).permutation(1001))

    assert (found.p90_ms, found.p95_ms, found.p99_ms) == pytest.approx((900, 950, 990))


@pytest.mark.parametrize(("percent", "needed"), SAMPLES_FOR_PERCENTILE.items())
def test_the_samples_needed_follow_from_the_binomial(percent, needed):
    """At the number, one slow call in n is compatible with the percentile in 1 % at most; one below, in more."""
    slow = 1 - percent / 100
    chance = [sum(math.comb(n, k) * slow**k * (1 - slow) ** (n - k) for k in (0, 1)) for n in (needed - 1, needed)]

    assert chance[0] > 0.01 >= chance[1]


@pytest.mark.parametrize(("spread", "word"), [(0.08, None), (0.2, "unstable: "), (0.4, "very unstable: ")])
def test_a_wide_spread_warns_and_says_what_to_do(spread, word):
    """Above 10 % and 25 % of the median the measurement doubts itself, in text and when printed."""
    found = taken(np.linspace(10 - 10 * spread, 10 + 10 * spread, 101))

    assert found.iqr_ms / found.median_ms == pytest.approx(spread)
    assert (found.unstable or "None").startswith(word or "None")
    assert ("top other programs" in str(found)) == (word is not None)


def test_it_prints_no_more_than_it_knows():
    """3.3 ms with a spread of 0.4 ms is 1,200 images/s at batch 4, not 1,222."""
    assert str(taken(np.linspace(2.874, 3.674, 101))).splitlines()[0] == (
        "it: 3.3 ms (IQR 0.4 ms, 101 calls), 1,200 images/s at batch 4, 2 threads, cpu"
    )


def test_it_cannot_be_changed():
    """A measurement is a record."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        taken([1.0]).label = "better"  # type: ignore[misc]
