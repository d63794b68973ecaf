"""Sampling a process: figures are those of the counters that were read, and what is not there has no figure."""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import sys
import types

import pytest

from deploykit.monitoring import gpu_gauges, power_gauges, process_gauges, rate, watch

WAITS = "import sys; sys.stdin.read(1)"


def nvml(*, gpus: int = 1, power: bool = True, driver: bool = True) -> types.ModuleType:
    """Return a stand-in for pynvml: GPU i is busy 40 + i % of the time, holds 2 GiB and takes 250 W."""
    module = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def start() -> None:
        if not driver:
            raise NVMLError("Driver Not Loaded")

    def milliwatts(_: int) -> int:
        if not power:
            raise NVMLError("Not Supported")
        return 250_000

    module.NVMLError, module.closed = NVMLError, 0

    def stop() -> None:
        module.closed += 1

    module.nvmlInit, module.nvmlShutdown = start, stop
    module.nvmlDeviceGetCount, module.nvmlDeviceGetHandleByIndex = lambda: gpus, lambda index: index
    module.nvmlDeviceGetUtilizationRates = lambda handle: types.SimpleNamespace(gpu=40 + handle, memory=99)
    module.nvmlDeviceGetMemoryInfo = lambda _: types.SimpleNamespace(used=2 * 2**30, total=8 * 2**30)
    module.nvmlDeviceGetPowerUsage = milliwatts
    return module


def zone(folder, name: str, microjoules: int, full: int = 999) -> None:
    """Write a powercap zone as the kernel shows it."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{full}\n")


class TestRate:
    def test_a_rate_is_the_increase_since_the_last_reading(self):
        """Not the mean since the start: 2 in 4 s, then 6 in 2 s."""
        times, totals = iter([0.0, 4.0, 6.0]), iter([10.0, 12.0, 18.0])
        gauge = rate(lambda: next(totals), clock=lambda: next(times))

        assert [gauge(), gauge()] == [0.5, 3.0]


class TestProcess:
    def test_memory_is_resident_mebibytes(self):
        """A process that holds 64 MiB more takes about 64 MiB more."""
        memory = process_gauges()["memory_mib"]
        before = memory()
        with mmap.mmap(-1, 64 * 2**20) as held:  # not from the heap, where earlier tests may have left as much free
            held[:: mmap.PAGESIZE] = bytes(len(held) // mmap.PAGESIZE)

            assert memory() - before == pytest.approx(64, abs=8)

    def test_a_process_that_waits_uses_no_core_and_is_sampled_until_the_block_ends(self):
        """Another process's figures, a row for each sample and at least one."""
        with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
            with watch(other.pid, every_s=0.02) as samples:
                pass
            table = samples.table()
            other.communicate(b"x")

        assert list(table)[:3] == ["time_s", "cpu_cores", "memory_mib"]
        assert len(table) >= 1
        assert (table["memory_mib"] > 0).all()

    def test_the_end_of_the_process_ends_the_sampling_and_nothing_else(self):
        """What was sampled before stays, and why there is no more is said."""
        with (
            subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other,
            watch(other.pid, every_s=0.01) as samples,
        ):
            other.communicate(b"x")

        assert any(why.startswith("sampling ended early: ") for why in samples.missing)

    def test_an_error_in_the_block_is_the_blocks(self):
        """It passes through, and the sampler has ended."""
        with pytest.raises(ZeroDivisionError), watch(every_s=10):
            1 / 0  # noqa: B018

    def test_no_such_process_is_refused(self):
        """Before anything is sampled."""
        with pytest.raises(ValueError, match="there is no process 999999999; give the id of one that runs"):
            process_gauges(999_999_999)

    def test_a_senseless_interval_is_refused(self):
        """Zero would sample without end."""
        with pytest.raises(ValueError, match="every_s is 0; give more than 0 seconds"), watch(every_s=0):
            pass


class TestPower:
    def test_power_is_the_energy_of_all_processors_over_time(self, tmp_path, monkeypatch):
        """Two packages, 300 and 200 uJ in 0.5 s; a part of a package is not counted twice."""
        times = iter([0.0, 0.5])
        monkeypatch.setattr("deploykit.monitoring.rate.__defaults__", (lambda: next(times),))
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
            zone(tmp_path, name, 100)
        gauges, why = power_gauges(tmp_path)
        for name, energy in (("intel-rapl:0", 400), ("intel-rapl:1", 300), ("intel-rapl:0:0", 900)):
            zone(tmp_path, name, energy)

        assert why is None
        assert gauges["cpu_power_w"]() == pytest.approx(500e-6 / 0.5)

    def test_a_counter_that_starts_again_at_zero_has_not_gone_back(self, tmp_path, monkeypatch):
        """From 990 of 999 to 10 it has counted 20."""
        times = iter([0.0, 1.0])
        monkeypatch.setattr("deploykit.monitoring.rate.__defaults__", (lambda: next(times),))
        zone(tmp_path, "intel-rapl:0", 990)
        gauges, _ = power_gauges(tmp_path)
        zone(tmp_path, "intel-rapl:0", 10)

        assert gauges["cpu_power_w"]() == pytest.approx(20e-6)

    def test_no_counter_is_said(self, tmp_path):
        """Virtual machines have none."""
        assert power_gauges(tmp_path) == (
            {}, "power of the CPU: the kernel shows no counter of energy (powercap) here",
        )  # fmt: skip

    def test_a_counter_for_root_only_is_said(self, tmp_path, monkeypatch):
        """As Linux has it since 2020."""

        def refused(_) -> None:
            raise PermissionError(13, "Permission denied")

        zone(tmp_path, "intel-rapl:0", 1)
        monkeypatch.setattr("deploykit.monitoring._joules", refused)

        assert power_gauges(tmp_path) == (
            {}, "power of the CPU: only root may read the kernel's counters of energy",
        )  # fmt: skip


class TestGpu:
    def test_each_gpu_has_its_use_memory_and_power(self, monkeypatch):
        """In percent, mebibytes and watts."""
        monkeypatch.setitem(sys.modules, "pynvml", nvml(gpus=2))
        with contextlib.ExitStack() as stack:
            gauges, why = gpu_gauges(stack)
            found = {name: gauge() for name, gauge in gauges.items()}

        assert why is None
        assert found == {
            "gpu0_percent": 40.0, "gpu0_memory_mib": 2048.0, "gpu0_power_w": 250.0,
            "gpu1_percent": 41.0, "gpu1_memory_mib": 2048.0, "gpu1_power_w": 250.0,
        }  # fmt: skip

    def test_nvml_is_closed_when_the_block_ends(self, monkeypatch):
        """Once, and not before."""
        module = nvml()
        monkeypatch.setitem(sys.modules, "pynvml", module)
        with watch(every_s=10) as samples:
            assert module.closed == 0

        assert module.closed == 1
        assert samples.table()["gpu0_power_w"].tolist() == [250.0]

    def test_what_a_driver_does_not_tell_has_no_column(self, monkeypatch):
        """No power is said and not zero watts."""
        monkeypatch.setitem(sys.modules, "pynvml", nvml(power=False))
        with contextlib.ExitStack() as stack:
            gauges, why = gpu_gauges(stack)

        assert "gpu0_power_w" not in gauges
        assert why == "GPU: not told by the driver: gpu0_power_w"

    def test_no_driver_and_no_package_are_said(self, monkeypatch):
        """Each in its words; there is no figure."""
        monkeypatch.setitem(sys.modules, "pynvml", nvml(driver=False))
        without_driver = gpu_gauges(contextlib.ExitStack())
        monkeypatch.setitem(sys.modules, "pynvml", None)
        without_package = gpu_gauges(contextlib.ExitStack())

        assert without_driver == ({}, "GPU: none that NVML knows (Driver Not Loaded)")
        assert without_package == ({}, "GPU: nvidia-ml-py is missing (pip install 'deploykit[gpu]')")
