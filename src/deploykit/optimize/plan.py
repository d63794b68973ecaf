"""What can be tried to make a network faster, in which order, and what share of the time each step may take."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
BUDGET_S = 600.0
# Of the budget; making the artifacts gets the rest. Past a minute an interval gets little narrower.
TIMING, MOST_TIMING_S, JUDGING, TEACHING = 0.2, 60.0, 0.1, 0.5
PROFILING, MOST_PROFILING_S = 0.02, 5.0


@dataclass(frozen=True)
class Form:
    """A runtime and a precision, and why they may help."""

    runtime: str
    precision: str
    why: str

    @property
    def name(self) -> str:
        """What it is called in the plan, the ledger and ``only`` and ``skip``."""
        return f"{self.runtime} {self.precision}"


@dataclass(frozen=True)
class Smaller:
    """A smaller network to make of the given one, by pruning and teaching, and why it may help."""

    name: str
    why: str


FORMS = (
    Form("ONNX Runtime", "float32", "the same numbers, without Python between the operators"),
    Form("OpenVINO", "float32", "the same numbers, operators fused for this processor"),
    Form("OpenVINO", "bfloat16", "half of the bytes, where the processor has instructions for it"),
    Form("ONNX Runtime", "int8", "a quarter of the bytes, integer kernels; calibrated on training images"),
    Form("OpenVINO", "int8", "a quarter of the bytes, integer kernels; calibrated on training images"),
)
SMALLER = (
    Smaller(
        "fewer blocks",
        "take out the residual blocks that are missed least, let the network as it was teach what is left, then try "
        "each form above",
    ),
    Smaller(
        "fewer channels",
        "halve the multiply-accumulates by narrower layers, let the network as it was teach what is left, then try "
        "each form above",
    ),
)


@dataclass(frozen=True)
class PlannedStep:
    """A line of a plan.

    Attributes:
        name: for ``only`` and ``skip``.
        why: it may help.
        seconds: of the budget.
    """

    name: str
    why: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What :func:`~.run.optimize` tries: forms of the network, and smaller networks in the same forms.

    Attributes:
        forms: runtimes and precisions.
        smaller: networks to make.
        as_given: whether the network itself is tried in these forms.
        budget_s: seconds for all of it.
    """

    forms: tuple[Form, ...]
    smaller: tuple[Smaller, ...]
    as_given: bool = True
    budget_s: float = BUDGET_S

    @property
    def timing_s(self) -> float:
        """Seconds for the interleaved timing."""
        return min(TIMING * self.budget_s, MOST_TIMING_S)

    @property
    def profiling_s(self) -> float:
        """Seconds for finding what the network waits for."""
        return min(PROFILING * self.budget_s, MOST_PROFILING_S)

    @property
    def judging_s(self) -> float:
        """Seconds for accuracies on validation images."""
        return JUDGING * self.budget_s

    @property
    def teaching_s(self) -> float:
        """Seconds for the fine-tuning of one smaller network."""
        return TEACHING * self.budget_s / len(self.smaller) if self.smaller else 0.0

    @property
    def making_s(self) -> float:
        """Seconds for making artifacts of all forms."""
        others_s = self.profiling_s + self.timing_s + self.judging_s
        return self.budget_s - others_s - self.teaching_s * len(self.smaller)

    @property
    def networks(self) -> int:
        """How many networks are tried in each form."""
        return self.as_given + len(self.smaller)

    def steps(self) -> tuple[PlannedStep, ...]:
        """Return the lines of the plan, in the order in which they are done."""
        a_network = self.making_s / self.networks
        forms = [PlannedStep(form.name, form.why, a_network / len(self.forms)) for form in self.forms]
        smaller = [PlannedStep(step.name, step.why, self.teaching_s + a_network) for step in self.smaller]
        return (
            PlannedStep("profile", "what the network waits for as it is, and in which layers", self.profiling_s),
            *(forms if self.as_given else ()),
            *smaller,
            PlannedStep("choose", "accuracy of each on validation images; no test image is seen", self.judging_s),
            PlannedStep("time", "all in turns, so that a drifting machine hits them alike", self.timing_s),
        )


def plan_optimization(
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    budget_s: float = BUDGET_S,
    runtimes: Collection[str] = (),
) -> Plan:
    """Return what :func:`~.run.optimize` would try, and try nothing.

    Args:
        only: names of steps; all if there are none. A smaller network that is named without a form is tried in all.
        skip: names of steps to leave out.
        budget_s: seconds for all of it. Timing gets a fifth of them and at most a minute, accuracies a tenth,
            fine-tuning half, making artifacts the rest; of a step that takes more, fine-tuning pays.
        runtimes: that there are where it has to run; all if none is named.

    Raises:
        ValueError: a name that no step has, nothing is left to try, or a budget that is no time.
    """
    if not 0 < budget_s < math.inf:
        raise ValueError(f"the budget is {budget_s} seconds; give a time above 0")
    forms = tuple(form for form in FORMS if not runtimes or form.runtime in runtimes)
    names = [*(form.name for form in forms), *(step.name for step in SMALLER)]
    if unknown := [name for name in (*only, *skip) if name not in names]:
        raise ValueError(f"there is no step {unknown[0]!r}; there are {', '.join(map(repr, names))}")
    as_given = not only or any(form.name in only for form in forms)
    chosen = tuple(form for form in forms if form.name not in skip and (form.name in only or not as_given or not only))
    smaller = tuple(step for step in SMALLER if step.name not in skip and (not only or step.name in only))
    if not chosen or not (as_given or smaller):
        raise ValueError("every form is skipped, and a network has to run in one; leave at least one to try")
    return Plan(chosen, smaller, as_given, budget_s)


def parse_budget(text: str) -> float:
    """Return the seconds of "10min", "90s" or "1.5h".

    Raises:
        ValueError: it is no number with one of these units.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise ValueError(f"the budget is {text!r}; write a time above 0 with its unit: 90s, 10min or 1.5h")
    return float(found[1]) * UNITS[found[2]]


def duration(seconds: float) -> str:
    """Write a time as people say it: "45 s", "2 min", "1.5 h"."""
    if seconds < 90:  # noqa: PLR2004 - up to there seconds are easier to grasp
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.2g} min" if seconds < 90 * 60 else f"{seconds / 3600:.2g} h"
