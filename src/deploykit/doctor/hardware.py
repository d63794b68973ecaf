"""The CPU, how much of it and of the memory this process may use, and how steadily it runs."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from deploykit.doctor.finding import MISSING, OK, Doubt, Finding, judged
from deploykit.machine import allowed_threads, cpu, cpu_quota, memory_limit_bytes, usable_threads

CPU_SETTINGS = Path("/sys/devices/system/cpu/cpu0/cpufreq")
GIB = 2**30
READER_GIB = 1.5  # what a notebook takes at most with its data and its caches in memory

INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
X86 = {"x86_64", "AMD64"}

BUSY_SHARE = 0.5  # of the CPUs, taken by others
FOLLOWING_DRIVERS = ("intel_pstate", "amd-pstate-epp")  # their "powersave" follows the load


def cpu_features() -> Finding:
    """Tell which instructions for low precision the CPU has, and what the others would have brought."""
    name, features = cpu()
    has = set(features)
    found = f"{name}: {' '.join(features) or 'none of the instructions that matter here'}"
    if sys.platform not in {"linux", "darwin"}:
        cost = "whether int8 and bf16 have instructions of their own is not known here; the notebooks measure it"
        return judged("CPU", found, [Doubt(cost, "look the model up at its maker's")])
    hardware = "another machine is the only remedy; the notebooks measure what this one gives"
    doubts = []
    if platform.machine() in X86 and "avx2" not in has:
        doubts.append(Doubt("without AVX2 kernels fall back to slow ones, and ratios say little", hardware))
    if not has & INT8:
        cost = (
            "without VNNI or its like int8 takes about as long as fp32 and 8-bit weights may overflow "
            "(reduce_range): claims that int8 is faster will likely end 'refuted here'"
        )
        doubts.append(Doubt(cost, hardware))
    if not has & BF16:
        doubts.append(Doubt("bf16 is emulated and slower than fp32", "train and run with precision='fp32'"))
    return judged("CPU", found, doubts)


def threads() -> Finding:
    """Count the threads that may be used, and say what takes the others away."""
    import psutil

    logical, cores = os.cpu_count() or 1, psutil.cpu_count(logical=False)
    quota, allowed, used = cpu_quota(), allowed_threads(), usable_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{used} in use, {allowed} allowed, of {logical} ({cores or 'unknown'} physical cores)"
    if quota is not None and quota < logical:
        found += f", quota {quota:g}"
    doubts = []
    steady = allowed if quota is None else min(allowed, max(1, int(quota)))  # so many are never stopped by the quota
    if used < steady:
        cost = f"OMP_NUM_THREADS={asked} leaves {steady - used} of {steady} threads idle: everything takes longer"
        doubts.append(Doubt(cost, "unset OMP_NUM_THREADS, if nobody set it for a reason"))
    elif asked and asked.partition(",")[0].strip() != str(used):
        cost = (
            f"OMP_NUM_THREADS={asked} is more than the {allowed} allowed, or no number: the notebooks use {used}, but "
            "programs of yours would have threads take turns and run several times slower"
        )
        doubts.append(Doubt(cost, f"export OMP_NUM_THREADS={used}"))
    if allowed == 1:
        cost = "with one thread everything takes longer, and steps on the number of threads have nothing to show"
        mend = "ask whoever runs the server for two CPUs (docker run --cpus 2)" if logical > 1 else "two CPUs or more"
        doubts.append(Doubt(cost, mend))
    if quota is not None and used > quota:
        cost = f"a quota of {quota:g} CPUs pauses the {used} in use now and then: times come in bursts and spread"
        mend = f"export OMP_NUM_THREADS={steady}, or " if steady < used else ""
        doubts.append(Doubt(cost, f"{mend}ask for a quota of whole CPUs"))
    return judged("threads", found, doubts)


def memory() -> Finding:
    """Compare the memory that a notebook may take with what it needs."""
    import psutil

    state, limit = psutil.virtual_memory(), memory_limit_bytes()
    total = min(state.total, limit or state.total) / GIB
    free = min(state.available / GIB, total)
    found = f"{free:.1f} of {total:.1f} GiB free"
    if limit is not None and limit < state.total:
        found += f" (a limit; the machine has {state.total / GIB:.1f} GiB)"
    if total < READER_GIB:
        cost = f"a notebook takes up to {READER_GIB} GiB: its kernel will be killed"
        mend = "use a machine with more" if limit is None else "ask for a higher limit (docker run --memory 4g)"
        return Finding("memory", MISSING, found, cost, mend)
    if free < READER_GIB:
        cost = f"a notebook takes up to {READER_GIB} GiB: it may swap, which spoils every time, or be killed"
        return judged("memory", found, [Doubt(cost, "close other programs and the kernels of other notebooks")])
    return Finding("memory", OK, found)


def steadiness() -> Finding:
    """Look for what makes times spread: others at work, a clock that changes, a battery."""
    import psutil

    cpus, load = os.cpu_count() or 1, psutil.getloadavg()[0]
    found, doubts = [f"load {load:.1f} on {cpus} CPUs"], []
    if load > BUSY_SHARE * cpus:
        cost = "other programs compute: times come out longer and spread, and notebooks warn of it"
        doubts.append(Doubt(cost, "wait for them or end them; top shows which they are"))
    if governor := _read(CPU_SETTINGS / "scaling_governor"):
        found.append(f"clock governor {governor}")
        held_low = governor == "powersave" and _read(CPU_SETTINGS / "scaling_driver") not in FOLLOWING_DRIVERS
        if held_low:
            cost = "the CPU stays at its lowest clock: every time is longer than it need be, ratios hold"
            doubts.append(Doubt(cost, "sudo cpupower frequency-set -g performance"))
        elif governor != "performance":
            found[-1] += " (follows the load: milliseconds vary, ratios taken in turns hold)"
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        found.append("on battery")
        doubts.append(Doubt("on battery the clock is lowered now and then: times spread", "plug the power supply in"))
    return judged("steadiness", ", ".join(found), doubts)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
