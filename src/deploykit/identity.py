"""What makes two trainings the same one, in words that a person can compare.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def describe(value: object) -> Any:
    """Name an argument by plain values that are the same in the next process, for a run's key.

    Numbers, strings and tuples stand for themselves; a function for its qualified name; an object that prints its
    settings (a frozen dataclass does) for what it prints, any other for its type.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value)  # NumPy's is a float too, and would be written as an object
    if isinstance(value, tuple | list):
        return tuple(describe(item) for item in value)
    if isinstance(value, functools.partial):
        given = [*map(describe, value.args), *(f"{name}={describe(item)}" for name, item in value.keywords.items())]
        return f"{describe(value.func)}({', '.join(map(str, given))})"
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} of {sum(p.numel() for p in value.parameters()):,} parameters"
    named = value if hasattr(value, "__qualname__") else type(value)
    printed = repr(value)
    return f"{named.__module__}.{named.__qualname__}" if " at 0x" in printed or named is value else printed


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's class and hyperparameters; one that differs between parameter groups is a tuple.

    The learning rate is called ``peak_lr``: what it is before a schedule has touched it.
    """
    groups = optimizer.param_groups
    settings: dict[str, Any] = {"optimizer": type(optimizer).__qualname__}
    for name in sorted(set().union(*groups) - {"params", "param_names"}):
        values = [describe(group.get(name)) for group in groups]
        alike = all(value == values[0] for value in values)
        settings["peak_lr" if name == "lr" else name] = values[0] if alike else tuple(values)
    return settings


def differences(other: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say which entries differ, "peak_lr 0.1, here 0.4; epochs 30, here 20", or nothing."""
    names = sorted(name for name in other.keys() | here.keys() if other.get(name) != here.get(name))
    return "; ".join(f"{name} {other.get(name, 'unknown')}, here {here.get(name, 'unknown')}" for name in names)
