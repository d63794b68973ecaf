"""The function for pasting reaches its target, leaves its argument alone, and returns nothing that is not smaller."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual, images, state

from deploykit.cost import macs
from deploykit.pruning.one_function import prune_to_macs

EXAMPLE = images(1)


@pytest.fixture
def model() -> SmallResidual:
    """A stem, a residual block, a classifier."""
    torch.manual_seed(0)
    return SmallResidual().eval()


def test_channels_are_gone_and_the_shortcut_still_fits(model):
    """At most the target is left, what is added has one width, and the classifier answers for all classes."""
    pruned = prune_to_macs(model, EXAMPLE, macs(model, EXAMPLE) // 2, keep=(model.fc,))

    assert macs(pruned, EXAMPLE) <= macs(model, EXAMPLE) // 2
    assert pruned.stem.out_channels == pruned.conv2.out_channels == pruned.fc.in_features < 8
    assert pruned(images(3)).shape == (3, 4)


def test_the_model_is_not_changed(model):
    """Neither weights nor shapes."""
    before = state(model)

    prune_to_macs(model, EXAMPLE, macs(model, EXAMPLE) // 2, keep=(model.fc,))

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["too low", "frozen"])
def test_a_target_that_is_not_reached_is_an_error(model, what):
    """Torch-Pruning returns without a word; this does not."""
    model.requires_grad_(what != "frozen")
    target = 10 if what == "too low" else macs(model, EXAMPLE) // 2

    with pytest.raises(ValueError, match=rf"[\d,]+ multiply-accumulates are left and {target:,} were wanted"):
        prune_to_macs(model, EXAMPLE, target, keep=(model.fc,))
