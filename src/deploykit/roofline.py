"""How near each layer of a model comes to what this machine could do at best, and what holds it back: the roofline.

A layer can be no faster than its arithmetic at the machine's peak, and no faster than its bytes at the machine's
bandwidth; which of the two binds depends on its *intensity*, FLOP per byte (Williams, Waterman, Patterson 2009,
"Roofline: An Insightful Visual Performance Model for Multicore Architectures"). Two things are added to their picture,
since small networks need them: a roof for each cache (Ilic, Pratas, Sousa 2014, "Cache-aware Roofline Model"), because
what fits into a cache never sees the memory's bandwidth, and the time that a call takes when it has nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deploykit.cost import macs
from deploykit.layers import LayerWork, layer_times, layer_work
from deploykit.peaks import Peaks
from deploykit.timing import check_positive, checked_images, fixed_conditions

if TYPE_CHECKING:
    import pandas as pd


def place_layers(
    model: nn.Module, images: Tensor, peaks: Peaks, *, calls: int = 20, dtype: str = "fp32"
) -> pd.DataFrame:
    """Measure each layer of ``model(images)`` and place it under the roof of ``peaks``.

    A layer's least time has three parts: its FLOP at the peak, its bytes at the bandwidth of the smallest level that
    holds them all (what it reads was written just before), and its overhead. The largest names what binds it.
    Arithmetic and traffic overlap, the overhead does not: ``attainable_ms`` is it and the larger of the other two.

    A padded convolution can stand above the roof: FLOP include the products with the zeros around the picture, as
    papers count them (a sixth of all for 3x3 filters on 8x8 pixels), and good kernels skip these.

    Args:
        model: in evaluation mode, on the CPU.
        images: float32 [N, 3, H, W].
        peaks: see ``peaks.measure_peaks``; the layers are timed with its number of threads.
        calls: timed calls.
        dtype: which peak: the type that the model computes in.

    Returns:
        A row for each layer that does something, in the order of the model: ``layer, layer_type, macs, flops, bytes``
        (of one call, the whole batch, see ``layers.LayerWork``), ``intensity`` (FLOP per byte), ``ms`` (median),
        ``gflops`` (reached), ``level`` (of memory), ``bound`` ("compute", "memory", "overhead"), ``attainable_ms``.

    Raises:
        ValueError: a peak that was not measured, a model in training mode, or one whose layers cannot be told apart or
            their operations not be counted.
    """
    import pandas as pd

    if dtype not in peaks.gflops:
        raise ValueError(f"there is no peak for {dtype!r} among those measured: {', '.join(peaks.gflops)}")
    check_positive(calls=calls)
    work = layer_work(model, checked_images(images))
    macs(model, images)  # refuses what cannot be counted: a quantized layer would stand there as one without arithmetic
    with fixed_conditions(peaks.threads):
        own_ms = layer_times(model, images, calls=calls).own_ms
    rows = [_placed(done, own_ms[name], peaks, dtype) for name, done in work.items()]
    return pd.DataFrame(rows)


def _placed(work: LayerWork, ms: float, peaks: Peaks, dtype: str) -> dict[str, Any]:
    level = peaks.level(work.bytes)
    least_ms = {
        "compute": work.flops / peaks.gflops[dtype] / 1e6,
        "memory": work.bytes / level.gb_s / 1e6,
        "overhead": peaks.layer_overhead_us.get(work.layer_type, work.operators * peaks.overhead_us) / 1e3,
    }
    return {
        "layer": work.layer,
        "layer_type": work.layer_type,
        "macs": work.macs,
        "flops": work.flops,
        "bytes": work.bytes,
        "intensity": work.flops / work.bytes,
        "ms": ms,
        "gflops": work.flops / ms / 1e6,
        "level": level.name,
        "bound": max(least_ms, key=lambda part: least_ms[part]),
        "attainable_ms": least_ms["overhead"] + max(least_ms["compute"], least_ms["memory"]),
    }
