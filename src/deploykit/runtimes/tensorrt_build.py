"""From ONNX to a TensorRT engine: built once, kept with what it was built from, rebuilt when something changed."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .built_here import record_built_here
from .files import complete_or_absent, existing
from .onnx_file import read_onnx
from .tensorrt_findings import BLOCKING, Finding
from .tensorrt_library import RTX, gpu_here, import_tensorrt, logger
from .tensorrt_manifest import Manifest, is_built_here, sha256
from .tensorrt_network import read_network
from .tensorrt_ready import check_tensorrt_ready
from .tensorrt_session import add_profile, keep_timing_cache, progress_bars, use_timing_cache

GIB = 2**30


@dataclass(frozen=True)
class Engine:
    """An engine on disk, and how it came to be there.

    Attributes:
        path: the plan; its manifest lies beside it.
        reused: it was there already, and fits.
        why: why it was built, or not.
        manifest: what it was built from and for.
        findings: what in the ONNX file keeps it from being as fast as it could be.
    """

    path: Path
    reused: bool
    why: str
    manifest: Manifest
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        smallest, usual, largest = self.manifest.profile
        done, size = "reused" if self.reused else "built", self.path.stat().st_size
        line = f"{self.path.name}: {done} ({self.why}), {size:,} bytes, {self.manifest.library} {self.manifest.version}"
        batches = f"batches of {smallest} to {largest}, best at {usual}"
        return "\n".join([f"{line}, {batches}", *(f"  {finding}" for finding in self.findings)])

    __repr__ = __str__


def build_engine(
    onnx_path: Path | str,
    engine_path: Path | str,
    *,
    profile: Sequence[int] = (1, 64, 256),
    workspace_gib: float = 1.0,
    timing_cache: Path | str | None = None,
    progress: bool = False,
) -> Engine:
    """Build the engine if there is none that fits, complete or not at all, and return what is there.

    The precision is what is in the file: float32, or float16 where weights and casts say so, or int8 between pairs of
    QuantizeLinear and DequantizeLinear. There are no flags for it: the network is strongly typed.

    A plan runs as a program when it is loaded. A folder that is missing is made for the reader alone, and the plan's
    hash is noted in their cache folder.

    Args:
        onnx_path: one input [N, C, H, W] and one output, both float32.
        engine_path: ends in ".plan".
        profile: the smallest batch, the one to be fastest at, and the largest. The engine takes no other.
        workspace_gib: the most memory that a layer may take while it computes.
        timing_cache: a file in which measured times of kernels are kept, so that the next build is quicker. TensorRT
            only; RTX measures nothing while it builds, and ignores it with a warning.
        progress: show bars.

    Raises:
        FileNotFoundError: no such ONNX file.
        ImportError: TensorRT or onnx is missing; the message names the extra.
        ValueError: a profile out of order, another ending, a folder that others may write, or a file that is no ONNX
            model, that the parser refuses or would change. The message names the node and the remedy.
        RuntimeError: the builder gives up; the message has its words.
    """
    smallest, usual, largest = _checked(profile, workspace_gib)
    source, target = existing(onnx_path), Path(engine_path)
    trt = import_tensorrt()
    proto, *weights = read_onnx(source)
    library, hashed = trt.__name__, sha256(source.read_bytes(), *(file.read_bytes() for file in weights))
    now = Manifest(hashed, library, trt.__version__, *gpu_here(library), (smallest, usual, largest), workspace_gib)
    findings = check_tensorrt_ready(proto)
    _prepare_folder(target)
    why = why_rebuild(target, now)
    if not why:
        return Engine(target, True, "nothing changed", Manifest.read(target), findings)  # noqa: FBT003
    if timing_cache is not None and library == RTX:
        warnings.warn(f"TensorRT-RTX keeps no timing cache; {timing_cache} is ignored", stacklevel=2)
        timing_cache = None
    cache = Path(timing_cache) if timing_cache is not None else None
    plan = _plan(trt, source, now, findings, cache, progress=progress)
    now = dataclasses.replace(now, plan_sha256=sha256(plan))
    with complete_or_absent(target, ".plan") as partial:
        partial.touch(mode=0o600)
        partial.write_bytes(plan)
        now.write(partial)
        record_built_here(plan)
    return Engine(target, False, why, now, findings)  # noqa: FBT003


def why_rebuild(plan: Path, now: Manifest) -> str:
    """Return why what lies there cannot be used, empty if it can."""
    if not plan.is_file():
        return "there was none"
    try:
        kept = Manifest.read(plan)
    except ValueError:
        return "there was no manifest"
    content = plan.read_bytes()
    if sha256(content) != kept.plan_sha256 or not is_built_here(content, plan):
        return "the plan is not what this machine wrote"
    return "; ".join(kept.changes(now))


def _plan(
    trt: Any, source: Path, now: Manifest, findings: tuple[Finding, ...], cache: Path | None, *, progress: bool
) -> bytes:
    """Return the serialized engine. Nothing in TensorRT raises: each answer has to be looked at."""
    log = logger(trt)
    log.lines.clear()
    builder = trt.Builder(log)
    # Needed in TensorRT 10, ignored in 11, where nothing else is left; its number differs between them.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    taken = read_network(trt, network, source, [finding for finding in findings if finding.severity in BLOCKING])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(now.workspace_gib * GIB))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells no types
    add_profile(builder, config, taken, now.profile, log)
    monitor = progress_bars(trt) if progress else None  # has to live as long as the build
    if monitor:
        config.progress_monitor = monitor
    if cache:
        use_timing_cache(config, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(
            f"TensorRT gave up on {source.name}; raise workspace_gib if it speaks of memory, export again if it speaks "
            f"of shapes. It says: {' / '.join(log.lines[-2:]) or 'nothing'}"
        )
    if cache:
        keep_timing_cache(config, cache)
    return bytes(plan)


def _checked(profile: Sequence[int], workspace_gib: float) -> tuple[int, int, int]:
    given = tuple(profile)
    whole = all(isinstance(size, int) and size >= 1 for size in given)
    if len(given) != 3 or not whole or list(given) != sorted(given):  # noqa: PLR2004
        raise ValueError(
            f"profile is {given}; give the smallest, the usual and the largest batch, in this order and at least 1, "
            "such as (1, 64, 256)"
        )
    if not workspace_gib > 0:
        raise ValueError(f"workspace_gib is {workspace_gib}; give more than 0, 1.0 is usual")
    return given


def _prepare_folder(target: Path) -> None:
    folder = target.parent
    if target.suffix != ".plan":
        raise ValueError(f"{target.name} must end in .plan, by which the runtime knows what it is")
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
    elif os.name != "nt" and folder.stat().st_mode & 0o022:
        raise ValueError(
            f"others may write in the folder {folder}, and an engine runs as a program when it is loaded; give it a "
            f"folder of its own, which is made for you alone, or chmod 700 this one"
        )
