"""Say on which machine a figure was taken, and how much of that machine this process may use.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

# What decides about low precision, as Linux names it: x86 first, then Arm (asimddp: int8 dot products).
FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16",
)  # fmt: skip
# The same in the words of macOS (`sysctl hw.optional`).
MACOS_FEATURES = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
NO_LIMIT = 2**60  # control groups of version 1 write "unlimited" as the largest number of pages


def machine() -> dict[str, Any]:
    """Describe this machine for banners and records; nothing in it names a user, a host or a path.

    Returns:
        ``cpu`` (model name), ``cores`` (physical) and ``threads`` (logical), both within affinity and quota;
        ``features`` (instruction sets that decide about low precision), ``memory_gib``, ``gpu`` (name or None),
        ``os``, ``python``, ``torch``.
    """
    import joblib
    import psutil
    import torch

    name, features = cpu()
    threads = allowed_threads()
    return {
        "cpu": name,
        "cores": min(joblib.cpu_count(only_physical_cores=True), threads),
        "threads": threads,
        "features": features,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": _system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def usable_threads() -> int:
    """Return how many threads this process should compute with: ``allowed_threads``, or ``OMP_NUM_THREADS`` if fewer.

    More than that only takes turns, and on a shared server it takes them from others.
    """
    # OpenMP reads a list as "so many on each level of nesting"; the first number is the one that counts here.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(allowed_threads(), int(asked)) if asked.isdecimal() and int(asked) else allowed_threads()


def allowed_threads() -> int:
    """Return how many logical CPUs this process may use, at least 1: those of its affinity, within its quota."""
    import joblib

    # joblib knows the affinity and the quota of a container; that of a service or a user on the machine itself, as
    # JupyterHub sets it, stands in the process's own control group, where joblib does not look.
    quota = cpu_quota()
    return joblib.cpu_count() if quota is None else min(joblib.cpu_count(), math.ceil(quota))


def cpu_quota() -> float | None:
    """Return how many CPUs' worth of time the control groups allow (Linux; above 0, e.g. 1.5), or None: no limit."""
    quotas = []
    for group in _control_groups("cpu"):
        # A file that is not there, or says "max", sets no limit.
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            quotas.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
            quotas.append(int(quota) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)  # -1 is version 1's "no limit"


def memory_limit_bytes() -> int | None:
    """Return how much memory the control groups allow (Linux), or None: no limit but the machine's."""
    limits = []
    for group in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((group / name).read_text(encoding="ascii")))
    return min((limit for limit in limits if limit < NO_LIMIT), default=None)


def cpu() -> tuple[str, list[str]]:
    """Return the CPU's model name and those of ``FEATURES`` that it has.

    Linux and macOS list them. Elsewhere torch says one level, which stands in the list in lower case ("avx512"): what
    lies beyond AVX is unknown there.
    """
    if sys.platform == "darwin":
        pairs = (line.split(": ", 1) for line in _sysctl("hw.optional").splitlines() if ": " in line)
        flags = {MACOS_FEATURES.get(key, "") for key, value in pairs if value == "1"}
        return _sysctl("-n", "machdep.cpu.brand_string"), [feature for feature in FEATURES if feature in flags]
    try:
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import torch

        return platform.processor() or platform.machine(), [torch.backends.cpu.get_cpu_capability().lower()]
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(info.get("flags", info.get("Features", "")).split())
    return info.get("model name", platform.machine()), [feature for feature in FEATURES if feature in flags]


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group and of each group around it: every one of them binds."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # cgroups(7): "4:cpu,cpuacct:/user" in version 1, "0::/user" in version 2
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controller if controllers else CONTROL_GROUPS
        group = root / path.lstrip("/")
        yield group
        yield from (outer for outer in group.parents if outer.is_relative_to(root))


def _sysctl(*arguments: str) -> str:
    command = ["sysctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()


def _system() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"
