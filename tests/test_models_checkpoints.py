"""A checkpoint loads whole, whatever its network, or says what is wrong with it."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

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
    load_checkpoint,
    load_pretrained,
    resnet,
    save_checkpoint,
)

SMALL = [
    ResNet(ResNetConfig((4, 8), ((3,), (5, 2)), classes=7)),
    RowLSTM(RowLSTMConfig(hidden=6, layers=3, classes=7)),
    MLPMixer(MLPMixerConfig(patch=8, width=6, token_hidden=5, channel_hidden=7, depth=2, classes=7)),
]


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
    @pytest.mark.parametrize("model", SMALL, ids=lambda model: type(model).__name__)
    def test_a_checkpoint_gives_back_the_same_logits(self, tmp_path: Path, model: Network) -> None:
        """Odd sizes and running statistics survive the round trip, bit for bit."""
        model.train()(torch.randn(16, 3, 32, 32))
        save_checkpoint(model, tmp_path, card="")
        images = torch.randn(4, 3, 32, 32)

        loaded = load_checkpoint(tmp_path)

        assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)
        assert loaded.config == model.config

    def test_a_file_that_names_no_architecture_is_a_resnet(self, folder: Path) -> None:
        """The first checkpoints had nothing to tell apart."""
        path = folder / "config.json"
        described = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in described.items() if key != "architecture"}))

        assert isinstance(load_checkpoint(folder), ResNet)

    @pytest.mark.parametrize("architecture", ["os.system", "deploykit.models.ResNet", ["cifar-resnet"], 3, None])
    def test_an_architecture_is_looked_up_and_never_imported(self, folder: Path, architecture: object) -> None:
        """What a file names is a key of a closed table, or nothing."""
        (folder / "config.json").write_text(json.dumps({"architecture": architecture, "classes": 10}))

        with pytest.raises(ValueError, match="this loader builds 'cifar-resnet', 'row-lstm' and 'mlp-mixer' only"):
            load_checkpoint(folder)

    def test_a_missing_size_is_named(self, folder: Path) -> None:
        """Defaults are for the person who builds a network; a file has to say everything."""
        (folder / "config.json").write_text(json.dumps({"architecture": "row-lstm", "hidden": 256, "classes": 10}))

        with pytest.raises(ValueError, match=r"must hold hidden, layers and classes; .* KeyError\('layers'\)"):
            load_checkpoint(folder)

    def test_a_list_is_no_configuration(self, folder: Path) -> None:
        """JSON of another kind is refused, not looked into."""
        (folder / "config.json").write_text("[]")

        with pytest.raises(ValueError, match=r"must hold an object, \{…\}, and holds list"):
            load_checkpoint(folder)

    def test_weights_of_another_architecture_are_named(self, folder: Path) -> None:
        """A config beside the wrong weights says which file is not its own."""
        (folder / "config.json").write_text(json.dumps(build("row-lstm").config.to_dict()))

        with pytest.raises(ValueError, match=r"belongs to another network: \d+ tensors differ from config.json"):
            load_checkpoint(folder)

    def test_another_class_count_is_named(self, folder: Path) -> None:
        """Ten classes are no use for three."""
        with pytest.raises(ValueError, match="net tells 10 classes apart and 3 are needed; replace its last layer"):
            load_checkpoint(folder, classes=3)

    def test_another_architecture_is_named(self, folder: Path) -> None:
        """A config of somebody else's model is not guessed at."""
        (folder / "config.json").write_text(json.dumps({"architecture": "vit"}))

        with pytest.raises(ValueError, match="this checkpoint is a 'vit', and this loader builds 'cifar-resnet'"):
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
        """A typing mistake, or the folder's name, is answered with the nearest name that is taken."""
        checkpoints = tmp_path / "data" / "checkpoints"
        checkpoints.mkdir(parents=True)
        folder.rename(checkpoints / "resnet8-cifar10")
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))

        assert not load_pretrained("resnet8").training
        with pytest.raises(FileNotFoundError, match=r"did you mean 'resnet8'\? there are: resnet8-cifar10"):
            load_pretrained("resnet9", "cifar10")
        with pytest.raises(FileNotFoundError, match=r"did you mean 'resnet8'\?"):
            load_pretrained("resnet8-cifar10", "cifar10")

    @pytest.mark.parametrize(
        ("name", "options"), [("resnet56", ""), ("row-lstm", " --optimizer adamw"), ("mlp-mixer", " --optimizer adamw")]
    )
    def test_a_missing_network_comes_with_the_command_that_trains_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: str
    ) -> None:
        """A name that can be built is no typing mistake."""
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
        command = f"deploykit train {name} --dataset shapes32 --split train\\+val{options}; there are: none"

        with pytest.raises(FileNotFoundError, match=f"no checkpoint '{name}-shapes32' in .*; train it with: {command}"):
            load_pretrained(name, "shapes32")

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_named_network_can_be_saved(self, tmp_path: Path, name: str) -> None:
        """Its configuration finds its way back through the file."""
        model = build(name, classes=3)
        save_checkpoint(model, tmp_path, card="")

        assert load_checkpoint(tmp_path, classes=3).config == model.config
