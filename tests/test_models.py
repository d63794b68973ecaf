"""The networks are the literature's, to the parameter and the multiply-accumulate."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deploykit.cost import macs, macs_by_layer, parameters
from deploykit.models import (
    ARCHITECTURES,
    MLPMixer,
    MLPMixerConfig,
    Network,
    ResNet,
    ResNetConfig,
    RowLSTM,
    RowLSTMConfig,
    build,
    resnet,
    resnet_like,
)

IMAGES = torch.zeros(2, 3, 32, 32)


class TestResNet:
    @pytest.mark.parametrize(("depth", "expected"), [(20, 272_474), (56, 855_770)])
    def test_parameter_counts_are_the_literatures(self, depth: int, expected: int) -> None:
        """He et al. 2016, table 6 (0.27 M, 0.85 M), plus the 1x1 shortcuts."""
        assert parameters(resnet(depth)) == expected

    @pytest.mark.parametrize(("depth", "expected"), [(20, 40.8e6), (56, 125.5e6)])
    def test_multiply_accumulates_are_the_literatures(self, depth: int, expected: float) -> None:
        """Papers say 41 M and 126 M."""
        assert macs(resnet(depth), IMAGES) == pytest.approx(expected, rel=5e-3)

    @pytest.mark.parametrize("depth", [8, 20, 32, 56])
    def test_depth_counts_layers_as_papers_do(self, depth: int) -> None:
        """Two layers a block, the first convolution and the classifier."""
        assert resnet(depth).config.depth == depth

    def test_width_four_has_sixteen_times_the_weights_of_a_block(self) -> None:
        """Width multiplies input and output channels."""
        narrow, wide = (resnet(20, width=w).blocks[0].conv1.weight.numel() for w in (1, 4))

        assert wide == 16 * narrow

    def test_a_pruned_network_is_described_by_its_widths(self) -> None:
        """Uneven inner widths and a missing block change the count as worked out by hand."""
        config = ResNetConfig(stage_widths=(4, 8), block_widths=((3,), (5, 2)), classes=3)
        stem = 3 * 4 * 9 + 2 * 4
        first = (4 * 3 * 9 + 2 * 3) + (3 * 4 * 9 + 2 * 4)
        second = (4 * 5 * 9 + 2 * 5) + (5 * 8 * 9 + 2 * 8) + (4 * 8 + 2 * 8)
        third = (8 * 2 * 9 + 2 * 2) + (2 * 8 * 9 + 2 * 8)

        assert parameters(ResNet(config)) == stem + first + second + third + (8 * 3 + 3)
        assert ResNet(config)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)

    def test_only_the_first_stage_can_do_without_blocks(self) -> None:
        """It halves nothing; the depth counts what is there, and the size of the maps is that of the later stages."""
        config = ResNetConfig(stage_widths=(4, 8), block_widths=((), (8, 8)), classes=3)
        model = ResNet(config)

        assert config.depth == 6
        assert model.blocks(model.conv(torch.zeros(1, 3, 32, 32))).shape == (1, 8, 16, 16)
        with pytest.raises(ValueError, match="stages after the first need a block"):
            ResNetConfig(stage_widths=(4, 8), block_widths=((4,), ()))

    def test_a_depth_outside_the_family_is_refused(self) -> None:
        """The message lists the depths there are."""
        with pytest.raises(ValueError, match=r"depth 21 does not exist in this family; use 6n \+ 2: 8, 14, 20"):
            resnet(21)

    def test_a_width_of_zero_channels_is_refused(self) -> None:
        """A layer without channels would train to nothing."""
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            resnet(8, width=0.01)


class TestRowLSTM:
    def test_its_size_is_the_formulas(self) -> None:
        """Two layers of four gates, each with an input, a state and, in torch, two biases; then ten logits."""
        first, second = 4 * 256 * (96 + 256), 4 * 256 * (256 + 256)
        model = build("row-lstm")

        assert parameters(model) == first + second + 2 * 2 * 4 * 256 + (256 * 10 + 10)
        assert macs_by_layer(model, IMAGES) == {
            "": 32 * (first + second) + 256 * 10,
            "lstm": 32 * (first + second),
            "fc": 256 * 10,
        }

    def test_it_reads_rows_from_top_to_bottom(self) -> None:
        """The state after the first row depends on that row only; a later one changes what follows."""
        model, images = build("row-lstm"), torch.randn(1, 3, 32, 32)
        seen: list[torch.Tensor] = []
        model.lstm.register_forward_hook(lambda _, rows, states: seen.extend((rows[0], states[0])))
        changed = images.clone()
        changed[:, :, 20] += 1
        model(images)
        model(changed)
        rows, states, _, later = seen

        assert_close(rows[0, 5], images[0, :, 5].T.flatten(), rtol=0, atol=0)
        assert [torch.equal(states[0, row], later[0, row]) for row in (0, 19, 20, 31)] == [True, True, False, False]

    def test_it_is_one_plain_lstm(self) -> None:
        """Dynamic quantization and exporters know ``nn.LSTM``, batch first, and nothing cleverer."""
        model = build("row-lstm")

        assert [type(module) for module in model.children()] == [nn.LSTM, nn.Linear]
        assert model.lstm.batch_first


class TestMLPMixer:
    def test_its_size_is_the_formulas(self) -> None:
        """64 patches of 48 numbers; in each of 4 layers an MLP over patches and one over channels, and two norms."""
        patches, width, tokens, channels = 64, 192, 96, 384
        mlps = 2 * patches * tokens + 2 * width * channels
        biases_and_norms = (tokens + patches) + (channels + width) + 2 * 2 * width
        model = build("mlp-mixer")

        assert parameters(model) == (48 + 1) * width + 4 * (mlps + biases_and_norms) + 2 * width + (width + 1) * 10
        assert macs(model, IMAGES) == (
            patches * 48 * width + 4 * (width * 2 * patches * tokens + patches * 2 * width * channels) + width * 10
        )

    def test_linear_layers_do_all_its_work(self) -> None:
        """Not one multiply-accumulate is left for anything that dynamic quantization does not replace."""
        model = build("mlp-mixer")
        layers = macs_by_layer(model, IMAGES)
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]

        assert sum(layers[name] for name in linear) == layers[""]

    def test_a_patch_is_a_square_of_the_image(self) -> None:
        """Patch 9 of 8 x 8 starts at row 4, column 4."""
        images = torch.randn(2, 3, 32, 32)
        patches = build("mlp-mixer").cut(images)

        assert patches.shape == (2, 64, 48)
        assert_close(patches[1, 9].view(4, 4, 3), images[1, :, 4:8, 4:8].permute(1, 2, 0), rtol=0, atol=0)

    def test_only_the_token_mlp_lets_patches_meet(self) -> None:
        """With it silenced, a change in one patch stays there; with it, every patch hears of it."""
        model = MLPMixer(MLPMixerConfig(depth=1))
        patches, layer = torch.randn(1, 64, 192), model.layers[0]
        changed = patches.clone()
        changed[0, 7] += torch.randn(192)

        assert ((layer(changed) - layer(patches)).abs().amax(dim=2) > 0).all()
        nn.init.zeros_(layer.token_mlp[2].weight)
        assert ((layer(changed) - layer(patches)).abs().amax(dim=2) > 0).nonzero()[:, 1].tolist() == [7]

    def test_a_patch_that_does_not_tile_is_refused(self) -> None:
        """A rest of two pixels would be cut off silently."""
        with pytest.raises(ValueError, match="patch is 5; it must divide the 32 pixels of a side"):
            MLPMixerConfig(patch=5)


class TestBuild:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_name_builds_a_network(self, name: str) -> None:
        """Seven names; as many logits as classes were asked for, for contiguous images and channels_last alike."""
        torch.manual_seed(0)
        model, images = build(name, classes=3).eval(), torch.randn(2, 3, 32, 32)
        logits = model(images)

        assert len(ARCHITECTURES) == 7
        assert logits.shape == (2, 3)
        assert_close(model(images.to(memory_format=torch.channels_last)), logits, rtol=1e-3, atol=1e-3)

    def test_a_name_says_depth_and_width(self) -> None:
        """An "x4" is four times the channels; a description gives them all."""
        assert build("resnet20x4").config.description == "a ResNet-20 with 64, 128 and 256 channels"
        assert build("resnet56").config == resnet(56).config

    def test_another_name_is_refused(self) -> None:
        """The message lists the names there are."""
        with pytest.raises(ValueError, match=r"no network 'resnet50'; use resnet8, resnet20, .*, mlp-mixer, or"):
            build("resnet50")

    @pytest.mark.parametrize("name", ["row-lstm", "mlp-mixer"])
    @pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (3, 32, 32)])
    def test_images_of_another_size_are_refused(self, name: str, shape: tuple[int, ...]) -> None:
        """Their layers are made for 32 x 32 pixels; the message says what was given and what to do."""
        message = r"reads images of one size, float32 \[N, 3, 32, 32\], and was given \[.*\]; resize them to 32x32"

        with pytest.raises(ValueError, match=message):
            build(name)(torch.zeros(shape))

    @pytest.mark.parametrize("config", [RowLSTMConfig, MLPMixerConfig])
    @pytest.mark.parametrize("classes", [0, 2.5, "10"])
    def test_impossible_sizes_are_refused(self, config: type, classes: object) -> None:
        """Zero, fractions and text."""
        with pytest.raises(ValueError, match="classes must be whole numbers of at least 1"):
            config(classes=classes)

    @pytest.mark.parametrize("name", ["row-lstm", "mlp-mixer"])
    def test_it_can_be_exported_for_any_batch(self, name: str) -> None:
        """Checks and reshapes survive torch.export with a dynamic batch, the way into every runtime."""
        model, images = build(name).eval(), torch.randn(5, 3, 32, 32)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},)).module()

        assert_close(exported(images), model(images))

    @pytest.mark.parametrize("network", [resnet(8), RowLSTM(RowLSTMConfig(32)), MLPMixer(MLPMixerConfig(depth=1))])
    def test_it_learns_eight_images_by_heart(self, network: Network) -> None:
        """Gradients reach every parameter, and forty steps suffice."""
        torch.manual_seed(0)
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()

        assert all(parameter.grad is not None for parameter in network.parameters())
        assert loss < 0.3


class TestResNetLike:
    @pytest.fixture
    def shrunk(self) -> ResNet:
        """A ResNet with two blocks a stage of which tensors have gone, as after pruning; its config is out of date."""
        torch.manual_seed(0)
        model = ResNet(ResNetConfig((4, 8), ((3, 4), (5, 2)), classes=3))
        smaller = ResNet(ResNetConfig((4, 6), ((2, 4), (5, 1)), classes=3)).eval()
        for name, module in smaller.named_children():
            setattr(model, name, module)
        return model.eval()

    def test_the_configuration_is_read_off_the_tensors(self, shrunk: ResNet) -> None:
        """Same logits, and a description that is right."""
        found, images = resnet_like(shrunk), torch.randn(2, 3, 32, 32)

        assert found.config == ResNetConfig((4, 6), ((2, 4), (5, 1)), classes=3)
        assert not found.training
        assert_close(found(images), shrunk(images), rtol=0, atol=0)

    def test_replaced_blocks_are_left_out(self, shrunk: ResNet) -> None:
        """An identity computes nothing."""
        shrunk.blocks[0] = shrunk.blocks[3] = nn.Identity()
        found, images = resnet_like(shrunk), torch.randn(2, 3, 32, 32)

        assert found.config == ResNetConfig((4, 6), ((4,), (5,)), classes=3)
        assert_close(found(images), shrunk(images), rtol=0, atol=0)

    def test_the_first_stage_can_lose_all_blocks(self, shrunk: ResNet) -> None:
        """Its channels are then those of the first convolution; the blocks after it are still the second stage's."""
        shrunk.blocks[0] = shrunk.blocks[1] = nn.Identity()
        found, images = resnet_like(shrunk), torch.randn(2, 3, 32, 32)

        assert found.config == ResNetConfig((4, 6), ((), (5, 1)), classes=3)
        assert_close(found(images), shrunk(images), rtol=0, atol=0)

    def test_the_network_given_is_not_shared(self, shrunk: ResNet) -> None:
        """Training one leaves the other alone."""
        nn.init.zeros_(resnet_like(shrunk).fc.weight)

        assert shrunk.fc.weight.any()

    def test_what_fits_no_configuration(self, shrunk: ResNet) -> None:
        """Another kind of block, a stage without one, widths that do not agree."""
        shrunk.fc = nn.Linear(5, 3)
        with pytest.raises(ValueError, match="the tensors of this network fit no configuration of a ResNet"):
            resnet_like(shrunk)
        shrunk.blocks[0] = nn.ReLU()
        with pytest.raises(ValueError, match=r"blocks\.0 is a ReLU; it must be a BasicBlock or an nn\.Identity"):
            resnet_like(shrunk)
        shrunk.blocks[0] = shrunk.blocks[2] = shrunk.blocks[3] = nn.Identity()
        with pytest.raises(ValueError, match="a stage has no block left"):
            resnet_like(shrunk)
