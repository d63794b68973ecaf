"""What a process takes while it works: cores, memory and power, sampled; what cannot be read is said, not guessed.

Copy this file into a project and it works: psutil, pandas for the table, and nvidia-ml-py where there is a GPU.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

POWERCAP = Path("/sys/class/powercap")
MEBI = 2**20
MICRO, MILLI = 1e-6, 1e-3

Gauge = Callable[[], float]


class Samples:
    """What was read, sample by sample.

    Attributes:
        started: the time of the start, as ``time.time()`` counts.
        missing: what could not be read, each with its reason; it has no column.
    """

    def __init__(self, gauges: Mapping[str, Gauge]) -> None:
        self.started = time.time()
        self.missing: list[str] = []
        self._gauges, self._begun = gauges, time.perf_counter()
        self._rows: list[dict[str, float]] = []

    def take(self) -> None:
        """Read every gauge once."""
        moment = time.perf_counter() - self._begun
        self._rows.append({"time_s": moment} | {name: gauge() for name, gauge in self._gauges.items()})

    def table(self) -> pd.DataFrame:
        """Return a row for each sample: ``time_s`` since the start, and one column for each gauge."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["time_s", *self._gauges])

    def __str__(self) -> str:
        return "\n".join([self.table().describe().to_string(), *self.missing])

    __repr__ = __str__


@contextlib.contextmanager
def watch(pid: int | None = None, *, every_s: float = 0.25) -> Iterator[Samples]:
    """Sample a process, and the machine's power and GPUs where they can be read, for as long as the block runs.

    Columns: ``cpu_cores`` (1.0 is one core busy) and ``memory_mib`` (resident) of this process without its children;
    ``cpu_power_w`` of all processors of the machine, whoever uses them; for each GPU ``gpu0_percent`` (of the time in
    which it was busy), ``gpu0_memory_mib`` and ``gpu0_power_w``, whoever uses it. Rates are means since the sample
    before.

    Args:
        pid: of the process; None means this one.
        every_s: seconds from sample to sample. Linux counts processor time in steps of 0.01 s: with less than 0.1 s
            between samples the steps are all that is seen.

    Raises:
        ValueError: no such process, or ``every_s`` that is not positive.
    """
    gauges = process_gauges(pid)
    missing = []
    with contextlib.ExitStack() as stack:
        for more in (power_gauges, lambda: gpu_gauges(stack)):
            found, why = more()
            gauges |= found
            missing += [why] if why else []
        samples = stack.enter_context(sampling(gauges, every_s=every_s))
        samples.missing += missing
        yield samples


@contextlib.contextmanager
def sampling(gauges: Mapping[str, Gauge], *, every_s: float = 0.25) -> Iterator[Samples]:
    """Read gauges again and again, in a thread, for as long as the block runs; the last time at its end.

    Args:
        gauges: name of a column to a function that returns its figure.
        every_s: seconds from sample to sample.

    Raises:
        ValueError: ``every_s`` that is not positive.
    """
    if not every_s > 0:
        raise ValueError(f"every_s is {every_s}; give more than 0 seconds")
    samples, ended = Samples(gauges), threading.Event()

    def take_all() -> None:
        try:
            while not ended.wait(every_s):
                samples.take()
            samples.take()
        except Exception as error:  # noqa: BLE001 - the process ended, or a driver gave up; the block must go on
            samples.missing.append(f"sampling ended early: {error}")

    sampler = threading.Thread(target=take_all, name="sampling", daemon=True)
    sampler.start()
    try:
        yield samples
    finally:
        ended.set()
        sampler.join()


def process_gauges(pid: int | None = None) -> dict[str, Gauge]:
    """Return gauges of a process's cores in use and of its resident memory.

    Raises:
        ValueError: no such process.
    """
    import psutil

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess as error:
        raise ValueError(f"there is no process {pid}; give the id of one that runs") from error
    return {
        "cpu_cores": rate(lambda: sum(process.cpu_times()[:2])),  # user and system
        "memory_mib": lambda: process.memory_info().rss / MEBI,
    }


def power_gauges(folder: Path = POWERCAP) -> tuple[dict[str, Gauge], str | None]:
    """Return a gauge of the processors' power, from the kernel's counters of energy; or why there is none.

    Source: Linux, Documentation/power/powercap/powercap.rst. A zone such as ``intel-rapl:0`` is a processor (AMD's are
    called so too), ``intel-rapl:0:0`` a part of it. Since 2020 only root may read them (CVE-2020-8694).
    """
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not zones:
        return {}, "power of the CPU: the kernel shows no counter of energy (powercap) here"
    try:
        counters = [_joules(zone) for zone in zones]
    except PermissionError:
        return {}, "power of the CPU: only root may read the kernel's counters of energy"
    except OSError as error:
        return {}, f"power of the CPU: the kernel's counters of energy cannot be read ({error.strerror})"
    return {"cpu_power_w": rate(lambda: sum(counter() for counter in counters))}, None


def _joules(zone: Path) -> Gauge:
    """Return a gauge of a zone's energy since now, in joules; its counter starts again at 0 when it is full."""
    full = int((zone / "max_energy_range_uj").read_text())
    last, total = int((zone / "energy_uj").read_text()), 0

    def read() -> float:
        nonlocal last, total
        now = int((zone / "energy_uj").read_text())
        total += (now - last) % (full + 1)
        last = now
        return total * MICRO

    return read


def gpu_gauges(stack: contextlib.ExitStack) -> tuple[dict[str, Gauge], str | None]:
    """Return gauges of every NVIDIA GPU's use, memory and power; or why there are none.

    Args:
        stack: closes NVML when it ends.
    """
    try:
        import pynvml
    except ImportError:
        return {}, "GPU: nvidia-ml-py is missing (pip install 'deploykit[gpu]')"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {}, f"GPU: none that NVML knows ({error})"
    stack.callback(pynvml.nvmlShutdown)
    gauges: dict[str, Gauge] = {}
    silent = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        for what, gauge in _of_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number)).items():
            name = f"gpu{number}_{what}"
            try:
                gauge()
            except pynvml.NVMLError:  # small GPUs do not tell their power
                silent.append(name)
            else:
                gauges[name] = gauge
    return gauges, f"GPU: not told by the driver: {', '.join(silent)}" if silent else None


def _of_gpu(nvml: Any, handle: Any) -> dict[str, Gauge]:
    return {
        "percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_mib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / MEBI,
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) * MILLI,
    }


def rate(total: Gauge, clock: Callable[[], float] = time.perf_counter) -> Gauge:
    """Return a gauge of how fast a total grows: its increase since the last reading, per second."""
    moment, value = clock(), total()

    def gauge() -> float:
        nonlocal moment, value
        before, last = moment, value
        moment, value = clock(), total()
        return (value - last) / (moment - before)

    return gauge
