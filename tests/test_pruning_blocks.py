"""Whole blocks: which an identity can replace, which matter least."""

from __future__ import annotations

import pytest
import torch
from small_residual import SmallResidual, images
from torch import Tensor, nn

from deploykit.cost import macs
from deploykit.models import ResNet, ResNetConfig
from deploykit.pruning.blocks import block_importance, prune_blocks, removable_blocks

PICTURES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small_resnet() -> ResNet:
    """Two stages of two blocks; batch norms as after training."""
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(stage_widths=(4, 6), block_widths=((3, 5), (2, 4)), classes=5)).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    return model


class Branch(nn.Module):
    """A residual block and a squeeze-and-excitation, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()
        self.squeeze = Squeeze()

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        return self.squeeze(self.inner(features))


class Residual(nn.Module):
    """Adds a 1x1 convolution of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape; the addition is in place, as many networks do it."""
        features += self.conv(features)
        return features


class Around(nn.Module):
    """A residual block around another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = Residual(), nn.Conv2d(3, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        return features + self.conv(self.inner(features.clone()))


class Squeeze(nn.Module):
    """Scales channels by what a layer makes of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(3, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Keep the shape."""
        return features * self.fc(features.mean((2, 3), keepdim=True)).sigmoid()


class TestRemovable:
    def test_blocks_without_a_projection(self):
        """The first block of the second stage changes the shape; stages and single layers are no blocks."""
        assert removable_blocks(small_resnet(), PICTURES) == ("blocks.0", "blocks.1", "blocks.3")

    def test_a_residual_block_and_nothing_else(self):
        """A stack of layers and a squeeze-and-excitation keep the shape, but an identity could not take their place."""
        model = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), Branch(), nn.Sequential(Residual(), nn.ReLU()), nn.Flatten()
        )

        assert removable_blocks(model, PICTURES) == ("1.inner", "2.0")

    def test_the_outermost(self):
        """A residual block within a residual block goes with it."""
        model = nn.Sequential(nn.Conv2d(3, 3, 1), Around(), nn.Flatten())

        assert removable_blocks(model, PICTURES) == ("1",)

    def test_the_model_is_not_changed(self):
        """Its weights are zeroed in copies only."""
        model = small_resnet().train()
        before = model(PICTURES)
        removable_blocks(model, PICTURES)

        assert model.training
        assert torch.equal(model(PICTURES), before)


class TestRemoval:
    def test_a_block_hands_on_its_input(self):
        """The network computes without it, and its MACs are gone: 2 convolutions of 4 x 3 x 9 on 64 pixels."""
        model = small_resnet()
        pruned = prune_blocks(model, ["blocks.0"], example_input=PICTURES)
        start = model.relu(model.bn(model.conv(PICTURES)))
        rest = model.fc(model.blocks[1:](start).mean((2, 3)))

        torch.testing.assert_close(pruned(PICTURES), rest)
        assert macs(model, PICTURES) - macs(pruned, PICTURES) == 2 * 4 * 3 * 9 * 64
        assert isinstance(model.blocks[0], type(model.blocks[1]))

    def test_several_blocks_and_the_mode(self):
        """All named ones go; a training model stays one."""
        pruned = prune_blocks(small_resnet().train(), ["blocks.0", "blocks.3"], example_input=PICTURES)

        assert [type(block).__name__ for block in pruned.blocks] == ["Identity", "BasicBlock", "BasicBlock", "Identity"]
        assert all(module.training for module in pruned.modules())

    @pytest.mark.parametrize(
        ("names", "error", "message"),
        [
            (
                [],
                ValueError,
                r"no block is named, so nothing would be removed; there are blocks\.0, blocks\.1, blocks\.3",
            ),
            (
                ["blocks.2"],
                ValueError,
                r"blocks\.2 cannot be replaced by an identity: .* those are blocks\.0, blocks\.1",
            ),
            (["nothing"], ValueError, r"nothing cannot be replaced by an identity"),
            ("blocks.0", TypeError, r"names is the text 'blocks\.0'; give a list of names: \['blocks\.0'\]"),
        ],
    )
    def test_refused(self, names, error, message):
        """With what could be removed."""
        with pytest.raises(error, match=message):
            prune_blocks(small_resnet(), names, example_input=PICTURES)


class TestImportance:
    def test_a_block_that_adds_nothing_comes_first(self):
        """With its last norm at zero, no answer changes without it."""
        model = small_resnet()
        model.blocks[3].bn2.weight.data.zero_()
        model.blocks[3].bn2.bias.data.zero_()
        table = block_importance(model, [PICTURES], example_input=PICTURES)

        assert table.block[0] == "blocks.3"
        assert table.agreement[0] == 1.0
        assert table.agreement.is_monotonic_decreasing
        assert table.macs_share.max() < 0.5

    def test_agreement_is_a_share_of_images(self):
        """Worked out with the pruned model."""
        model = small_resnet()
        pairs = [(PICTURES, torch.zeros(16, dtype=torch.int64))]
        table = block_importance(model, pairs, example_input=PICTURES).set_index("block")
        pruned = prune_blocks(model, ["blocks.1"], example_input=PICTURES)
        same = (pruned(PICTURES).argmax(1) == model(PICTURES).argmax(1)).double().mean().item()

        assert table.agreement["blocks.1"] == same

    def test_refused(self):
        """The test split, no image, no block."""

        class Test(list):
            split = "test"

        with pytest.raises(ValueError, match=r"block_importance was given the test split"):
            block_importance(small_resnet(), Test(), example_input=PICTURES)
        with pytest.raises(ValueError, match=r"block_importance got no image"):
            block_importance(small_resnet(), [], example_input=PICTURES)
        with pytest.raises(ValueError, match=r"SmallResidual has no residual block without a projection"):
            block_importance(SmallResidual(), [images(2)], example_input=images(2))
