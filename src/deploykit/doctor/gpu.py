"""torch, the GPU with its driver, and TensorRT: each imported in a process of its own, which may crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import util
from typing import Any

from deploykit.doctor.finding import LIMITED, MISSING, OK, Doubt, Finding, judged, last_words, run_bounded

IMPORT_LIMIT_S = 25.0  # torch from a cold network drive; a warm import takes two
SMI_LIMIT_S = 5.0

TORCH = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu,
    "name": torch.cuda.get_device_name() if gpu else None,
    "capability": torch.cuda.get_device_capability() if gpu else None,
}))
"""
TENSORRT = "import {0}; print({0}.__version__, hasattr({0}, 'Builder'))"
TENSORRT_FLAVOURS = {  # module: what it is called, what installs it, and who can use it
    "tensorrt": ("TensorRT", "pip install -e '.[gpu]'", "with an NVIDIA GPU, in the checkout"),
    "tensorrt_rtx": ("TensorRT-RTX", "pip install tensorrt-rtx-cu13", "to build engines, also without a GPU"),
}
BF16_CAPABILITY = (8, 0)  # Ampere: the first tensor cores that multiply bf16
NEEDED_GIB = 2.0
RECORDED = "GPU steps say what they need and show what the project recorded elsewhere"


@dataclass(frozen=True)
class Card:
    """The first GPU, as its driver describes it."""

    name: str
    driver: str
    memory_gib: float
    free_gib: float


def torch_and_gpu() -> list[Finding]:
    """Import torch, ask the driver for the GPU, and see whether the one can use the other."""
    try:
        done = run_bounded(sys.executable, "-P", "-c", TORCH, limit_s=IMPORT_LIMIT_S)
    except subprocess.TimeoutExpired:
        slow = f"importing it took more than {IMPORT_LIMIT_S:g} s"
        mend = "put .venv on a local disk, and see with nvidia-smi whether the GPU's driver answers"
        return [Finding("torch", LIMITED, slow, "every notebook waits as long for its start", mend), _gpu(None)]
    if done.returncode:
        mend = "pip install --force-reinstall torch torchvision"
        found = f"it cannot be imported ({last_words(done.stderr)})"
        return [Finding("torch", MISSING, found, "nothing of the course runs", mend), _gpu(None)]
    facts = json.loads(done.stdout.splitlines()[-1])
    return [Finding("torch", OK, f"{facts['version']}, {_build(facts)}"), _gpu(facts)]


def tensorrt(module: str) -> Finding:
    """Import a TensorRT and see whether it can build engines; ``module`` is a key of ``TENSORRT_FLAVOURS``."""
    name, install, who = TENSORRT_FLAVOURS[module]
    cost = f"{name} builds no engine here; its notebook checks the ONNX file and shows recorded results"
    if util.find_spec(module) is None:
        return Finding(name, LIMITED, "not installed", cost, f"{who}: {install}")
    done = run_bounded(sys.executable, "-P", "-c", TENSORRT.format(module), limit_s=IMPORT_LIMIT_S)
    if done.returncode:
        found = f"installed, but it cannot be imported ({last_words(done.stderr)})"
        return Finding(name, LIMITED, found, cost, f"{install} --force-reinstall")
    version, builder = done.stdout.split()[-2:]
    if builder != "True":
        return Finding(name, LIMITED, f"{version}, the lean runtime, which has no builder", cost, install)
    return Finding(name, OK, version)


def _gpu(torch_facts: dict[str, Any] | None) -> Finding:
    card, facts = _from_nvml() or _from_nvidia_smi(), torch_facts or {}
    if card is None and facts.get("gpu"):
        return Finding("GPU", OK, f"{facts['name']}, as torch sees it; no NVIDIA driver answers, so no TensorRT")
    if card is None:
        mend = "without an NVIDIA GPU there is nothing to mend; with one, install its driver until nvidia-smi lists it"
        return Finding("GPU", LIMITED, "no NVIDIA GPU with a driver", RECORDED, mend)
    found = f"{card.name}, {card.memory_gib:.0f} GiB ({card.free_gib:.0f} free), driver {card.driver}"
    return judged("GPU", found, _doubts(card, facts))


def _doubts(card: Card, torch_facts: dict[str, Any]) -> list[Doubt]:
    if not torch_facts.get("gpu"):
        unused = f"torch ({_build(torch_facts)}) cannot use it: {RECORDED}"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            return [Doubt(unused, "unset CUDA_VISIBLE_DEVICES, which may hide it")]
        if torch_facts.get("cuda"):
            return [Doubt(unused, f"install a driver for CUDA {torch_facts['cuda']} or newer")]
        return [Doubt(unused, "install a CUDA build of torch: see pytorch.org, Get Started")]
    doubts = []
    if tuple(torch_facts["capability"]) < BF16_CAPABILITY:
        version = ".".join(map(str, torch_facts["capability"]))
        cost = f"compute capability {version} has no bf16 units: bf16 is slow, fp16 is not"
        doubts.append(Doubt(cost, "use precision='fp16'"))
    if card.free_gib < NEEDED_GIB:
        cost = f"less than {NEEDED_GIB:g} GiB are free: steps may run out of memory"
        doubts.append(Doubt(cost, "nvidia-smi shows who holds it"))
    return doubts


def _build(torch_facts: dict[str, Any]) -> str:
    if not torch_facts:
        return "which could not be asked"
    return f"built for CUDA {torch_facts['cuda']}" if torch_facts["cuda"] else "built without CUDA"


def _from_nvml() -> Card | None:
    """Ask NVIDIA's library for the first GPU; None where it, its Python form or a GPU is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        return Card(name, driver, memory.total / 2**30, memory.free / 2**30)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _from_nvidia_smi() -> Card | None:
    """Ask the program that comes with the driver; None where it is missing, silent or sees no GPU."""
    query = "--query-gpu=name,driver_version,memory.total,memory.free"
    try:
        done = run_bounded("nvidia-smi", query, "--format=csv,noheader,nounits", limit_s=SMI_LIMIT_S)
        name, driver, total_mib, free_mib = done.stdout.splitlines()[0].split(", ")
        return Card(name, driver, float(total_mib) / 2**10, float(free_mib) / 2**10)
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None
