"""What each layer of a model does during one call: its time, its multiply-accumulates, the bytes it has to move.

A *layer* is any module that is called. What happens inside a module that it contains belongs to that one, so nothing is
counted twice and the layers add up to the whole: a block's own row is what it does between its layers (in a residual
block the addition, and the calling of the layers).
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.cost import fused_kernels
from deploykit.timing import Timer

Forward = Callable[..., Any]
WHOLE = "(model)"  # the name of the outermost module, which has none
WARMUP_S = 1.0


@dataclass
class LayerWork:
    """What a layer does in one call of the model, for the whole batch.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products, as ``cost.macs`` counts them; 0 also where that
            would refuse, because the kernel is unknown.
        flops: two for each of ``macs``; an operator without any counts one for each element of its largest tensor,
            batch norm two: a ReLU must not stand at intensity 0.
        bytes: each operator's inputs, weights and outputs, once each: what has to move when nothing is kept between
            operators, and caches are perfect within one.
        operators: calls into the library, views left out.
    """

    layer: str
    layer_type: str
    macs: int = 0
    flops: int = 0
    bytes: int = 0
    operators: int = 0


@contextlib.contextmanager
def wrapped_layers(model: nn.Module, wrap: Callable[[str, nn.Module, Forward], Forward]) -> Iterator[None]:
    """Replace the ``forward`` of every module by ``wrap(name, module, forward)`` inside the block, and put it back.

    Transformer layers run part by part meanwhile; otherwise one kernel may do it all and call none of them.
    """
    before = [(module, module.__dict__.get("forward")) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for name, module in model.named_modules():
            module.forward = wrap(name or WHOLE, module, module.forward)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, own in before:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def checked_layers(model: Any) -> nn.Module:
    """Return ``model``.

    Raises:
        ValueError: it has no layers that could be looked at one by one, or is in training mode.
    """
    given = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ValueError(  # noqa: TRY004 - whatever is wrong with a model is a ValueError here
            f"{given} is no torch module, so its layers cannot be told apart; give the model that it was made from"
        )
    if hasattr(model, "_orig_mod") or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{given} is compiled: its layers no longer run one by one; give the model that it was made from"
        )
    if model.training:
        raise ValueError(
            f"{given} is in training mode, where batch norm and dropout do other work and would change the model; "
            "call model.eval() first"
        )
    return model


def layer_work(model: nn.Module, images: Tensor) -> dict[str, LayerWork]:
    """Count what each layer does in ``model(images)``.

    Args:
        model: in evaluation mode; is run once and left as it was.
        images: float32 [N, 3, H, W].

    Returns:
        Name to work, in the order of the first call; containers that do nothing of their own are left out.

    Raises:
        ValueError: see :func:`checked_layers`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, LayerWork] = {}
    running: list[str] = []

    def wrap(name: str, module: nn.Module, forward: Forward) -> Forward:
        def counted(*args: Any, **options: Any) -> Any:
            found.setdefault(name, LayerWork(name, type(module).__name__))
            running.append(name)
            try:
                return forward(*args, **options)
            finally:
                running.pop()

        return counted

    counter = FlopCounterMode(display=False, custom_mapping=fused_kernels())
    # Not inference_mode: there, composite operators reach the counters whole, and are not counted.
    with wrapped_layers(checked_layers(model), wrap), torch.no_grad(), counter, _counting(counter, found, running):
        model(images)
    return {name: work for name, work in found.items() if work.operators}


def _counting(counter: Any, found: dict[str, LayerWork], running: list[str]) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counting(TorchDispatchMode):
        """Adds each operator to the layer that runs it; the FLOP counter around it is read before and after."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            before = counter.get_total_flops()
            out = func(*args, **(kwargs or {}))
            name = func._schema.name  # noqa: SLF001 - the schema is how an operator says that it is a view
            looks_only = any(
                result.alias_info is not None and not result.alias_info.is_write
                for result in func._schema.returns  # noqa: SLF001
            )
            if not running or looks_only or name.startswith(("aten::empty", "aten::new_empty")):
                return out
            read = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            counted = counter.get_total_flops() - before
            largest = max((leaf.numel() for leaf in (*read.values(), *written)), default=0)
            elementwise = largest * (2 if "batch_norm" in name else 1)
            work = found[running[-1]]
            work.macs += counted // 2
            work.flops += counted or elementwise
            work.bytes += sum(leaf.numel() * leaf.element_size() for leaf in (*read.values(), *written))
            work.operators += 1
            return out

    return Counting()


@dataclass(frozen=True)
class LayerTimes:
    """Own time of each layer, ms per call of the model, and the price of having looked.

    Attributes:
        own_ms: name to median over the calls; in the order of the first call.
        plain_ms: median of calls without clocks in the layers, in turns with those that have them.
        clocked_ms: median of calls with them.
    """

    own_ms: dict[str, float]
    plain_ms: float
    clocked_ms: float


def layer_times(model: nn.Module, images: Tensor, *, calls: int) -> LayerTimes:
    """Time each layer by a clock around its ``forward``; call it within ``timing.fixed_conditions``.

    Args:
        model: in evaluation mode.
        images: float32 [N, 3, H, W].
        calls: timed calls, after warm-up, each followed by one without clocks.

    Raises:
        ValueError: see :func:`checked_layers`.
    """
    timer = Timer(checked_layers(model), images, type(model).__name__, None, time.perf_counter)
    timer.warm_up(WARMUP_S)
    samples: list[dict[str, float]] = []
    inner_s = [0.0]

    def wrap(name: str, _: nn.Module, forward: Forward) -> Forward:
        def clocked(*args: Any, **options: Any) -> Any:
            inner_s.append(0.0)
            began = time.perf_counter()
            try:
                return forward(*args, **options)
            finally:
                taken = time.perf_counter() - began
                own = samples[-1]
                own[name] = own.get(name, 0.0) + taken - inner_s.pop()
                inner_s[-1] += taken

        return clocked

    plain, whole = [], []
    for _ in range(calls):
        samples.append({})
        with wrapped_layers(model, wrap):
            whole.append(timer.call())
        plain.append(timer.call())
    own_ms = {name: 1000 * statistics.median(sample.get(name, 0.0) for sample in samples) for name in samples[0]}
    # The first to begin is the last to end, so clocks stop in another order than layers start.
    order = {name or WHOLE: number for number, (name, _) in enumerate(model.named_modules())}
    own_ms = dict(sorted(own_ms.items(), key=lambda entry: order[entry[0]]))
    return LayerTimes(own_ms, 1000 * statistics.median(plain), 1000 * statistics.median(whole))
