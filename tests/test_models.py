"""The networks are the literature's, and a checkpoint loads whole or says what is wrong with it."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from deploykit.models import ResNet, ResNetConfig, load_checkpoint, load_pretrained, resnet, save_checkpoint


def parameters(model: ResNet) -> int:
    """Count the trainable numbers."""
    return sum(p.numel() for p in model.parameters())


class TestArchitecture:
    @pytest.mark.parametrize(("depth", "expected"), [(20, 272_474), (56, 855_770)])
    def test_parameter_counts_are_the_literatures(self, depth: int, expected: int) -> None:
        """He et al. 2016, table 6 (0.27 M, 0.85 M), plus the 1x1 shortcuts."""
        assert parameters(resnet(depth)) == expected

    @pytest.mark.parametrize(("depth", "expected"), [(20, 40.8e6), (56, 125.5e6)])
    def test_multiply_accumulates_are_the_literatures(self, depth: int, expected: float) -> None:
        """Papers say 41 M and 126 M."""
        with FlopCounterMode(display=False) as counter:
            resnet(depth)(torch.zeros(1, 3, 32, 32))

        assert counter.get_total_flops() / 2 == pytest.approx(expected, rel=5e-3)

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

    def test_a_depth_outside_the_family_is_refused(self) -> None:
        """The message lists the depths there are."""
        with pytest.raises(ValueError, match=r"depth 21 does not exist in this family; use 6n \+ 2: 8, 14, 20"):
            resnet(21)

    def test_a_width_of_zero_channels_is_refused(self) -> None:
        """A layer without channels would train to nothing."""
        with pytest.raises(ValueError, match="whole numbers of at least 1"):
            resnet(8, width=0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a ResNet-8."""
    torch.manual_seed(0)
    save_checkpoint(resnet(8), tmp_path / "net", card="# a card\n")
    return tmp_path / "net"


def rewrite(folder: Path, **changes: torch.Tensor) -> None:
    """Replace tensors of a checkpoint."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | changes, path)


class TestCheckpoint:
    def test_a_checkpoint_gives_back_the_same_logits(self, tmp_path: Path) -> None:
        """Odd widths and running statistics survive the round trip, bit for bit."""
        model = ResNet(ResNetConfig((4, 8), ((3,), (5, 2)), classes=7))
        model(torch.randn(16, 3, 32, 32))
        save_checkpoint(model, tmp_path, card="")
        images = torch.randn(4, 3, 32, 32)

        assert_close(load_checkpoint(tmp_path)(images), model.eval()(images), rtol=0, atol=0)

    def test_another_class_count_is_named(self, folder: Path) -> None:
        """Ten classes are no use for three."""
        with pytest.raises(ValueError, match="net tells 10 classes apart and 3 are needed; replace its last layer"):
            load_checkpoint(folder, classes=3)

    def test_another_architecture_is_named(self, folder: Path) -> None:
        """A config of somebody else's model is not guessed at."""
        (folder / "config.json").write_text(json.dumps({"architecture": "vit"}))

        with pytest.raises(ValueError, match="this checkpoint is a 'vit', and this loader builds 'cifar-resnet' only"):
            load_checkpoint(folder)

    def test_weights_of_another_width_are_named_with_the_first_tensor(self, folder: Path) -> None:
        """Both shapes are said, so that the reader sees which file is the wrong one."""
        rewrite(folder, **{"conv.weight": torch.zeros(8, 3, 3, 3)})

        with pytest.raises(ValueError, match=r"first 'conv.weight': needed \(16, 3, 3, 3\), found \(8, 3, 3, 3\)"):
            load_checkpoint(folder)

    def test_nan_weights_are_refused(self, folder: Path) -> None:
        """They would evaluate as ten per cent and look like a bad recipe."""
        rewrite(folder, **{"fc.bias": torch.full((10,), torch.nan)})

        with pytest.raises(
            ValueError, match=r"holds NaN or infinite values in fc.bias; the training that wrote it had diverged"
        ):
            load_checkpoint(folder)

    def test_a_truncated_file_is_named(self, folder: Path) -> None:
        """Half a download is not half a network."""
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

        with pytest.raises(ValueError, match="not a complete safetensors file: truncated or damaged"):
            load_checkpoint(folder)

    @pytest.mark.parametrize(
        "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=4))]
    )
    def test_a_pickle_is_never_opened(self, folder: Path, write: object) -> None:
        """A pickle runs code when it is loaded; it is told by its first bytes."""
        write({"conv.weight": [1]}, folder / "model.safetensors")

        with pytest.raises(ValueError, match=r"a pickle \(torch.save\); deploykit never unpickles"):
            load_checkpoint(folder)

    def test_broken_json_is_named(self, folder: Path) -> None:
        """The remedy is in the message."""
        (folder / "config.json").write_text('{"architecture": ')

        with pytest.raises(ValueError, match=r"config.json is not valid JSON .* git checkout"):
            load_checkpoint(folder)

    def test_a_missing_file_says_what_a_checkpoint_is(self, tmp_path: Path) -> None:
        """An empty folder is the commonest wrong path."""
        with pytest.raises(FileNotFoundError, match=r"a checkpoint is a folder with config.json and model.safetensors"):
            load_checkpoint(tmp_path)

    def test_an_unknown_name_lists_what_there_is(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A typing mistake is answered with the nearest name."""
        checkpoints = tmp_path / "data" / "checkpoints"
        checkpoints.mkdir(parents=True)
        folder.rename(checkpoints / "resnet8-cifar10")
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))

        assert not load_pretrained("resnet8").training
        with pytest.raises(FileNotFoundError, match="did you mean 'resnet8-cifar10'"):
            load_pretrained("resnet9", "cifar10")
