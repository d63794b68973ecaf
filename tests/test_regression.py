"""The gate: closed when the slow-down is certain, on figures that are made up."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from deploykit import regression
from deploykit.comparison import Comparison
from deploykit.measurement import Conditions, Measurement
from deploykit.regression import Baseline, Regression, check_against, check_regression, regression_of

HERE = {"cpu": "A", "cores": 1, "threads": 2, "memory_gib": 8.0, "gpu": None, "python": "3.11.9"}
RUNS = (10.0, 10.2, 9.9, 10.1, 10.0)


def trial(*, slower: float, noise: float = 0.005, rounds: int = 40, seed: int = 0) -> Comparison:
    """Return a comparison whose candidate takes ``1 + slower`` times as long, on a machine that drifts."""
    random = np.random.default_rng(seed)
    drift = np.linspace(10, 13, rounds)
    times = {
        name: tuple(drift * factor * np.exp(random.normal(0, noise, rounds)))
        for name, factor in (("baseline", 1.0), ("candidate", 1.0 + slower))
    }
    conditions = Conditions(1, 1, "cpu", 10, {}, {}, "2026-01-01")
    return Comparison({name: Measurement(name, ms, conditions) for name, ms in times.items()}, times, "baseline", seed)


def stored(figures=None, **other) -> Baseline:
    """Return a baseline of made-up figures."""
    kept = Baseline({"p50_ms": RUNS} if figures is None else figures, "ab", HERE, {"torch": "2.14.1"}, "2026-01-01")
    return replace(kept, **other)


class TestInTurns:
    def test_a_planted_slowdown_is_found_on_a_drifting_machine(self):
        """Five percent more time in every round closes the gate, though the machine slows down by thirty."""
        found = regression_of(trial(slower=0.05), "candidate")

        assert found.failed
        assert found.slowdown == pytest.approx(0.05, abs=0.005)
        assert found.low < found.slowdown < found.high

    @pytest.mark.parametrize("seed", range(20))
    def test_the_same_file_twice_passes(self, seed):
        """Noise alone never closes the gate."""
        assert regression_of(trial(slower=0.0, seed=seed), "candidate").outcome == "not slower"

    def test_noise_that_hides_the_answer_leaves_the_gate_open(self):
        """An interval on both sides of what is allowed decides nothing, and is told apart from a pass."""
        found = regression_of(trial(slower=0.03, noise=0.2), "candidate")

        assert (found.outcome, found.failed) == ("undecided", False)

    def test_what_is_allowed_passes(self):
        """A slow-down below the allowed one is let through."""
        assert regression_of(trial(slower=0.05), "candidate", allowed_slowdown=0.1).outcome == "not slower"

    @pytest.mark.parametrize(
        ("low", "high", "outcome"),
        [
            (0.0201, 0.08, "slower"),
            (0.02, 0.08, "undecided"),
            (-0.01, 0.0201, "undecided"),
            (-0.01, 0.02, "not slower"),
        ],
    )
    def test_the_whole_interval_decides(self, low, high, outcome):
        """Both ends must lie on one side of what is allowed."""
        assert Regression(0.015 if low < 0 else 0.05, low, high, 0.02).outcome == outcome

    def test_it_is_read_in_percent(self):
        """The words of a log."""
        assert str(Regression(0.05, 0.04, 0.06, 0.02)) == "slower: +5.0% time (+4.0% to +6.0%), allowed +2.0%"

    def test_both_are_timed_in_turns_with_what_was_given(self, monkeypatch):
        """The predictors, the images and the settings reach ``compare``."""
        asked = {}

        def compare(contestants, images, **settings):
            asked.update(contestants=contestants, images=images, **settings)
            return trial(slower=0.05)

        monkeypatch.setattr(regression, "compare", compare)
        images = torch.zeros(1, 3, 8, 8)

        assert check_regression(len, abs, images, budget_s=7, threads=1, seed=3).failed
        assert asked == {"contestants": {"baseline": len, "candidate": abs}, "images": images, "threads": 1,
                         "device": None, "budget_s": 7, "seed": 3}  # fmt: skip

    @pytest.mark.parametrize("allowed", [-0.01, math.nan, math.inf])
    def test_a_senseless_allowance_is_refused_before_anything_is_timed(self, allowed):
        """It says what it is and what to give."""
        with pytest.raises(ValueError, match=f"allowed_slowdown is {allowed}; give 0 or more, 0.02 for two percent"):
            check_regression(None, None, None, allowed_slowdown=allowed)


class TestFromStore:
    def test_the_interval_is_welchs(self):
        """Of the logarithms of both sets of runs."""
        now = (11.0, 11.3, 10.9, 11.4)
        found = check_against(stored(), stored({"p50_ms": now})).found["p50_ms"]
        low, high = ttest_ind(np.log(now), np.log(RUNS), equal_var=False).confidence_interval()

        assert (found.low, found.high) == pytest.approx((np.exp(low) - 1, np.exp(high) - 1))
        assert found.slowdown == pytest.approx(np.exp(np.mean(np.log(now)) - np.mean(np.log(RUNS))) - 1)

    @pytest.mark.parametrize(("factor", "failed"), [(1.0, False), (1.05, False), (1.2, True)])
    def test_a_figure_that_is_certainly_slower_fails(self, factor, failed):
        """A fifth more time is more than the ten percent allowed; a twentieth is not."""
        today = stored({"p50_ms": [run * factor for run in RUNS]})

        assert check_against(stored(), today).failed is failed

    def test_another_machine_is_not_compared(self):
        """However slow it is there: it says whose figures they are, and fails nothing."""
        found = check_against(stored(), stored({"p50_ms": [99.0] * 3}, machine=HERE | {"cpu": "B"}))

        assert not found.failed
        assert str(found) == "not comparable: the stored figures are another machine's (cpu A, here B)"

    def test_what_changed_meanwhile_is_listed(self):
        """A new file and a new version are what a slow-down may come from; they forbid no comparison."""
        found = check_against(stored(), stored(sha256="cd", versions={"torch": "2.15.0", "openvino": "2026.4"}))

        assert found.changed == ("the artifact", "openvino absent to 2026.4", "torch 2.14.1 to 2.15.0")
        assert set(found.found) == {"p50_ms"}

    def test_runs_that_do_not_scatter_have_their_difference_as_interval(self):
        """Counts may be equal in all runs; Welch's test would divide by their scatter, and warns."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = check_against(stored({"misses": [10.0] * 3}), stored({"misses": [12.0] * 3})).found["misses"]

        assert (found.low, found.high) == pytest.approx((0.2, 0.2))

    def test_figures_that_only_one_has_are_refused(self):
        """A figure that is not compared would pass unseen."""
        with pytest.raises(ValueError, match="only one of the two has p99_ms; measure the same figures"):
            check_against(stored(), stored({"p50_ms": RUNS, "p99_ms": RUNS}))

    def test_it_comes_back_from_the_file_as_it_was(self, tmp_path):
        """Figures, machine, versions, and the hash of the artifact's bytes."""
        artifact = tmp_path / "model.xml"
        artifact.write_bytes(b"abc")
        kept = Baseline.here({"p50_ms": RUNS}, artifact)
        kept.save(tmp_path / "baseline.json")

        assert Baseline.load(tmp_path / "baseline.json") == kept
        assert kept.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
        assert "cpu" in kept.machine

    @pytest.mark.parametrize("runs", [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, math.nan]])
    def test_too_few_or_senseless_runs_are_refused(self, tmp_path, runs):
        """The scatter of one run is unknown, and a ratio needs positive figures."""
        with pytest.raises(ValueError, match=r"p50_ms is .*; give a positive figure for each of 3 runs or more"):
            Baseline.here({"p50_ms": runs}, tmp_path / "unread")

    @pytest.mark.parametrize("text", ["", "[]", json.dumps({"figures": {"a": 1}}), json.dumps({"figures": {}})])
    def test_a_file_that_is_no_baseline_is_refused(self, tmp_path: Path, text):
        """It says how to take one."""
        (tmp_path / "other.json").write_text(text)

        with pytest.raises(ValueError, match=r"other.json is no baseline .*take one with Baseline.here"):
            Baseline.load(tmp_path / "other.json")

    def test_no_figures_are_refused(self, tmp_path):
        """An empty baseline would pass everything."""
        with pytest.raises(ValueError, match="no figures to keep"):
            Baseline.here({}, tmp_path / "unread")
