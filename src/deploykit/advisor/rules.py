"""The course's decision guide: questions in a fixed order, and what a yes to each of them leads to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploykit.advisor import steps
from deploykit.advisor.avoid import avoided
from deploykit.advisor.case import Case
from deploykit.advisor.plan import Plan, Question, Step
from deploykit.advisor.situation import Constraints, NetworkProfile


@dataclass(frozen=True)
class Rule:
    """A question, what a yes leads to in a few words, how it is answered, and the step."""

    question: str
    leads_to: str
    holds: Callable[[Case], bool]
    step: Callable[[Case], Step]


def _leaves_framework(case: Case) -> bool:
    return not case.met and case.wanted.target != "nvidia" and case.numbers != "dynamic int8"


# In the order of the steps: what damages, what mends, and at the end what cannot be mended any more.
RULES = (
    Rule("Before anything else", "keep a baseline", lambda _: True, steps.baseline),
    Rule(
        "Points to lose, images, and minutes to train?",
        "make the network smaller",
        lambda case: case.shrinks,
        steps.shrink,
    ),
    Rule("Was it made smaller?", "teach it by the original", lambda case: case.shrinks, steps.teach),
    Rule(
        "Has int8 lost too much, and may it train?",
        "train through the rounding",
        lambda case: case.numbers == "trained int8",
        steps.train_through_rounding,
    ),
    Rule("Can it leave PyTorch, on a CPU?", "into a runtime", _leaves_framework, steps.enter_runtime),
    Rule(
        "Is it for an NVIDIA GPU?",
        "into TensorRT",
        lambda case: not case.met and case.wanted.target == "nvidia",
        steps.enter_tensorrt,
    ),
    Rule(
        "Does overhead bind, and may requests wait?",
        "larger batches",
        lambda case: case.can_batch,
        steps.larger_batches,
    ),
    Rule(
        "Points to lose, and images to calibrate with?",
        "static int8",
        lambda case: case.numbers == "static int8",
        steps.static_int8,
    ),
    Rule(
        "Was it trained through the rounding?",
        "convert to int8",
        lambda case: case.numbers == "trained int8",
        steps.trained_int8,
    ),
    Rule(
        "Recurrent, or matrices without images?",
        "dynamic int8",
        lambda case: case.numbers == "dynamic int8",
        steps.dynamic_int8,
    ),
    Rule("No int8, but bfloat16 instructions?", "bfloat16", lambda case: case.numbers == "bf16", steps.bf16),
    Rule("Points to lose, on a GPU?", "float16", lambda case: case.numbers == "float16", steps.float16),
)


def advise(profile: NetworkProfile, constraints: Constraints) -> Plan:
    """Return what to do, in order, with reasons, and what not to do.

    The answer depends on nothing but what is given, the recorded runs, and the verdicts in this machine's ledger, from
    which the expected effects are taken.

    Args:
        profile: what is known of the network.
        constraints: what is demanded, on which processor, with which means.

    Raises:
        ValueError: more accuracy may be lost than there is.
    """
    if profile.accuracy is not None and constraints.budget_points >= 100 * profile.accuracy:
        raise ValueError(
            f"budget_points is {constraints.budget_points:g}, and the network has {100 * profile.accuracy:.1f} points "
            "to lose in all; give what your users would not notice, such as 1"
        )
    case = Case(profile, constraints)
    taken = [(rule, rule.holds(case)) for rule in RULES]
    return Plan(
        steps=tuple(rule.step(case) for rule, holds in taken if holds),
        avoided=avoided(case),
        questions=tuple(Question(rule.question, rule.leads_to, holds) for rule, holds in taken),
        form=case.form,
        remark=_remark(case),
    )


def _remark(case: Case) -> str:
    if case.met:
        return "What is demanded is met already: deploy what there is, and keep measuring."
    wanted, found = case.wanted.latency_ms, case.profile.latency_ms
    if wanted is not None and found is not None:
        return f"The demand is {found / wanted:.1f}x the speed of what was measured: stop at the step that reaches it."
    if case.wanted.target in {"arm", "nvidia", "x86"}:
        return f"The project has measured nothing on {case.wanted.target}: these are rules, and you have to measure."
    return ""
