"""What this machine could do at best: arithmetic in each number format, bandwidth of each memory, price of a call.

The peaks are the roofs of ``roofline``. Units: 1 multiply-accumulate = 2 FLOP (for int8: two operations, on whole
numbers); 1 GB = 10⁹ bytes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows it by

from deploykit.machine import machine
from deploykit.timing import check_positive, fixed_conditions

MIB = 2**20
# Instructions without which a type is only emulated, slower than fp32: there is no peak to measure then.
INSTRUCTIONS = {
    "fp32": frozenset[str](),
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "int8": frozenset({"avx512_vnni", "avx_vnni", "amx_int8"}),
}
MATRIX_SIZES = (768, 2048)
LEAST_CALLS = 3
# STREAM asks for arrays of at least four times the last-level cache (McCalpin 1995); no more than this share of memory.
STREAM_TIMES_CACHE, MEMORY_SHARE = 4, 1 / 16
CACHE_SHARE = 0.5  # of a cache that its measurement fills, so that nothing else of the process drives it out
TELLABLE = 1.25  # twice the bytes have to take so many times as long before the difference is believed
OVERHEAD_CALLS = 500


class MemoryLevel(NamedTuple):
    """A cache, or the memory behind the last one.

    Attributes:
        name: "L2", "L3", …, "DRAM".
        holds_mib: what fits, over all caches of this level that the threads use; infinite for DRAM.
        gb_s: STREAM's triad with all threads: two arrays read and one written, each counted once. That the hardware
            also reads what it will overwrite (write-allocate) is not counted, here or for a layer's bytes.
    """

    name: str
    holds_mib: float
    gb_s: float


@dataclass(frozen=True)
class Peaks:
    """What this machine does at best; every figure is the best of many calls.

    Attributes:
        gflops: type ("fp32", "bf16", "int8") to 10⁹ operations per second. Types that the CPU has no instructions for
            are left out.
        memory: the caches from L2 on, the smallest first, and DRAM at the end.
        overhead_us: a module's call of one operator on one element.
        layer_overhead_us: the same for kinds of layers that take longer to start.
        threads: of torch.
        array_mib: each of the three arrays of the triad in DRAM.
    """

    gflops: Mapping[str, float]
    memory: tuple[MemoryLevel, ...]
    overhead_us: float
    layer_overhead_us: Mapping[str, float]
    threads: int
    array_mib: float

    @property
    def bandwidth_gb_s(self) -> float:
        """The bandwidth of the memory behind all caches."""
        return self.memory[-1].gb_s

    def level(self, size: float) -> MemoryLevel:
        """Return the smallest level that holds ``size`` bytes."""
        return next(level for level in self.memory if size <= level.holds_mib * MIB)

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.gflops.items())
        absent = "".join(
            f"; {name} not measured, this CPU has no instructions for it"
            for name in INSTRUCTIONS
            if name not in self.gflops
        )
        levels = ", ".join(f"{level.name} {level.gb_s:,.0f}" for level in self.memory)
        return (
            f"peak {rates} GFLOP/s{absent}; bandwidth {levels} GB/s; a call takes {self.overhead_us:.1f} µs or more; "
            f"{self.threads} threads"
        )


def measure_peaks(
    *, threads: int | None = None, dtypes: Iterable[str] = tuple(INSTRUCTIONS), budget_s: float = 5.0
) -> Peaks:
    """Measure what this machine's CPU does at best.

    - fp32: the better of ``torch.mm`` (MKL or OpenBLAS) and a 3x3 convolution (oneDNN).
    - bf16: the same two, both by oneDNN, with AVX512-BF16 or AMX.
    - int8: ``onednn::qlinear_pointwise``, uint8 by int8 to fp32, which PT2E and Inductor run an int8 Linear with;
      oneDNN takes its VNNI or AMX kernel. ``torch._int_mm`` multiplies signed by signed, for which x86 has no
      instruction before AMX, and reaches less than half of it.
    - bandwidth: ``a = b + 3 c`` (STREAM's triad), in each cache from L2 on and in arrays of four times the last cache.
    - overhead: small modules on one pixel.

    Args:
        threads: None keeps torch's number, but no more than affinity and container quota allow.
        dtypes: of "fp32", "bf16", "int8"; those without instructions on this CPU are left out.
        budget_s: seconds for all; a slow machine takes longer, for three calls of each.

    Raises:
        ValueError: a type that is not known, or none.
    """
    wanted = list(dict.fromkeys(dtypes))
    if not wanted or set(wanted) - INSTRUCTIONS.keys():
        raise ValueError(f"dtypes are {wanted}; give one or more of {', '.join(INSTRUCTIONS)}")
    check_positive(budget_s=budget_s)
    features = set(machine()["features"])
    possible = [name for name in wanted if not INSTRUCTIONS[name] or INSTRUCTIONS[name] & features]
    with fixed_conditions(threads) as used:
        routes = {name: list(_products(name)) for name in possible}
        caches = cache_levels(used)
        share_s = budget_s / (sum(map(len, routes.values())) + len(caches) + 2)
        gflops = {
            name: max(flop / _fastest_s(call, share_s) / 1e9 for call, flop in found) for name, found in routes.items()
        }
        levels = [MemoryLevel(name, size / MIB, _cache_gb_s(size, share_s)) for name, size in caches]
        array = _stream_array_bytes(caches)
        levels.append(MemoryLevel("DRAM", math.inf, _triad_bytes(array) / _triad_s(array, share_s) / 1e9))
        overheads = {type(layer).__name__: _fastest_us(layer, pixel) for layer, pixel in _small_layers()}
    cheapest = overheads.pop("ReLU")
    return Peaks(gflops, tuple(levels), cheapest, overheads, used, array / MIB)


def _products(dtype: str) -> Iterator[tuple[Callable[[], Any], float]]:
    """Yield products, and the operations of each."""
    if dtype == "int8":
        for size in MATRIX_SIZES:
            yield _int8_product(size), 2.0 * size**3
        return
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    for size in MATRIX_SIZES:
        yield functools.partial(torch.mm, *torch.rand(2, size, size).to(kind)), 2.0 * size**3
    images, weight = torch.rand(16, 128, 18, 18).to(kind), torch.rand(128, 128, 3, 3).to(kind)
    images, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (images, weight))
    # Without padding: a kernel may skip zeros that the operations include.
    yield lambda: F.conv2d(images, weight), 2.0 * 16 * 128 * 128 * 9 * 16 * 16


def _int8_product(size: int) -> Callable[[], Any]:
    onednn = torch.ops.onednn
    left = torch.randint(0, 256, (size, size), dtype=torch.uint8)
    right = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    packed = onednn.qlinear_prepack(right, [size, size])
    scales, zeros = torch.full((size,), 0.01), torch.zeros(size, dtype=torch.int64)
    return lambda: onednn.qlinear_pointwise(
        left, 0.01, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )  # fmt: skip


def _fastest_s(call: Callable[[], Any], budget_s: float) -> float:
    """Return the seconds of the fastest call: what disturbs can only slow down."""
    call()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < LEAST_CALLS or time.perf_counter() - began < budget_s:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _triad_s(array_bytes: float, budget_s: float) -> float:
    out, left, right = torch.ones(3, int(array_bytes) // 4)  # drawing a GiB at random would take longer
    return _fastest_s(lambda: torch.add(left, right, alpha=3.0, out=out), budget_s)


def _triad_bytes(array_bytes: float) -> float:
    return 3.0 * 4 * (int(array_bytes) // 4)


def _cache_gb_s(size: int, budget_s: float) -> float:
    """Return a cache's bandwidth from how much longer twice the bytes take, since threads take as long to start."""
    half, full = (share * CACHE_SHARE * size / 3 for share in (0.5, 1))
    half_s, full_s = (_triad_s(array, budget_s / 2) for array in (half, full))
    rates = [_triad_bytes(full) / full_s / 1e9]
    if full_s > TELLABLE * half_s:  # else start-up, or what others do, hides the difference
        rates.append((_triad_bytes(full) - _triad_bytes(half)) / (full_s - half_s) / 1e9)
    return max(rates)


def _small_layers() -> list[tuple[nn.Module, Tensor]]:
    pixel = torch.ones(1, 16, 2, 2)
    layers = [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    return [(layer.eval(), pixel) for layer in layers] + [(nn.Linear(16, 16).eval(), torch.ones(1, 16))]


def _fastest_us(layer: nn.Module, pixel: Tensor) -> float:
    taken: list[float] = []
    for _ in range(OVERHEAD_CALLS):
        began = time.perf_counter()
        layer(pixel)
        taken.append(time.perf_counter() - began)
    return 1e6 * min(taken)


def cache_levels(threads: int) -> list[tuple[str, int]]:
    """Return name and bytes of each cache level from L2 on, over all caches that so many threads use (Linux).

    Elsewhere, and where the kernel does not say, one L3 of 32 MiB is assumed.
    """
    found: dict[int, dict[str, int]] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        with contextlib.suppress(OSError, ValueError):
            level, kind, size, shared = (
                (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
            )
            if kind != "Instruction" and int(level) > 1:
                found.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) * 1024
    if not found:
        return [("L3", 32 * MIB)]
    return [(f"L{level}", sum(list(sizes.values())[:threads])) for level, sizes in sorted(found.items())]


def _stream_array_bytes(caches: list[tuple[str, int]]) -> int:
    import psutil

    return int(min(STREAM_TIMES_CACHE * caches[-1][1], MEMORY_SHARE * psutil.virtual_memory().available))
