"""Advice as a thing that can be printed, drawn and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.advisor.effects import Effect
from deploykit.text import escape_markdown

if TYPE_CHECKING:
    import pandas as pd

# In which order: what breaks first, what can still learn after it, what cannot learn any more at the end (notebook 13).
STAGES = ("measure", "damage", "learn", "runtime", "numbers")


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        stage: one of ``STAGES``.
        what: the step, as an order.
        why: the reason, in one sentence.
        effects: what to expect of it.
        notebook: two digits.
        function: does it: a dotted name.
        arguments: of the call, as one writes them.
    """

    stage: str
    what: str
    why: str
    effects: tuple[Effect, ...]
    notebook: str
    function: str
    arguments: str

    @property
    def call(self) -> str:
        """The call, ready to be typed after an import."""
        return f"{self.function.rsplit('.', 1)[-1]}({self.arguments})"


@dataclass(frozen=True)
class Avoided:
    """What is not worth trying here, the reason, and where the course shows it."""

    what: str
    why: str
    source: str
    notebook: str


@dataclass(frozen=True)
class Question:
    """A question of the guide, what a yes leads to, and the answer here."""

    text: str
    leads_to: str
    answer: bool


@dataclass(frozen=True, repr=False)
class Plan:
    """What to do, in order, and what not.

    Attributes:
        steps: the first one first.
        avoided: what is often advised and does not help here.
        questions: all questions of the guide with their answers, in its order.
        form: what is deployed in the end, in the words of the recorded runs: "OpenVINO, int8 NNCF".
        remark: what is to be said about the demand; may be empty.
    """

    steps: tuple[Step, ...]
    avoided: tuple[Avoided, ...]
    questions: tuple[Question, ...]
    form: str
    remark: str = ""

    def table(self) -> pd.DataFrame:
        """Return ``step, why, expected, notebook, call``, numbered from 1."""
        import pandas as pd

        rows = [
            {
                "step": step.what,
                "why": step.why,
                "expected": "; ".join(map(str, step.effects)),
                "notebook": step.notebook,
                "call": step.call,
            }
            for step in self.steps
        ]
        return pd.DataFrame(rows, index=range(1, len(rows) + 1))

    def __str__(self) -> str:
        lines = [self.remark] if self.remark else []
        for number, step in enumerate(self.steps, start=1):
            lines += [f"{number}. {step.what} (notebook {step.notebook})", f"   {step.why}"]
            lines += [f"   Expect {effect}." for effect in step.effects]
            lines.append(f"   {step.function}({step.arguments})")
        lines += [f"Deployed: {self.form}.", "Not here:"]
        lines += [f"- {item.what}: {item.why} ({item.source}, notebook {item.notebook})" for item in self.avoided]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        parts = [f"*{escape_markdown(self.remark)}*\n"] if self.remark else []
        for number, step in enumerate(self.steps, start=1):
            expected = "".join(f"\n   - *expect* {escape_markdown(effect)}" for effect in step.effects)
            parts.append(
                f"{number}. **{escape_markdown(step.what)}** (notebook {step.notebook}). {escape_markdown(step.why)}"
                f"{expected}\n   - `{step.call}`"
            )
        parts.append(f"\n**Deployed in the end:** {escape_markdown(self.form)}\n\n**Not here:**\n")
        parts += [
            f"- {escape_markdown(item.what)}: {escape_markdown(item.why)} *({escape_markdown(item.source)}, "
            f"notebook {item.notebook})*"
            for item in self.avoided
        ]
        return "\n".join(parts)
