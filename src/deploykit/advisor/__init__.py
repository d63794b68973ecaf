"""What to do first, for this network, on that processor, with those means: the course's rules, applied."""

from deploykit.advisor.effects import Effect
from deploykit.advisor.plan import Avoided, Plan, Question, Step
from deploykit.advisor.rules import advise
from deploykit.advisor.situation import Constraints, NetworkProfile, profile_network, target_here

__all__ = [
    "Avoided",
    "Constraints",
    "Effect",
    "NetworkProfile",
    "Plan",
    "Question",
    "Step",
    "advise",
    "profile_network",
    "target_here",
]
