"""Measuring: times are those of a scripted clock, statistics those of the textbook."""

from __future__ import annotations

import gc
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deploykit import measure as measuring
from deploykit.measure import compare, measure

IMAGES = torch.zeros(4, 3, 8, 8)
LOGITS = torch.zeros(4, 10)


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


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch set to two threads, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
        with pytest.raises(
            ValueError, match=r"10 times the budget of 0.2 s was enough for 1 timed calls of about 1 s,"
        ) as error:
            measure(clock.predictor(warm_ms=1000), IMAGES, budget_s=0.2, clock=clock)

        enough = float(str(error.value).split("budget_s=")[1].split()[0])
        assert len(measure(clock.predictor(warm_ms=1000), IMAGES, budget_s=enough, clock=clock).samples_ms) >= 10

    @pytest.mark.usefixtures("two_threads")
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

    @pytest.mark.usefixtures("two_threads")
    def test_threads_stay_within_the_quota(self, clock, monkeypatch):
        """Without a number, no more threads are used than affinity and quota allow."""
        monkeypatch.setattr("joblib.cpu_count", lambda **_: 1)

        assert measure(clock.predictor(warm_ms=5), IMAGES, clock=clock).conditions.threads == 1

    @pytest.mark.parametrize("option", ["budget_s", "min_samples", "threads"])
    def test_0_is_refused(self, option):
        """No seconds, no samples and no threads are slips of the pen."""
        with pytest.raises(ValueError, match=f"{option} is 0; it must be above 0"):
            measure(lambda _: LOGITS, IMAGES, **{option: 0})

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
            (LOGITS.index_fill(0, torch.tensor([3]), -math.inf), "int8 returned NaN or infinity for 1 of 4 images"),
            (LOGITS.index_fill(1, torch.tensor([7]), math.nan), "int8 returned NaN or infinity for 4 of 4 images"),
        ],
    )
    def test_a_broken_predictor_is_not_timed(self, output, message):
        """Wrong shapes and NaN are found in the first call."""
        with pytest.raises(ValueError, match=message):
            measure(lambda _: output, IMAGES, label="int8")


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

    def test_who_goes_on_is_not_settled_again(self, clock):
        """Untimed calls follow each switch, as many as there is time for, and none stand between two turns of one."""
        untimed = {8: 3, 12: 2, 50: 1}
        for warm_ms, untimed_calls in untimed.items():
            clock.turns.clear()
            found = compare({name: clock.predictor(warm_ms=warm_ms, name=name) for name in "ab"}, IMAGES, clock=clock)
            timed = len(found.measurements["a"].samples_ms) // len(found.rounds_ms["a"])
            stretches = [len(list(calls)) for _, calls in itertools.groupby(clock.turns)]

            assert set(stretches[5:-1]) == {untimed_calls + timed, untimed_calls + 2 * timed}

    def test_a_hiccup_does_not_count_for_its_round(self, clock):
        """One call of 80 ms among 4 ms is in the samples; a round is its median, and the ratio stays 1."""
        pair = {"calm": [4.0], "hiccups": [4.0] * 9 + [80.0]}
        found = compare(
            {name: clock.predictor(warm_ms=ms, name=name) for name, ms in pair.items()}, IMAGES, clock=clock
        )

        assert max(found.measurements["hiccups"].samples_ms) == pytest.approx(80)
        assert found.rounds_ms["hiccups"] == pytest.approx([4] * len(found.rounds_ms["calm"]))
        assert found.ratio("hiccups") == pytest.approx((1, 1, 1))

    def test_turns_alternate_in_random_order(self, clock):
        """Each round has each contestant once, and who begins varies."""
        names = ("a", "b", "c")
        compare({name: clock.predictor(warm_ms=5, name=name) for name in names}, IMAGES, budget_s=20, clock=clock)
        blocks = [name for name, before in zip(clock.turns[1:], clock.turns, strict=False) if name != before]

        assert {name: clock.turns.count(name) > 100 for name in names} == dict.fromkeys(names, True)
        assert len({tuple(blocks[i : i + 3]) for i in range(0, len(blocks), 3)}) > 3

    def test_the_seed_fixes_the_order(self):
        """One seed gives one order of turns, another seed another."""
        orders = []
        for seed in (1, 1, 2):
            clock = FakeClock()
            pair = {name: clock.predictor(warm_ms=50, name=name) for name in "ab"}
            compare(pair, IMAGES, seed=seed, clock=clock)
            orders.append(clock.turns)

        assert orders[0] == orders[1]
        assert orders[0] != orders[2]

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
        """Blocks of timed calls shrink and grow so that about 40 rounds or more fit, within the budget and a switch."""
        pair = {name: clock.predictor(warm_ms=warm_ms, name=name) for name in "ab"}
        found = compare(pair, IMAGES, budget_s=20, clock=clock)

        assert len(found.rounds_ms["a"]) >= 38
        assert sum(found.measurements["a"].samples_ms) / len(found.rounds_ms["a"]) >= 5 - 1e-6
        assert clock.now <= 20 + 5.1 * warm_ms / 1000

    def test_a_budget_for_too_few_rounds_says_how_many_there_were(self, clock):
        """The error names the rounds, those needed, and a budget that is enough."""
        pair = {name: clock.predictor(warm_ms=500, name=name) for name in "ab"}
        with pytest.raises(
            ValueError, match=r"10 times the budget of 1 s was enough for 5 rounds of 2 contestants.* at least 10"
        ) as error:
            compare(pair, IMAGES, budget_s=1, clock=clock)

        enough = float(str(error.value).split("budget_s=")[1].split()[0])
        assert len(compare(pair, IMAGES, budget_s=enough, clock=clock).rounds_ms["a"]) >= 10

    def test_a_busy_machine_gets_more_time_for_the_fewest_rounds_and_calls(self, clock):
        """A budget that would end before the tenth is overrun, and no further than to the tenth."""
        pair = {name: clock.predictor(warm_ms=50, name=name) for name in "ab"}

        assert len(compare(pair, IMAGES, budget_s=1.5, clock=clock).rounds_ms["a"]) == 10
        assert len(measure(pair["a"], IMAGES, budget_s=0.6, clock=clock).samples_ms) == 10

    def test_turns_become_shorter_when_the_machine_becomes_slower(self, clock):
        """Ten calls of 2 ms a turn are planned; of calls that then take 100 ms one, so that the budget is kept."""
        cold = [2.0] * 30
        pair = {name: clock.predictor(warm_ms=100, cold_ms=cold, name=name) for name in "ab"}
        found = compare(pair, IMAGES, budget_s=8, clock=clock)

        assert len(found.rounds_ms["a"]) > 10
        assert clock.now < 8.1  # who goes on from the round before has an untimed call less in this one

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


def test_the_seven_files_work_alone(tmp_path):
    """Copied into a package elsewhere, with deploykit out of reach, they import and measure."""
    (tmp_path / "copied").mkdir()
    for name in ("measure", "measurement", "comparison", "timing", "significance", "cost", "machine"):
        shutil.copy(Path(measuring.__file__).with_name(f"{name}.py"), tmp_path / "copied")
    program = (
        "import sys; sys.modules['deploykit'] = None; sys.path.insert(0, '.'); import copied.measure, torch; "
        "print(copied.measure.measure(torch.nn.Flatten(), torch.ones(2, 1, 2, 2), budget_s=0.1).conditions.batch)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("2", "")


def test_importing_it_loads_nothing_heavy():
    """pandas, scipy and psutil wait until a function needs them."""
    program = "import sys, deploykit.measure; print({'pandas', 'scipy', 'psutil', 'joblib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
