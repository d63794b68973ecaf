"""Is this machine able to run the course? What is there, what a shortcoming costs the reader, and how to mend it.

Nothing is installed or changed, and what may crash or hang is imported in a process of its own: the examination works
where the things examined do not.
"""

from __future__ import annotations

from functools import partial

from deploykit.doctor import compiler, gpu, hardware, network, software, storage
from deploykit.doctor import workshop as several
from deploykit.doctor.finding import MISSING, STATUSES, Finding, Probe, look_at

__all__ = ["STATUSES", "Finding", "examine", "healthy"]

PROBES = (
    Probe(("Python",), software.python),
    Probe(software.GROUPS, software.packages),
    Probe(("CPU",), hardware.cpu_features, gpu.IMPORT_LIMIT_S),
    Probe(("threads",), hardware.threads),
    Probe(("memory",), hardware.memory),
    Probe(("steadiness",), hardware.steadiness),
    Probe(("torch", "GPU"), gpu.torch_and_gpu, gpu.IMPORT_LIMIT_S + gpu.SMI_LIMIT_S + 1),
    Probe(("TensorRT",), partial(gpu.tensorrt, "tensorrt"), gpu.IMPORT_LIMIT_S + 1),
    Probe(("TensorRT-RTX",), partial(gpu.tensorrt, "tensorrt_rtx"), gpu.IMPORT_LIMIT_S + 1),
    Probe(("compiler",), compiler.compiler, 2 * compiler.COMPILE_LIMIT_S + 1),
    Probe(("dataset",), storage.dataset),
    Probe(("folders",), storage.folders),
    Probe(("disk",), storage.disk),
)
NETWORK = Probe(("network",), network.network)
WORKSHOP = (
    Probe(("workshop: readers",), several.readers),
    Probe(("workshop: shared data",), several.shared_data),
    Probe(("workshop: ports",), several.ports),
    Probe(("workshop: JupyterHub",), several.hub),
)


def examine(*, workshop: bool = False, online: bool = True) -> list[Finding]:
    """Look at everything that the course needs, in a few seconds, and return one finding for each thing.

    Never raises: what cannot be examined, or does not answer in time, is a finding that says so.

    Args:
        workshop: also see whether several readers can work on this machine at once, and how many.
        online: also knock at the package index and at CIFAR-10's server; False contacts nobody.
    """
    return look_at([*PROBES, *([NETWORK] if online else []), *(WORKSHOP if workshop else ())])


def healthy(findings: list[Finding]) -> bool:
    """Tell whether the course runs here: nothing is missing; what is limited only takes something away."""
    return all(finding.status != MISSING for finding in findings)
