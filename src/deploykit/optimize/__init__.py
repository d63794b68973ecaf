"""``deploykit optimize``: a network in its fastest form that keeps its accuracy, in runtimes and by pruning."""

from deploykit.optimize.choice import choose
from deploykit.optimize.plan import FORMS, SMALLER, Form, Plan, Smaller, parse_budget, plan_optimization
from deploykit.optimize.result import Optimized
from deploykit.optimize.run import optimize

__all__ = [
    "FORMS",
    "SMALLER",
    "Form",
    "Optimized",
    "Plan",
    "Smaller",
    "choose",
    "optimize",
    "parse_budget",
    "plan_optimization",
]
