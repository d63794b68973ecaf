"""Find out where the time of a call goes: by operator, by kind of layer, by layer.

Looking costs time itself. Operators are seen by ``torch.profiler``, which slows every one of them by a microsecond or
more; layers are timed by a clock around each, which is lighter. A :class:`Profile` says what both cost.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from deploykit.layers import WARMUP_S, WHOLE, Forward, checked_layers, layer_times, wrapped_layers
from deploykit.noise import without_profiler_noise
from deploykit.places import atomic_write
from deploykit.timing import Predictor, Timer, check_positive, checked_images, fixed_conditions

if TYPE_CHECKING:
    import pandas as pd

# What is kept of a trace: the path of its file and the name of the host are among the rest.
TRACE_KEYS = ("schemaVersion", "displayTimeUnit", "baseTimeNanoseconds", "traceEvents")


class OperatorTime(NamedTuple):
    """An operator in one call of the model: how often it runs, and its own time, ms, without operators it calls."""

    operator: str
    calls: float
    self_ms: float


class LayerTime(NamedTuple):
    """A layer in one call of the model: its own time, ms, without that of the layers it contains."""

    layer: str
    layer_type: str
    ms: float


@dataclass(frozen=True, repr=False)
class Profile:
    """Where the time of one call went.

    Attributes:
        operator_times: of the calls under the profiler, mean per call.
        layer_times: of calls with a clock in each layer, median per call; empty for what is no plain torch module.
        plain_ms: a call of the same run that nobody looks into, median.
        clocked_ms: a call with a clock in each layer, median; None without layers.
        profiled_ms: a call under the profiler, median.
        calls: how many of each kind.
        batch: images per call.
        threads: of torch.
        trace: in Chrome's format, of the calls under the profiler.
    """

    operator_times: tuple[OperatorTime, ...]
    layer_times: tuple[LayerTime, ...]
    plain_ms: float
    clocked_ms: float | None
    profiled_ms: float
    calls: int
    batch: int
    threads: int
    trace: Mapping[str, Any] = field(compare=False)

    def operators(self) -> pd.DataFrame:
        """Return ``operator, calls, self_ms, share`` (of all operators' time), the slowest first."""
        import pandas as pd

        rows = [entry for entry in self.operator_times if entry.self_ms > 0]
        return _with_shares(pd.DataFrame(rows, columns=OperatorTime._fields), "self_ms")

    def by_layer_type(self) -> pd.DataFrame:
        """Return ``layer_type, ms, share``, the slowest kind first.

        Raises:
            ValueError: the profile has no layers.
        """
        table = self.by_layer().groupby("layer_type", sort=False)["ms"].sum().reset_index()
        return _with_shares(table, "ms")

    def by_layer(self) -> pd.DataFrame:
        """Return ``layer, layer_type, ms, share`` in the order of the model; shares add up to 1.

        A container's row is what it does between its layers.

        Raises:
            ValueError: the profile has no layers.
        """
        import pandas as pd

        if not self.layer_times:
            raise ValueError(
                "this profile has no layers: what was profiled is compiled or no torch module; "
                "profile the model that it was made from"
            )
        table = pd.DataFrame(self.layer_times, columns=LayerTime._fields)
        return table.assign(share=table["ms"] / table["ms"].sum())

    def export_chrome_trace(self, path: Path | str) -> Path:
        """Write the trace for chrome://tracing or ui.perfetto.dev, and return the file.

        It names operators and layers, but no path, host or user.
        """
        path = Path(path)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.trace), encoding="utf-8")
        return path

    def __str__(self) -> str:
        looked = [(self.profiled_ms, "under the profiler")]
        if self.clocked_ms is not None:
            looked.insert(0, (self.clocked_ms, "with a clock in each layer"))
        prices = ", ".join(f"{ms:.3g} ms {how} ({ms / self.plain_ms - 1:+.0%})" for ms, how in looked)
        return f"one call at batch {self.batch}, {self.threads} threads: {self.plain_ms:.3g} ms; {prices}"

    __repr__ = __str__


def _with_shares(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table.sort_values(column, ascending=False, ignore_index=True).assign(
        share=lambda t: t[column] / t[column].sum()
    )


def profile(predictor: Predictor, images: Tensor, *, calls: int = 20, threads: int | None = None) -> Profile:
    """Profile ``predictor(images)`` on a CPU, after it has warmed up.

    Args:
        predictor: a model in evaluation mode, or anything else that runs torch operators; it is left as it was. Layers
            are told apart in plain modules only: a compiled model has none left.
        images: float32 [N, 3, H, W], on the CPU; one call takes them all.
        calls: so many calls under the profiler, with clocks in the layers, and without either.
        threads: None keeps torch's number, but no more than affinity and container quota allow.

    Raises:
        ValueError: images that are no float32 batch on the CPU, a model in training mode, or output that is not finite
            logits [N, classes].
    """
    images = checked_images(images)
    check_positive(calls=calls)
    if images.device.type != "cpu":
        raise ValueError(
            f"images are on {images.device}; this profile reads the CPU's clock: move model and images there"
        )
    has_layers = isinstance(predictor, nn.Module) and not hasattr(predictor, "_orig_mod")
    model = checked_layers(predictor) if has_layers else None
    layers: tuple[LayerTime, ...] = ()
    clocked_ms = None
    with fixed_conditions(threads) as used_threads:
        if model is not None:
            times = layer_times(model, images, calls=calls)
            kinds = {name or WHOLE: type(module).__name__ for name, module in model.named_modules()}
            layers = tuple(LayerTime(name, kinds[name], ms) for name, ms in times.own_ms.items())
            plain_ms, clocked_ms = times.plain_ms, times.clocked_ms
        else:
            timer = Timer(predictor, images, "the predictor", None, time.perf_counter)
            timer.warm_up(WARMUP_S)
            plain_ms = 1000 * statistics.median(timer.call() for _ in range(calls))
        operators, profiled_ms, trace = _under_profiler(predictor, model, images, calls)
    return Profile(operators, layers, plain_ms, clocked_ms, profiled_ms, calls, len(images), used_threads, trace)


def _under_profiler(
    predictor: Predictor, model: nn.Module | None, images: Tensor, calls: int
) -> tuple[tuple[OperatorTime, ...], float, dict[str, Any]]:
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    def wrap(name: str, module: nn.Module, forward: Forward) -> Forward:
        def recorded(*args: Any, **options: Any) -> Any:
            with record_function(f"{name}: {type(module).__name__}"):
                return forward(*args, **options)

        return recorded

    layers = wrapped_layers(model, wrap) if model is not None else contextlib.nullcontext()
    profiler, taken = torch_profile(activities=[ProfilerActivity.CPU]), []
    with layers:
        with without_profiler_noise():
            profiler.start()
        try:
            for _ in range(calls):
                began = time.perf_counter()
                predictor(images)
                taken.append(time.perf_counter() - began)
        finally:
            with without_profiler_noise():
                profiler.stop()
    times = tuple(
        OperatorTime(entry.key, entry.count / calls, entry.self_cpu_time_total / 1000 / calls)
        for entry in profiler.key_averages()
        if not entry.is_user_annotation
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text(encoding="utf-8"))
    return times, 1000 * statistics.median(taken), {key: trace[key] for key in TRACE_KEYS if key in trace}
