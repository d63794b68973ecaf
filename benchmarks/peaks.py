"""Do the peaks of deploykit.peaks agree with references on the same machine, in the same run?

    python benchmarks/peaks.py              # 5 rounds, about 70 seconds on an idle machine
    python benchmarks/peaks.py --rounds 1   # a trial

The references go other ways than the peaks: NumPy's BLAS and torch.mm of other sizes for arithmetic, and for bandwidth
a copy by torch, and one by NumPy in as many threads, each in arrays of four times the last cache. Rounds alternate, and
each figure is the best of them, as STREAM reports. Writes data/results/peaks.json.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from deploykit.peaks import MIB, Peaks, measure_peaks
from deploykit.recorded import recorded, write_recorded
from deploykit.timing import fixed_conditions

Row = dict[str, Any]

ROUNDS = 5
SIZES = (1024, 3072)  # of the references' matrices; the peaks are taken at others
REPEATS, REFERENCE_S = 5, 1.0
AGREE = 0.15


def fastest_s(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest call in a second or of a few, after one that does not count."""
    call()
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < REPEATS or time.perf_counter() - started < REFERENCE_S:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def products(peaks: Peaks) -> dict[str, float]:
    """Multiply large matrices; return GFLOP/s by the name of the peak that each is a reference for."""
    found = {}
    for name, kind in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        if name in peaks.gflops:
            found[name] = max(
                2 * size**3 / fastest_s(functools.partial(torch.mm, *torch.rand(2, size, size).to(kind))) / 1e9
                for size in SIZES
            )
    return found


def numpy_product() -> float:
    """Multiply large float32 matrices by NumPy's BLAS, which is not torch's; return GFLOP/s."""
    random = np.random.default_rng(0)
    return max(
        2 * size**3 / fastest_s(functools.partial(np.matmul, *random.random((2, size, size), dtype=np.float32))) / 1e9
        for size in SIZES
    )


def copies(peaks: Peaks) -> dict[str, float]:
    """Copy arrays of the size that the bandwidth was taken with; return GB/s, read and written bytes counted once."""
    source = torch.rand(int(peaks.array_mib * MIB) // 4)
    target = torch.empty_like(source)
    parts = [
        (into.numpy(), of.numpy())
        for into, of in zip(target.chunk(peaks.threads), source.chunk(peaks.threads), strict=True)
    ]
    with ThreadPoolExecutor(peaks.threads) as pool:
        by_numpy = fastest_s(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    by_torch = fastest_s(lambda: target.copy_(source))
    return {"torch copy_": 2 * source.nbytes / by_torch / 1e9, "numpy.copyto": 2 * source.nbytes / by_numpy / 1e9}


def best(found: dict[str, float], name: str, rate: float) -> None:
    """Keep the highest rate."""
    found[name] = max(rate, found.get(name, 0.0))


def row(name: str, peak: float, reference: float, unit: str, *, against: str) -> Row:
    """Return a peak beside its reference."""
    return {
        "peak": name,
        "reference": against,
        "found": round(peak, 1),
        "reference_found": round(reference, 1),
        "unit": unit,
        "ratio": round(peak / reference, 3),
        "wanted": f"{1 - AGREE:g} to {1 + AGREE:g}",
        "holds": abs(peak / reference - 1) <= AGREE,
    }


def main() -> None:
    """Measure peaks and references in turns, record them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    references: dict[str, float] = {}
    for _ in range(arguments.rounds):
        peaks = measure_peaks()
        for name, rate in peaks.gflops.items():
            best(found, name, rate)
        for level in peaks.memory:
            best(found, level.name, level.gb_s)
        with fixed_conditions(peaks.threads):
            for name, rate in products(peaks).items():
                best(references, name, rate)
            best(references, "numpy", numpy_product())
            for name, rate in copies(peaks).items():
                best(references, name, rate)
    rows = [
        row(name, found[name], references[name], "GFLOP/s", against="torch.mm")
        for name in ("fp32", "bf16")
        if name in found
    ]
    rows.append(row("fp32", found["fp32"], references["numpy"], "GFLOP/s", against="numpy.matmul"))
    rows += [
        row("DRAM", found["DRAM"], references[name], "GB/s", against=name) for name in ("torch copy_", "numpy.copyto")
    ]
    rows += [  # without a reference: no other route of torch's uses the instructions, or reaches only the caches
        {"peak": name, "found": round(found[name], 1), "unit": "GFLOP/s" if name == "int8" else "GB/s"}
        for name in found
        if name == "int8" or name.startswith("L")
    ]
    conditions = {"threads": peaks.threads, "array_mib": round(peaks.array_mib)}
    write_recorded(
        "peaks",
        [{**entry, **conditions} for entry in rows],
        what="The peaks of deploykit.peaks against references in the same run, the best of several rounds",
        command="python benchmarks/peaks.py",
    )
    print(recorded("peaks"))
    print(f"overhead of the last round: {peaks}")


if __name__ == "__main__":
    main()
