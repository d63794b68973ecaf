"""A comparison is a ratio with an interval, and whoever wins has to win against each other one."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.comparison import Comparison, Ratio
from deploykit.measurement import Conditions, Measurement


def rounds_of(seed=0, **rounds_ms) -> Comparison:
    """A comparison with these times, the first contestant being the baseline."""
    conditions = Conditions(4, 2, "cpu", 10, {}, {}, "2026-01-01")
    measurements = {name: Measurement(name, tuple(taken_ms), conditions) for name, taken_ms in rounds_ms.items()}
    return Comparison(measurements, {name: tuple(ms) for name, ms in rounds_ms.items()}, next(iter(rounds_ms)), seed)


def test_rounds_are_paired():
    """What a round suffers as a whole cancels: twice as fast in each of very different rounds is twice, for certain."""
    drift = np.geomspace(1, 50, 12)

    assert rounds_of(a=6 * drift, b=3 * drift).ratio("b") == pytest.approx((2, 2, 2))


def test_a_ratio_is_turned_around_by_asking_the_other_way():
    """The ratio over the baseline is the default; over another one it is the inverse, ends changed."""
    jitter = np.resize([0.9, 1.0, 1.1], 12)
    found = rounds_of(a=np.full(12, 4.0), b=2 * jitter)
    value, low, high = found.ratio("b")

    assert found.ratio("b", over="a") == (value, low, high)
    assert found.ratio("a", over="b") == pytest.approx((1 / value, 1 / high, 1 / low), rel=0.02)


def test_the_interval_is_drawn_with_the_comparisons_seed():
    """One seed gives one interval; another seed gives a slightly different one."""
    noise = np.random.default_rng(0).lognormal(sigma=0.1, size=(2, 20))
    first, again, other = (rounds_of(seed, a=noise[0], b=noise[1]).ratio("b") for seed in (1, 1, 2))

    assert first == again
    assert first.value == other.value
    assert first.low != other.low


def test_a_winner_beats_every_other():
    """Being faster than the baseline is not enough: the runner-up must be excluded too."""
    jitter = np.resize([0.95, 1.05], 30)
    found = rounds_of(base=np.full(30, 9.0), b=3 * jitter, c=3.01 * jitter[::-1])

    assert found.ratio("b").low > 2
    assert found.ratio("b", over="c").value > 1
    assert found.winner() is None


def test_a_ratio_prints_with_its_interval():
    """As many decimals as the interval's width allows, the last worth a fifth of it at most."""
    assert str(Ratio(1.5234, 1.48, 1.57)) == "1.52x (1.48 to 1.57)"
    assert str(Ratio(1.577, 1.530, 1.640)) == "1.58x (1.53 to 1.64)"
