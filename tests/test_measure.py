"""Measuring: times are those of a scripted clock, statistics those of the textbook."""

from __future__ import annotations

import dataclasses
import gc
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from deploykit import measure as measuring
from deploykit.measure import (
    Comparison,
    Conditions,
    Measurement,
    Ratio,
    compare,
    decimals_allowed,
    machine,
    macs,
    measure,
    paired_difference,
    parameters,
    peak_memory_mib,
    size_mib,
    tensor_size_mib,
    trimmed_mean_interval,
    wilson_interval,
)
from deploykit.models import resnet

IMAGES = torch.zeros(4, 3, 8, 8)
LOGITS = torch.zeros(4, 10)
NOISE = np.random.default_rng(0).random(1_000_000)


class FakeClock:
    """Seconds that pass only when a predictor says so; ``turns`` lists who was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def predictor(self, *, warm_ms, cold_ms=(), after_switch_ms=(), name="x"):
        """Return a predictor that takes ``cold_ms`` first, ``after_switch_ms`` after each switch, else ``warm_ms``.

        ``warm_ms`` is a number, or a list that is repeated.
        """
        cold, cycle, calls = list(cold_ms), list(np.atleast_1d(warm_ms)), 0

        def predict(images: Tensor) -> Tensor:
            nonlocal calls
            in_turn = 0
            while in_turn < len(self.turns) and self.turns[-1 - in_turn] == name:
                in_turn += 1
            duration = cold.pop(0) if cold else cycle[calls % len(cycle)]
            if not cold and in_turn < len(after_switch_ms):
                duration = after_switch_ms[in_turn]
            self.turns.append(name)
            calls += 1
            self.now += duration / 1000
            return torch.zeros(len(images), 10)

        return predict


@pytest.fixture
def clock() -> FakeClock:
    """A clock at 0."""
    return FakeClock()


def taken(samples_ms, batch=4) -> Measurement:
    """A measurement with these samples."""
    return Measurement("it", tuple(samples_ms), Conditions(batch, 2, "cpu", 10, {}, {}, "2026-01-01"))


class TestMeasure:
    """One predictor against a scripted clock."""

    def test_a_constant_predictor_measures_its_duration(self, clock):
        """5 ms a call is a median of 5 ms and 800 images/s at batch 4."""
        found = measure(clock.predictor(warm_ms=5), IMAGES, budget_s=1, clock=clock)

        assert found.median_ms == pytest.approx(5)
        assert found.throughput_per_s == pytest.approx(800)
        assert found.iqr_ms == pytest.approx(0, abs=1e-9)

    def test_warm_up_is_not_in_the_samples(self, clock):
        """Calls that get faster for a while are all left out."""
        falling = [900.0, *np.linspace(60, 6, 20)]
        found = measure(clock.predictor(warm_ms=5, cold_ms=falling), IMAGES, budget_s=10, clock=clock)

        assert max(found.samples_ms) == pytest.approx(5)
        assert found.conditions.warmup_calls >= 20

    def test_a_stable_predictor_is_warm_after_two_windows(self, clock):
        """Two windows of five calls are compared; equal medians end the warm-up."""
        found = measure(clock.predictor(warm_ms=5), IMAGES, budget_s=1, clock=clock)

        assert found.conditions.warmup_calls == 10

    def test_warm_up_never_takes_more_than_its_share(self, clock):
        """A predictor that speeds up for ever is timed all the same, with most of the budget left."""
        endless = list(np.geomspace(100, 1, 1000))
        found = measure(clock.predictor(warm_ms=1, cold_ms=endless), IMAGES, budget_s=8, clock=clock)

        assert sum(found.samples_ms) > 0.7 * 8000

    def test_the_budget_is_kept(self, clock):
        """Warm-up and timed calls together end within one call of the budget."""
        measure(clock.predictor(warm_ms=5, cold_ms=[2000.0]), IMAGES, budget_s=1, clock=clock)

        assert clock.now - 2 == pytest.approx(1, abs=0.006)

    def test_a_budget_for_too_few_calls_says_how_many_there_were(self, clock):
        """The error has the number of calls, their duration, and a budget that is enough."""
        with pytest.raises(ValueError, match=r"of 2 s was enough for 1 timed calls of about 1 s,") as error:
            measure(clock.predictor(warm_ms=1000), IMAGES, budget_s=2, clock=clock)

        enough = float(str(error.value).split("budget_s=")[1].split()[0])
        assert len(measure(clock.predictor(warm_ms=1000), IMAGES, budget_s=enough, clock=clock).samples_ms) >= 10

    def test_settings_of_the_process_are_put_back(self, clock):
        """Threads, garbage collector and gradient mode are changed inside only, also when the predictor raises."""
        seen, threads = [], torch.get_num_threads()

        def predict(_: Tensor) -> Tensor:
            seen.append((torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()))
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            measure(predict, IMAGES, threads=1, clock=clock)

        assert seen == [(1, False, True)]
        assert (torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()) == (threads, True, False)

    def test_threads_stay_within_the_quota(self, clock, monkeypatch):
        """Without a number, no more threads are used than affinity and quota allow."""
        monkeypatch.setattr("joblib.cpu_count", lambda **_: 1)

        assert measure(clock.predictor(warm_ms=5), IMAGES, clock=clock).conditions.threads == 1

    def test_cuda_is_waited_for(self, clock, monkeypatch):
        """On a CUDA device the call is over when the device is, not when the launch returns."""

        def synchronize(_: torch.device) -> None:
            clock.now += pending.pop() if pending else 0

        def launch(images: Tensor) -> Tensor:
            pending.append(0.020)
            return LOGITS

        pending: list[float] = []
        monkeypatch.setattr("torch.cuda.synchronize", synchronize)
        found = measure(launch, IMAGES, device="cuda", budget_s=1, clock=clock)

        assert found.median_ms == pytest.approx(20)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (IMAGES[:0], r"images are empty \(torch.float32 \[0, 3, 8, 8\]\)"),
            (IMAGES[0], r"images are torch.float32 \[3, 8, 8\]; a float32 tensor \[N, 3, H, W\]"),
            (IMAGES.double(), r"images are torch.float64 \[4, 3, 8, 8\]"),
            ("cat.png", "images are str"),
        ],
    )
    def test_images_must_be_a_float32_batch(self, images, message):
        """The error says what was given and what is needed."""
        with pytest.raises(ValueError, match=message):
            measure(lambda _: LOGITS, images)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (LOGITS[:3], r"int8 returned a tensor \[3, 10\] for 4 images; \[4, classes\] is needed"),
            (LOGITS[0], r"int8 returned a tensor \[10\] for 4 images"),
            (None, "int8 returned NoneType; logits"),
            (LOGITS.index_fill(0, torch.tensor([1, 2]), math.nan), "int8 returned NaN or infinity for 2 of 4 images"),
        ],
    )
    def test_a_broken_predictor_is_not_timed(self, output, message):
        """Wrong shapes and NaN are found in the first call."""
        with pytest.raises(ValueError, match=message):
            measure(lambda _: output, IMAGES, label="int8")


class TestMeasurement:
    """What samples are worth."""

    def test_median_and_quartiles_by_hand(self):
        """1 to 9: median 5, quartiles 3 and 7."""
        found = taken(range(1, 10))

        assert (found.median_ms, found.iqr_ms) == (5, 4)

    @pytest.mark.parametrize(("name", "needed"), [("p90_ms", 64), ("p95_ms", 130), ("p99_ms", 662)])
    def test_percentiles_need_their_samples(self, name, needed):
        """MLPerf's 64 and 662, and 130 between: one sample less gives no number."""
        assert getattr(taken([1.0] * (needed - 1)), name) is None
        assert getattr(taken([1.0] * needed), name) == 1

    @pytest.mark.parametrize(("percent", "needed"), measuring.SAMPLES_FOR_PERCENTILE.items())
    def test_the_samples_needed_follow_from_the_binomial(self, percent, needed):
        """At the number, one slow call in n is compatible with the percentile in 1 % at most; one below, in more."""
        slow = 1 - percent / 100
        chance = [sum(math.comb(n, k) * slow**k * (1 - slow) ** (n - k) for k in (0, 1)) for n in (needed - 1, needed)]

        assert chance[0] > 0.01 >= chance[1]

    @pytest.mark.parametrize(("spread", "word"), [(0.08, None), (0.2, "unstable: "), (0.4, "very unstable: ")])
    def test_a_wide_spread_warns_and_says_what_to_do(self, spread, word):
        """Above 10 % and 25 % of the median the measurement doubts itself, in text and when printed."""
        found = taken(np.linspace(10 - 10 * spread, 10 + 10 * spread, 101))

        assert found.iqr_ms / found.median_ms == pytest.approx(spread)
        assert (found.unstable or "None").startswith(word or "None")
        assert ("top other programs" in str(found)) == (word is not None)

    @pytest.mark.parametrize(
        ("value", "spread", "decimals"),
        [(3.274, 0.41, 1), (3.274, 0.02, 2), (812.4, 30, 0), (3.274, 0, 3), (0.0123, 0, 5)],
    )
    def test_digits_end_where_the_spread_begins(self, value, spread, decimals):
        """The last decimal shown is the first of the spread; without spread, four figures."""
        assert decimals_allowed(value, spread) == decimals

    def test_it_prints_no_more_than_it_knows(self):
        """3.3 ms with a spread of 0.4 ms is 1,200 images/s at batch 4, not 1,222."""
        assert str(taken(np.linspace(2.874, 3.674, 101))).splitlines()[0] == (
            "it: 3.3 ms (IQR 0.4 ms, 101 calls), 1,200 images/s at batch 4, 2 threads, cpu"
        )

    def test_it_cannot_be_changed(self):
        """A measurement is a record."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            taken([1.0]).label = "better"  # type: ignore[misc]


class TestCompare:
    """Contestants in turns against a scripted clock."""

    def test_the_ratio_of_two_constant_predictors(self, clock):
        """4 ms against 6 ms is 1.5 times as fast, and the winner."""
        contestants = {"slow": clock.predictor(warm_ms=6, name="slow"), "fast": clock.predictor(warm_ms=4, name="fast")}
        found = compare(contestants, IMAGES, clock=clock)

        assert found.ratio("fast") == pytest.approx((1.5, 1.5, 1.5))
        assert found.ratio("slow", over="fast").value == pytest.approx(2 / 3)
        assert found.winner() == "fast"

    def test_the_calls_after_a_switch_are_not_timed(self, clock):
        """Three slow calls after each switch, as spinning threads cause them, leave no trace."""
        robbed = clock.predictor(warm_ms=4, after_switch_ms=(40, 30, 20), name="robbed")
        found = compare({"robbed": robbed, "other": clock.predictor(warm_ms=4, name="other")}, IMAGES, clock=clock)

        assert max(found.measurements["robbed"].samples_ms) == pytest.approx(4)
        assert found.ratio("other").value == pytest.approx(1)

    def test_turns_alternate_in_random_order(self, clock):
        """Each round has each contestant once; who begins varies, and the same seed gives the same order."""
        names = ("a", "b", "c")
        compare({name: clock.predictor(warm_ms=5, name=name) for name in names}, IMAGES, budget_s=20, clock=clock)
        blocks = [name for name, before in zip(clock.turns[1:], clock.turns, strict=False) if name != before]

        assert {name: clock.turns.count(name) > 100 for name in names} == dict.fromkeys(names, True)
        assert len({tuple(blocks[i : i + 3]) for i in range(0, len(blocks), 3)}) > 3

    def test_drift_of_the_machine_cancels(self, clock):
        """While everything gets three times slower, a ratio of 2 stays 2."""

        def drifting(base_ms: float):
            def predict(_: Tensor) -> Tensor:
                clock.now += base_ms / 1000 * (1 + 0.2 * clock.now)
                return LOGITS

            return predict

        found = compare({"a": drifting(8), "b": drifting(4)}, IMAGES, clock=clock)

        assert found.measurements["a"].iqr_ms / found.measurements["a"].median_ms > 0.1
        assert found.ratio("b").value == pytest.approx(2, rel=0.03)
        assert found.ratio("b").low < 2 < found.ratio("b").high

    def test_equal_contestants_have_no_winner(self, clock):
        """The same noise on both leaves 1 within the interval."""
        noise = np.random.default_rng(0).lognormal(sigma=0.1, size=997)
        both = {name: clock.predictor(warm_ms=5 * noise[i:], name=name) for i, name in enumerate("ab")}
        found = compare(both, IMAGES, clock=clock)

        assert found.ratio("b").low < 1 < found.ratio("b").high
        assert found.winner() is None
        assert str(found).endswith("no winner: an interval includes 1")

    @pytest.mark.parametrize("warm_ms", [0.1, 5, 60])
    def test_short_and_long_calls_get_a_good_number_of_rounds(self, clock, warm_ms):
        """Blocks of timed calls shrink and grow so that about 40 rounds or more fit, within the budget."""
        pair = {name: clock.predictor(warm_ms=warm_ms, name=name) for name in "ab"}
        found = compare(pair, IMAGES, budget_s=20, clock=clock)

        assert len(found.rounds_ms["a"]) >= 38
        assert sum(found.measurements["a"].samples_ms) / len(found.rounds_ms["a"]) >= 5 - 1e-6
        assert clock.now <= 20 + 2.1 * warm_ms / 1000

    def test_a_budget_for_too_few_rounds_says_how_many_there_were(self, clock):
        """The error names the rounds, those needed, and a budget that is enough."""
        pair = {name: clock.predictor(warm_ms=500, name=name) for name in "ab"}
        with pytest.raises(ValueError, match=r"10 s was enough for 1 rounds of 2 contestants.* at least 10") as error:
            compare(pair, IMAGES, budget_s=10, clock=clock)

        enough = float(str(error.value).split("budget_s=")[1].split()[0])
        assert len(compare(pair, IMAGES, budget_s=enough, clock=clock).rounds_ms["a"]) >= 10

    def test_a_turn_waits_for_the_threads_of_the_one_before(self, monkeypatch):
        """While another thread runs the wait goes on, a millisecond at a time."""
        naps, running = [], iter([True, True, True, False])
        monkeypatch.setattr(measuring, "_others_running", lambda: next(running))
        monkeypatch.setattr("time.sleep", naps.append)
        measuring._wait_for_spinning_threads()

        assert naps == [0.001] * 3

    @pytest.mark.skipif(sys.platform != "linux", reason="thread states are read from /proc")
    def test_a_busy_thread_is_seen_and_a_sleeping_one_is_not(self):
        """A thread that computes (sorting gives the lock away) counts; one that waits for an event does not."""
        stop = threading.Event()

        def sort() -> None:
            while not stop.is_set():
                np.sort(NOISE)

        waiting, busy = threading.Thread(target=stop.wait), threading.Thread(target=sort)
        waiting.start()
        slept = any(not measuring._others_running() for _ in range(5000))
        busy.start()
        seen = any(measuring._others_running() for _ in range(5000))
        stop.set()
        busy.join()

        assert (slept, seen) == (True, True)

    @pytest.mark.parametrize("names", [(), ("alone",)])
    def test_one_contestant_is_not_a_comparison(self, names):
        """The error names what was given and the function for one predictor."""
        with pytest.raises(ValueError, match=rf"{len(names)} contestant given .* at least two; .* use measure\(\)"):
            compare(dict.fromkeys(names, lambda _: LOGITS), IMAGES)

    def test_an_unknown_baseline_names_the_nearest(self):
        """A typing error is answered with the name that was meant, before anything is called."""
        with pytest.raises(ValueError, match="no contestant 'int9'; did you mean 'int8'\\? there are: fp32, int8"):
            compare({"fp32": print, "int8": print}, IMAGES, baseline="int9")

    def test_the_table_has_units_and_the_interval(self, clock):
        """One row per contestant, the baseline at exactly 1."""
        pair = {"slow": clock.predictor(warm_ms=6, name="slow"), "fast": clock.predictor(warm_ms=4, name="fast")}
        table = compare(pair, IMAGES, baseline="slow", clock=clock).table().set_index("contestant")

        assert table.loc["slow", ["speedup_over_slow", "speedup_low", "speedup_high"]].tolist() == [1, 1, 1]
        assert table.loc["fast", "median_ms"] == pytest.approx(4)
        assert table.loc["fast", "images_per_s"] == pytest.approx(1000)

    def test_a_winner_beats_every_other(self):
        """Being faster than the baseline is not enough: the runner-up must be excluded too."""
        jitter = np.resize([0.9, 1.0, 1.1], 30)
        rounds = {"base": np.full(30, 9.0), "b": 3 * jitter, "c": 3.01 * np.roll(jitter, 1)}
        rounds_ms = {name: tuple(values) for name, values in rounds.items()}
        found = Comparison({name: taken(values) for name, values in rounds_ms.items()}, rounds_ms, "base")

        assert found.ratio("b").low > 2
        assert found.winner() is None

    def test_a_ratio_prints_with_its_interval(self):
        """As many decimals as the interval's width allows."""
        assert str(Ratio(1.5234, 1.48, 1.57)) == "1.52x (1.48 to 1.57)"


class TestInterval:
    """The bootstrap interval of a trimmed mean."""

    def test_the_trimmed_mean_by_hand(self):
        """Of ten values the two lowest and two highest are left out."""
        assert trimmed_mean_interval([-900, 0, 1, 2, 3, 4, 5, 6, 7, 900])[0] == 3.5

    @given(st.lists(st.floats(-1, 1), min_size=10, max_size=40))
    @settings(max_examples=50, deadline=None)
    def test_the_interval_holds_the_estimate(self, values):
        """Low, estimate, high are in order, whatever the values and their order."""
        value, low, high = trimmed_mean_interval(values)

        assert low - 1e-12 <= value <= high + 1e-12
        assert trimmed_mean_interval(values[::-1]) == (value, low, high)

    def test_it_covers_the_truth_in_95_of_100(self):
        """500 samples of 20 values with hiccups: the true centre is inside in 93 to 98 %."""
        rng = np.random.default_rng(0)
        inside = 0
        for seed in range(500):
            values = rng.normal(scale=0.01, size=20) + (rng.random(20) < 0.1) * rng.normal(scale=0.3, size=20)
            _, low, high = trimmed_mean_interval(values, seed=seed)
            inside += low <= 0 <= high

        assert 465 <= inside <= 490


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
        assert found.interval == pytest.approx((-0.216017, -0.030896), abs=1e-6)
        assert found.p_value == pytest.approx(2 * sum(math.comb(60, k) for k in range(21)) / 2**60)

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


class TestCost:
    """Sizes and operations."""

    @pytest.mark.parametrize(("depth", "million", "count"), [(20, 40.8, 272_474), (56, 125.7, 855_770)])
    def test_resnets_have_the_literatures_counts(self, depth, million, count):
        """40.8 M and 125.7 M multiply-accumulates, whatever the batch."""
        model = resnet(depth)

        assert macs(model, torch.zeros(3, 3, 32, 32)) / 1e6 == pytest.approx(million, abs=0.06)
        assert parameters(model) == count
        assert model.training

    def test_a_convolution_by_hand(self):
        """16 x 16 outputs of 4 channels, each 2 x 3 x 3 products; its weights are 4 x 2 x 9 floats."""
        conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)

        assert macs(conv, torch.zeros(1, 2, 16, 16)) == 16 * 16 * 4 * 2 * 9
        assert tensor_size_mib(conv) == 4 * 2 * 9 * 4 / 2**20

    def test_shared_weights_are_stored_once(self):
        """A tied layer costs no memory."""
        tied = nn.Linear(8, 8, bias=False)

        assert tensor_size_mib(nn.Sequential(tied, tied)) == tensor_size_mib(tied)

    def test_nothing_counted_is_an_error(self):
        """0 MACs would be a lie about a model whose operations the counter does not know."""
        with pytest.raises(ValueError, match="no operation of ReLU is one that"):
            macs(nn.ReLU(), IMAGES)

    def test_a_folder_is_the_sum_of_its_files(self, tmp_path):
        """Files in subfolders count too."""
        (tmp_path / "deep").mkdir()
        for path in (tmp_path / "a", tmp_path / "deep" / "b"):
            path.write_bytes(bytes(2**19))

        assert (size_mib(tmp_path / "a"), size_mib(tmp_path)) == (0.5, 1)

    def test_a_missing_artifact_is_an_error(self, tmp_path):
        """A file that was never written has no size."""
        with pytest.raises(FileNotFoundError, match=r"model.onnx does not exist; give the file or folder"):
            size_mib(tmp_path / "model.onnx")


class TestPeakMemory:
    """Memory while a call runs."""

    @pytest.mark.parametrize("kernel", [True, False])
    def test_an_array_that_is_gone_afterwards_is_seen(self, kernel, monkeypatch):
        """200 MiB, freed before the call returns, are in the peak, by the kernel's mark and by sampling."""

        def use() -> float:
            return float(sum(np.ones(200 * 2**17).sum() for _ in range(2)))

        if not kernel:
            monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
        found = peak_memory_mib(use)

        assert 190 < found.growth < 300
        assert found.process > found.growth
        assert found.device is None

    def test_a_call_that_needs_nothing_grows_nothing(self):
        """The peak of an earlier call is not this one's."""
        np.ones(200 * 2**17).sum()

        assert peak_memory_mib(lambda: None).growth < 20


class TestMachine:
    """The description of the machine."""

    def test_it_names_no_user_host_or_path(self):
        """It goes into committed files."""
        import getpass
        import platform

        words = {word for value in machine().values() for word in str(value).replace(",", " ").split()}

        assert platform.node() not in words
        assert getpass.getuser() not in words
        assert not [word for word in words if word.startswith(("/", "C:"))]

    def test_it_says_what_decides_about_speed(self):
        """CPU, cores, threads, instruction sets and versions are there."""
        found = machine()

        assert found["threads"] >= found["cores"] >= 1
        assert found["torch"] == torch.__version__
        assert {"cpu", "features", "gpu", "os", "python"} <= found.keys()


def test_the_file_works_alone(tmp_path):
    """Copied elsewhere, with deploykit out of reach, it imports and measures."""
    (tmp_path / "copied.py").write_bytes(Path(measuring.__file__).read_bytes())
    program = (
        "import sys; sys.modules['deploykit'] = None; sys.path.insert(0, '.'); import copied, torch; "
        "print(copied.measure(torch.nn.Flatten(), torch.ones(2, 1, 2, 2), budget_s=0.1).conditions.batch)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("2", "")


def test_importing_it_loads_nothing_heavy():
    """pandas, scipy and psutil wait until a function needs them."""
    program = "import sys, deploykit.measure; print({'pandas', 'scipy', 'psutil', 'joblib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
