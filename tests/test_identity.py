"""A training is described by plain values that the next process finds the same."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.identity import describe, differences, optimizer_settings
from deploykit.training import cross_entropy


def scaled(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Some loss of a reader's."""


class Unprintable:
    """Prints its address, as objects do."""


class TestDescribe:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (3, 3),
            (0.1, 0.1),
            ([0.9, 0.999], (0.9, 0.999)),
            (cross_entropy(label_smoothing=0.1), "CrossEntropy(label_smoothing=0.1)"),
            (scaled, f"{__name__}.scaled"),
            (functools.partial(scaled, scale=0.5), f"{__name__}.scaled(scale=0.5)"),
            (Unprintable(), f"{__name__}.Unprintable"),
            (nn.Linear(30, 50), "Linear of 1,550 parameters"),
        ],
    )
    def test_it_is_a_plain_value(self, value: object, expected: object) -> None:
        """No address of an object is in it: that would be another one in the next process."""
        assert describe(value) == expected

    def test_a_number_of_numpy_is_written_as_a_number(self) -> None:
        """Else the state that holds it could not be read without running code."""
        assert type(describe(np.float64(0.1))) is float


class TestOptimizerSettings:
    def test_a_hyperparameter_that_differs_between_groups_is_a_tuple(self) -> None:
        """Two groups with one learning rate and two decays."""
        layers = nn.Linear(2, 2), nn.Linear(2, 2)
        groups = [{"params": layers[0].parameters()}, {"params": layers[1].parameters(), "weight_decay": 0.0}]
        settings = optimizer_settings(torch.optim.AdamW(groups, lr=0.3, weight_decay=0.05))

        assert settings["optimizer"] == "AdamW"
        assert (settings["peak_lr"], settings["weight_decay"], settings["betas"]) == (0.3, (0.05, 0.0), (0.9, 0.999))


class TestDifferences:
    def test_they_are_named_with_both_values(self) -> None:
        """In the order of the alphabet; what one side does not have is unknown."""
        assert differences({"b": 0.1, "a": 1, "same": 2}, {"b": 0.4, "same": 2}) == "a 1, here unknown; b 0.1, here 0.4"

    def test_alike_is_nothing(self) -> None:
        """A false string."""
        assert differences({"a": 1}, {"a": 1}) == ""
