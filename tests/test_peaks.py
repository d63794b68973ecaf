"""Peaks are the best of what was timed, of the types that the CPU has instructions for, and say their units."""

from __future__ import annotations

import math

import pytest

from deploykit import peaks
from deploykit.peaks import MIB, MemoryLevel, Peaks, cache_levels, measure_peaks


@pytest.fixture
def made_up() -> Peaks:
    """A machine of round numbers: 100 GFLOP/s, a cache of 1 MiB at 50 GB/s, memory at 10 GB/s, 5 µs for a call."""
    levels = (MemoryLevel("L2", 1, 50), MemoryLevel("DRAM", math.inf, 10))
    return Peaks({"fp32": 100, "int8": 400}, levels, 5.0, {"Conv2d": 20.0}, 2, 128)


class TestPeaks:
    def test_the_smallest_level_that_holds_it(self, made_up):
        """What just fits is in the cache, one byte more is in memory."""
        assert made_up.level(MIB).name == "L2"
        assert made_up.level(MIB + 1).name == "DRAM"
        assert made_up.bandwidth_gb_s == 10

    def test_what_was_not_measured_is_said(self, made_up):
        """The printed line has units and names the type that is missing, and why."""
        assert str(made_up) == (
            "peak fp32 100, int8 400 GFLOP/s; bf16 not measured, this CPU has no instructions for it; "
            "bandwidth L2 50, DRAM 10 GB/s; a call takes 5.0 µs or more; 2 threads"
        )


class TestMeasurePeaks:
    def test_a_short_run_finds_everything(self, monkeypatch):
        """Every figure is there and above 0; memory is listed last; threads are those asked for."""
        monkeypatch.setattr(peaks, "MATRIX_SIZES", (64,))
        monkeypatch.setattr(peaks, "MEMORY_SHARE", 1e-4)

        found = measure_peaks(threads=1, budget_s=0.05)

        assert "fp32" in found.gflops
        assert min(*found.gflops.values(), *(level.gb_s for level in found.memory), found.overhead_us) > 0
        assert (found.memory[-1].name, found.memory[-1].holds_mib, found.threads) == ("DRAM", math.inf, 1)
        assert set(found.layer_overhead_us) == {"Conv2d", "BatchNorm2d", "Linear"}

    def test_a_type_without_instructions_is_left_out(self, monkeypatch):
        """On a CPU with AVX2 only, neither bf16 nor int8 is timed: emulation is no peak."""
        monkeypatch.setattr(peaks, "MATRIX_SIZES", (64,))
        monkeypatch.setattr(peaks, "MEMORY_SHARE", 1e-4)
        monkeypatch.setattr(peaks, "machine", lambda: {"features": ["avx2"]})

        assert list(measure_peaks(budget_s=0.02).gflops) == ["fp32"]

    def test_rates_are_operations_over_the_fastest_time(self, monkeypatch):
        """Were each call to take a millisecond: 2x64³ operations are 0.524 GFLOP/s, the convolution's are 1208."""
        monkeypatch.setattr(peaks, "MATRIX_SIZES", (64,))
        monkeypatch.setattr(peaks, "MEMORY_SHARE", 1e-4)
        monkeypatch.setattr(peaks, "_fastest_s", lambda *_: 0.001)

        found = measure_peaks(dtypes=["fp32"])

        assert found.gflops["fp32"] == pytest.approx(2 * 16 * 128 * 16 * 16 * 128 * 9 / 0.001 / 1e9)
        assert found.memory[-1].gb_s == pytest.approx(3 * found.array_mib * MIB / 0.001 / 1e9, rel=1e-3)

    @pytest.mark.parametrize("dtypes", [[], ["fp32", "fp8"]])
    def test_an_unknown_type_is_refused(self, dtypes):
        """The message says what was given and what there is."""
        with pytest.raises(ValueError, match=r"dtypes are \[.*\]; give one or more of fp32, bf16, int8"):
            measure_peaks(dtypes=dtypes)

    def test_no_time_is_no_measurement(self):
        """A budget of nothing is refused before anything runs."""
        with pytest.raises(ValueError, match="budget_s is 0; it must be above 0"):
            measure_peaks(budget_s=0)


class TestCacheBandwidth:
    @pytest.mark.parametrize(
        ("half_s", "full_s", "gb_s"),
        [(1e-6, 2e-6, 50), (9e-6, 10e-6, 10), (2e-6, 3e-6, 50)],
        ids=["no start-up", "too little of it is moving", "start-up of 1 µs"],
    )
    def test_starting_threads_is_not_moving_bytes(self, monkeypatch, half_s, full_s, gb_s):
        """100 KB in 2 µs are 50 GB/s, also after 1 µs of start-up; where that is nearly all, the plain rate."""
        times = iter((half_s, full_s))
        monkeypatch.setattr(peaks, "_triad_s", lambda *_: next(times))

        assert peaks._cache_gb_s(200_000, 1.0) == pytest.approx(gb_s, rel=1e-3)


class TestCacheLevels:
    def test_levels_grow_and_more_threads_have_no_less(self):
        """L2 comes before L3, and two threads have at least the caches of one."""
        one, two = cache_levels(1), cache_levels(2)

        assert [name for name, _ in one] == sorted(name for name, _ in one)
        assert all(more >= few > 0 for (_, few), (_, more) in zip(one, two, strict=True))

    def test_where_the_kernel_does_not_say(self, monkeypatch, tmp_path):
        """Without Linux's listing one L3 of 32 MiB is assumed."""
        monkeypatch.setattr(peaks, "Path", lambda _: tmp_path)

        assert cache_levels(4) == [("L3", 32 * MIB)]

    def test_caches_that_cpus_share_count_once(self, monkeypatch, tmp_path):
        """Four CPUs with 1 MiB of L2 each and one L3: four threads have 4 MiB of L2; L1 does not count."""
        for cpu in range(4):
            for index, (level, kind, size, shared) in enumerate(
                [(1, "Data", "32K", cpu), (2, "Instruction", "64K", cpu), (2, "Unified", "1024K", cpu),
                 (3, "Unified", "8192K", "0-3")]
            ):  # fmt: skip
                folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
                folder.mkdir(parents=True)
                for name, text in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}.items():
                    (folder / name).write_text(f"{text}\n")
        monkeypatch.setattr(peaks, "Path", lambda _: tmp_path)

        assert cache_levels(4) == [("L2", 4 * MIB), ("L3", 8 * MIB)]
        assert cache_levels(1) == [("L2", MIB), ("L3", 8 * MIB)]
