"""What a figure is worth: the statistics are those of the textbook."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, norm, t, trim_mean

from deploykit.significance import (
    decimals_allowed,
    mean_paired_difference,
    paired_difference,
    trimmed_mean_interval,
    wilson_interval,
)


class TestWilson:
    """The interval of one accuracy."""

    @given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
    @settings(deadline=None)
    def test_it_is_scipys(self, counts, confidence):
        """Equal to scipy's to rounding, and the accuracy is inside."""
        low, high = wilson_interval(*counts, confidence)
        reference = binomtest(*counts).proportion_ci(confidence, method="wilson")

        assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
        assert 0 <= low <= counts[0] / counts[1] <= high <= 1

    def test_a_perfect_score_is_not_certainty(self):
        """10 of 10 is 72 % or more: by hand, 10 / (10 + 1.96²)."""
        assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + 1.959964**2)), 1.0)

    def test_none_and_all_end_exactly_at_0_and_1(self):
        """Whatever the rounding, an end is not outside 0 to 1, and not beyond the accuracy."""
        assert {wilson_interval(0, total)[0] for total in range(1, 300)} == {0.0}
        assert {wilson_interval(total, total)[1] for total in range(1, 300)} == {1.0}

    @pytest.mark.parametrize(("counts", "message"), [((0, 0), "0 of 0|0 correct of 0"), ((11, 10), "11 correct of 10")])
    def test_impossible_counts_are_refused(self, counts, message):
        """No images, or more correct than there are."""
        with pytest.raises(ValueError, match=message):
            wilson_interval(*counts)

    def test_confidence_is_a_fraction(self):
        """95 is a usual slip."""
        with pytest.raises(ValueError, match="confidence is 95; it must lie between 0 and 1"):
            wilson_interval(9, 10, 95)


def pair_of(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays with these counts."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


class TestPairedDifference:
    """Two models on the same images."""

    def test_a_case_by_hand(self):
        """40 lost, 20 won of 160: (20 - 40) / 162 ± 1.96 sqrt(61 - 400 / 162) / 162, and the binomial's p."""
        found = paired_difference(*pair_of(80, 40, 20, 20))

        assert found.difference == -0.125
        assert (found.discordant_a, found.discordant_b, found.images) == (40, 20, 160)
        assert found.interval == pytest.approx((-0.216017, -0.030896), abs=1e-6)
        assert found.p_value == pytest.approx(2 * sum(math.comb(60, k) for k in range(21)) / 2**60)

    def test_it_prints_percentage_points_and_who_won(self):
        """The sign, the counts and p are in one line."""
        assert str(paired_difference(*pair_of(80, 40, 20, 20))) == (
            "-12.50 points (-21.60 to -3.09), 20 images won and 40 lost of 160, p = 0.013"
        )

    def test_newcombes_interval_agrees(self):
        """Altman, Statistics with Confidence, table 6.2 (14, 5, 0, 22): method 10 gives 0.011 to 0.226."""
        found = paired_difference(*pair_of(14, 0, 5, 22))

        assert found.interval == pytest.approx((0.011, 0.226), abs=0.006)
        assert found.p_value == 0.0625

    def test_it_covers_the_truth_in_95_of_100(self):
        """Of 2,000 simulated pairs of models on 2,000 images, 93 to 97 % of the intervals hold the true difference."""
        rng = np.random.default_rng(0)
        inside = 0
        for cells in rng.multinomial(2000, [0.85, 0.02, 0.03, 0.10], size=2000):
            low, high = paired_difference(*pair_of(*cells)).interval
            inside += low <= 0.01 <= high

        assert 1860 <= inside <= 1940

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
    @settings(deadline=None)
    def test_the_interval_holds_the_estimate_and_swapping_flips_it(self, pairs):
        """The estimate lies inside, and b against a is a against b with the sign changed."""
        a, b = np.array(pairs, dtype=bool).T
        found, swapped = paired_difference(a, b), paired_difference(b, a)

        assert -1 <= found.interval[0] <= found.difference <= found.interval[1] <= 1
        assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]))
        assert swapped.p_value == found.p_value

    def test_models_that_agree_everywhere_do_not_differ(self):
        """No discordant image: p is 1, and the interval has 0 inside and some width."""
        same = torch.tensor([True, False] * 50)
        found = paired_difference(same, same)

        assert (found.difference, found.p_value) == (0, 1)
        assert found.interval[0] < 0 < found.interval[1]

    def test_predictions_are_not_correctness(self):
        """Class indices, or arrays of different lengths, are refused."""
        with pytest.raises(ValueError, match="correct_a is int64 and correct_b int64; both must be bool"):
            paired_difference(torch.tensor([1, 2]), torch.tensor([1, 3]))
        with pytest.raises(ValueError, match=r"correct_a is \[2\] and correct_b \[1\]"):
            paired_difference(torch.tensor([True, False]), torch.tensor([True]))


class TestInterval:
    """The bootstrap interval of a trimmed mean."""

    def test_the_trimmed_mean_by_hand(self):
        """Of ten values the two lowest and two highest are left out."""
        assert trimmed_mean_interval([-900, 0, 1, 2, 3, 4, 5, 6, 7, 900])[0] == 3.5
        assert trimmed_mean_interval([-900, -90, 1, 2, 3, 4, 5, 9, 30, 900])[0] == 4

    @given(st.lists(st.floats(-1, 1), min_size=10, max_size=40))
    @settings(max_examples=50, deadline=None)
    def test_the_interval_holds_the_estimate(self, values):
        """Low, estimate, high are in order, whatever the values and their order."""
        value, low, high = trimmed_mean_interval(values)

        assert low - 1e-12 <= value <= high + 1e-12
        assert trimmed_mean_interval(values[::-1]) == (value, low, high)

    def test_it_is_as_wide_as_the_reference(self):
        """SciPy's bootstrap of its own trimmed mean, at the percentiles of n = 10 in Hesterberg's section 5."""
        values = np.linspace(-1, 1, 10)
        tail = norm.cdf(-math.sqrt(10 / 9) * t.ppf(0.975, 9))
        reference = bootstrap(
            (values,), lambda drawn, axis: trim_mean(drawn, 0.2, axis=axis), confidence_level=1 - 2 * tail,
            n_resamples=50_000, method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        ends = [trimmed_mean_interval(values, seed=seed)[1:] for seed in range(20)]

        assert np.mean(ends, axis=0) == pytest.approx(tuple(reference), abs=0.012 * (reference.high - reference.low))
        assert len(set(ends)) > 1

    def test_it_covers_the_truth_in_95_of_100(self):
        """500 samples of 20 values with hiccups: the true centre is inside in 93 to 98 %."""
        rng = np.random.default_rng(0)
        inside = 0
        for seed in range(500):
            values = rng.normal(scale=0.01, size=20) + (rng.random(20) < 0.1) * rng.normal(scale=0.3, size=20)
            _, low, high = trimmed_mean_interval(values, seed=seed)
            inside += low <= 0 <= high

        assert 465 <= inside <= 490


class TestDigits:
    """How many digits a spread leaves."""

    @pytest.mark.parametrize(
        ("value", "spread", "decimals"),
        [(3.274, 0.41, 1), (3.274, 0.02, 2), (812.4, 30, 0), (3.274, 0, 3), (0.0123, 0, 5)],
    )
    def test_digits_end_where_the_spread_begins(self, value, spread, decimals):
        """The last decimal shown is the first of the spread; without spread, four figures."""
        assert decimals_allowed(value, spread) == decimals


class TestMeanPairedDifference:
    """Two ways of training, seed by seed."""

    def test_it_is_the_one_worked_out_by_hand(self):
        """Differences 1, 2 and 3: mean 2, standard error 1 / sqrt 3, t of two degrees of freedom 4.3027."""
        found = mean_paired_difference([90.0, 91.0, 92.0], [91.0, 93.0, 95.0])

        half = 4.302653 / math.sqrt(3)
        assert found == pytest.approx((2.0, 2 - half, 2 + half, 3))

    def test_what_all_seeds_share_does_not_count(self):
        """Seeds that scatter by ten points and differ by nearly one leave no doubt about the one."""
        found = mean_paired_difference([80.0, 85.0, 90.0], [81.0, 86.0, 90.9])

        assert 0.8 < found.low < found.high < 1.2

    def test_equal_differences_have_no_width(self):
        """A spread of 0 is no error."""
        assert mean_paired_difference([1.0, 2.0], [2.0, 3.0]) == (1.0, 1.0, 1.0, 2)

    @pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
    def test_figures_that_are_no_pairs_are_refused(self, a, b):
        """And one pair has no spread."""
        with pytest.raises(ValueError, match=f"{len(a)} and {len(b)} figures were given; give one of each"):
            mean_paired_difference(a, b)
