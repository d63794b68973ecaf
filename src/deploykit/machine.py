"""Say on which machine a figure was taken.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Describe this machine for banners and records; nothing in it names a user, a host or a path.

    Returns:
        ``cpu`` (model name), ``cores`` (physical) and ``threads`` (logical), both within affinity and quota;
        ``features`` (instruction sets that decide about low precision), ``memory_gib``, ``gpu`` (name or None),
        ``os``, ``python``, ``torch``.
    """
    import joblib
    import psutil

    name, flags = _cpu()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "bf16")
    return {
        "cpu": name,
        "cores": joblib.cpu_count(only_physical_cores=True),
        "threads": joblib.cpu_count(),
        "features": [feature for feature in wanted if feature in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": _system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> tuple[str, set[str]]:
    """Return the CPU's model name and its feature flags (Linux; elsewhere the one level that torch detects)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), {torch.backends.cpu.get_cpu_capability().lower()}
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return info.get("model name", platform.machine()), set(info.get("flags", info.get("Features", "")).split())


def _system() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"
