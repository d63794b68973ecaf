"""Choosing which channels to remove: by importance, towards a share of channels, MACs or milliseconds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .checks import check_fraction
from .costs import LayerCost, Network, count_macs, macs_cost, parameters_removed
from .groups import require_groups, trace
from .importance import Batches, Loss, channel_scores, check_importance
from .latency import Measure, fastest_ms, latency_cost
from .plan import PruningPlan, Removal
from .selection import (
    ByImportance,
    ByMeasurement,
    Options,
    Path,
    Ranking,
    SameShare,
    State,
    cheapest_cuts,
    first_near,
    lowest,
    nearest_state,
)

if TYPE_CHECKING:
    import pandas as pd

SCOPES = ("global", "layer", "cost")


def plan_pruning(
    model: nn.Module,
    example_input: Tensor,
    *,
    ratio: float | None = None,
    target_macs: int | None = None,
    target_latency: float | None = None,
    importance: str = "l2",
    ignore: Iterable[str] = (),
    round_to: int = 1,
    scope: str | None = None,
    sensitivity: pd.DataFrame | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    latency: Measure | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Choose the channels to remove; nothing is removed yet.

    Args:
        model: floating point, in either mode; it is not changed.
        example_input: what it processes, images float32 [N, C, H, W] as a rule. MACs are those of one image, latency
            is that of the whole batch.
        ratio: share of all channels that can go; 0 <= ratio < 1. It is not the share of the MACs or parameters.
        target_macs: multiply-accumulates of one image to come down to.
        target_latency: milliseconds to come down to, of all convolutions and linear layers together as ``latency``
            measures them. Exactly one of these three is given.
        importance: "random", "l1", "l2", "bn_scale", "taylor" or "hessian": see :func:`~.importance.channel_scores`.
        ignore: names of layers, or of modules that contain layers, whose outputs stay whole.
        round_to: the channels that stay are a multiple of it; kernels work in blocks of 8 or 16.
        scope: "global" ranks all channels in one row; "layer" takes the same share of each group; "cost" cuts greedily
            where the least importance is lost for each MAC, or each millisecond, that is saved. When left out, "cost"
            for ``target_latency``, which takes no other (measured time does not fall with every channel that goes),
            and for ``sensitivity``, and "global" otherwise.
        sensitivity: what :func:`~.sensitivity.pruning_sensitivity` measured of this model by this importance. The cuts
            are divided among the groups by the divergence measured there, as if those of several groups added up, and
            importance says only which channels of a group go. No group loses more than the most that was measured.
        batches: images and labels of the training split, for "taylor" and "hessian".
        loss: ``loss(model, images, labels)``, cross-entropy when left out.
        latency: ``latency(layer, input)``, milliseconds of one layer; with ``target_latency`` only. In eager mode when
            left out. Hand over one :class:`~.latency.RememberedLatency` to measure once for several plans.
        seed: for "random".

    Returns:
        The plan, which prints itself. MACs are met within 2 % or, where whole multiples of ``round_to`` do not allow
        that, as nearly as they can be, which the plan then says.

    Raises:
        ValueError: none or two targets, one out of range or unreachable (with the nearest that is), an unusable option,
            a model that cannot be pruned.
    """
    _check_options(ratio, target_macs, target_latency, round_to, scope)
    if sensitivity is not None and scope not in {None, "cost"}:
        raise ValueError(f"scope is {scope!r}, and a sensitivity divides the cuts itself; leave scope out")
    if latency is not None and target_latency is None:
        raise ValueError("latency is measured for target_latency only; give target_latency, or leave latency out")
    check_importance(importance, batches)
    traced = trace(model, example_input, ignore=ignore)
    require_groups(traced, "plan_pruning")
    scores = channel_scores(traced, importance, batches=batches, loss=loss, seed=seed)
    network = Network(traced.model, {name: traced.groups[name] for name in scores})
    macs = _macs(traced.model, example_input, network)
    if target_latency is not None:
        cost = latency_cost(traced.model, example_input, latency or fastest_ms)
        goal = Goal("{:.4g} ms", target_latency, functools.partial(network.total, cost))
    elif target_macs is not None:
        goal = Goal("{:,.0f} MACs", target_macs, macs)
    else:
        channels = sum(map(len, scores.values()))
        goal = Goal("{:.0f} channels", (1 - (ratio or 0)) * channels, lambda state: channels - sum(state.values()))
    if scope is None:
        scope = "global" if target_latency is None and sensitivity is None else "cost"
    by = cost if target_latency is not None else macs_cost(traced.model, example_input)
    path = _path(scope, scores, network, cost=by, round_to=round_to, sensitivity=sensitivity)
    least_kept = f"{round_to} of its channels" if sensitivity is None else "the fewest channels that were measured"
    state = _choose(goal, path, least_kept)
    full = dict.fromkeys(scores, 0)
    divided = f"scope {scope!r}" if sensitivity is None else "divided by sensitivity"
    parameters = sum(parameter.numel() for parameter in traced.model.parameters())
    silent = dict.fromkeys(traced.groups.keys() - scores, f"it has no batch norm, so {importance!r} says nothing of it")
    return PruningPlan(
        model=type(model).__name__,
        wanted=f"{goal}; importance {importance!r}, {divided}, round_to {round_to}",
        removals=tuple(Removal(traced.groups[name], lowest(score, state[name])) for name, score in scores.items()),
        left=tuple((traced.left | silent).items()),
        input_shape=(1, *example_input.shape[1:]),
        macs=(round(macs(full)), round(macs(state))),
        parameters=(parameters, parameters - parameters_removed(traced.model, network, state)),
        latency_ms=None if target_latency is None else (goal.value(full), goal.value(state)),
        missed=goal.value(state) / goal.target - 1,
    )


@dataclasses.dataclass(frozen=True)
class Goal:
    """What to come down to.

    Attributes:
        form: how to print a value.
        target: the value to reach.
        value: of a state.
    """

    form: str
    target: float
    value: Callable[[State], float]

    def __str__(self) -> str:
        return f"target {self.form.format(self.target)}"


def _macs(model: nn.Module, example_input: Tensor, network: Network) -> Callable[[State], float]:
    """Return a function that gives the MACs of a state: its layers', and a constant for all else (attention)."""
    of_layers = functools.partial(network.total, macs_cost(model, example_input))
    elsewhere = count_macs(model, example_input) - of_layers(dict.fromkeys(network.groups, 0))
    return lambda state: elsewhere + of_layers(state)


def _path(
    scope: str, scores: Mapping[str, Tensor], network: Network, *,
    cost: LayerCost, round_to: int, sensitivity: pd.DataFrame | None,
) -> Path | Iterator[State]:  # fmt: skip
    if scope == "cost":
        return cheapest_cuts(_options(scores, network, sensitivity, round_to), network, cost)
    return Ranking(scores, round_to) if scope == "global" else SameShare(scores, round_to)


def _options(
    scores: Mapping[str, Tensor], network: Network, sensitivity: pd.DataFrame | None, round_to: int
) -> dict[str, Options]:
    """Return the cuts that each group is open to, at the price of importance or of what was measured."""
    if sensitivity is None:
        return {name: ByImportance(score, round_to, len(network.touched[name])) for name, score in scores.items()}
    rows = {name: sensitivity[sensitivity["layer"] == name] for name in scores}
    for name, score in scores.items():
        if set(rows[name]["channels"]) != {len(score)}:
            raise ValueError(
                f"the sensitivity has no row for {name} with {len(score)} channels: it belongs to another model; "
                "measure this one with pruning_sensitivity"
            )
    return {
        name: ByMeasurement(len(score), round_to, dict(zip(of.channels - of.kept, of.divergence, strict=True)))
        for (name, score), of in zip(scores.items(), rows.values(), strict=True)
    }


def _choose(goal: Goal, path: Path | Iterator[State], least_kept: str) -> State:
    if isinstance(path, Path):
        now, least, state = path[0], path[len(path) - 1], nearest_state(path, goal.value, goal.target)
    else:
        now = next(path)
        state, least = first_near(itertools.chain([now], path), goal.value, goal.target)
    if goal.value(now) < goal.target:
        raise ValueError(
            f"the {goal} is more than what the model has, {goal.form.format(goal.value(now))}: nothing would be removed"
        )
    if state is None:
        raise ValueError(
            f"the {goal} cannot be reached: every group keeps at least {least_kept}, and the nearest "
            f"that can be reached is {goal.form.format(goal.value(least))}"
        )
    return state


def _check_options(
    ratio: float | None, target_macs: int | None, target_latency: float | None, round_to: int, scope: str | None
) -> None:
    targets = {"ratio": ratio, "target_macs": target_macs, "target_latency": target_latency}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(targets)}; given: {' and '.join(given) or 'none'}")
    if ratio is not None:
        check_fraction("ratio", ratio)
    if target_macs is not None and not target_macs >= 1:
        raise ValueError(f"target_macs is {target_macs}; give a number of multiply-accumulates, such as 20_000_000")
    if target_latency is not None and not target_latency > 0:
        raise ValueError(f"target_latency is {target_latency}; give milliseconds above 0")
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is {round_to!r}; give 1, or the block size of the kernels: 8 or 16")
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; choose one of {', '.join(SCOPES)}")
    if target_latency is not None and scope not in {None, "cost"}:
        raise ValueError(
            f"scope is {scope!r}, and target_latency goes with scope 'cost' only: measured time does not fall with "
            "every channel, so that a ranking cannot be searched for it"
        )
