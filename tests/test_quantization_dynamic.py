"""Dynamic quantization: integers really are in the layers that are listed, and what is left in float is named."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch._inductor.config
import torchvision
from torch import Tensor, nn

from deploykit.models import MLPMixer, MLPMixerConfig, RowLSTM, RowLSTMConfig, resnet
from deploykit.quantization.dynamic import quantize_dynamic
from deploykit.quantization.outputs import compare_outputs

BACKENDS = ("torch.ao", "torchao")


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights in every run."""
    torch.manual_seed(0)


@pytest.fixture
def mixer() -> MLPMixer:
    """A small network of linear layers."""
    return MLPMixer(MLPMixerConfig(width=32, token_hidden=16, channel_hidden=48, depth=1)).eval()


@pytest.fixture
def images() -> Tensor:
    """Sixteen images, float32 [16, 3, 32, 32]."""
    return torch.randn(16, 3, 32, 32)


def left(quantized) -> dict[str, str]:
    """Name to reason of the layers that stay in float."""
    return {layer.name: layer.why for layer in quantized.left}


@pytest.mark.parametrize("backend", BACKENDS)
class TestBothBackends:
    def test_the_answers_stay_near_the_models(self, mixer, images, backend):
        """At least 30 dB of signal over error, an error that is not 0, and the model is as it was."""
        before = {name: value.clone() for name, value in mixer.state_dict().items()}
        found = compare_outputs(mixer, quantize_dynamic(mixer, backend=backend).model, [images])

        assert 30 < found.sqnr_db < 80
        torch.testing.assert_close(mixer.state_dict(), before, rtol=0, atol=0)

    def test_a_convolutional_network_changes_in_its_last_layer_only(self, backend):
        """1 of 10 layers, and each other one is listed with the reason."""
        quantized = quantize_dynamic(resnet(8).eval(), backend=backend)

        assert [layer.name for layer in quantized.changed] == ["fc"]
        assert len(quantized.layers) == 10
        assert set(left(quantized).values()) == {"dynamic quantization leaves convolutions out; quantize it statically"}

    def test_a_model_that_is_itself_a_layer_is_quantized(self, images, backend):
        """There need be no container around it."""
        layer = nn.Linear(32, 8).eval()
        quantized = quantize_dynamic(layer, backend=backend)

        assert [layer.name for layer in quantized.changed] == ["(the model itself)"]
        assert 0 < (quantized.model(images) - layer(images)).abs().max() < 0.1

    def test_convolutions_alone_are_refused(self, backend):
        """A call that would change nothing raises, and says what the model has."""
        message = r"quantized no layer \(the model's layers: Conv2d\); quantize it statically, which reaches convolut"
        with pytest.raises(ValueError, match=message):
            quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), backend=backend)

    def test_what_is_no_plain_layer_stays_and_says_why(self, backend):
        """Look-ups, attention's own weights and weights that are computed in each call."""
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        parts = {"table": nn.Embedding(9, 4), "attention": nn.MultiheadAttention(4, 2), "normed": normed}
        reasons = left(quantize_dynamic(nn.ModuleDict({**parts, "fc": nn.Linear(4, 4)}).eval(), backend=backend))

        assert list(reasons) == ["table", "attention", "attention.out_proj", "normed"]
        assert "look-up" in reasons["table"]
        assert "nn.MultiheadAttention" in reasons["attention"] == reasons["attention.out_proj"]
        assert "is computed in each call" in reasons["normed"]

    def test_a_second_time_is_refused(self, mixer, backend):
        """The result of each backend is recognised, by each."""
        once = quantize_dynamic(mixer, backend=backend).model
        for again in BACKENDS:
            with pytest.raises(ValueError, match=r"MLPMixer is quantized already \(embed\)"):
                quantize_dynamic(once, backend=again)

    def test_training_mode_and_other_dtypes_are_refused(self, mixer, backend):
        """With what to call first."""
        with pytest.raises(ValueError, match=r"MLPMixer is in training mode.* call \.eval\(\) before quantize_dynamic"):
            quantize_dynamic(mixer.train(), backend=backend)
        with pytest.raises(ValueError, match=r"embed\.weight is bfloat16; quantize_dynamic takes float32 weights"):
            quantize_dynamic(mixer.eval().bfloat16(), backend=backend)


def test_an_unknown_backend_is_refused(mixer):
    """The known ones are named."""
    with pytest.raises(ValueError, match=r"no backend 'onnx' for dynamic quantization; use torch\.ao or torchao$"):
        quantize_dynamic(mixer, backend="onnx")


class TestTorchAO:
    def test_int8_is_really_there(self, mixer):
        """Each listed layer holds qint8 weights, for the number of layers that the list says."""
        quantized = quantize_dynamic(mixer)
        weights = [quantized.model.get_submodule(layer.name).weight() for layer in quantized.changed]

        assert len(weights) == len(quantized.layers) == 6
        assert {weight.dtype for weight in weights} == {torch.qint8}

    def test_one_layer_by_hand(self):
        """Weights in steps of 1 up to 127; activations in 127 steps from smallest to largest, 7 bits, not 255."""
        layer = nn.Linear(2, 1).eval()
        layer.weight.data, layer.bias.data = torch.tensor([[127.5, 51.3]]), torch.tensor([0.5])
        x = torch.tensor([[1.54, -1.0], [0.5, 0.247]])  # (1.54 + 1) / 127 is a step of 0.02
        rounded = torch.tensor([[1.54, -1.0], [0.5, 0.24]])

        found = quantize_dynamic(layer).model(x)

        torch.testing.assert_close(found, rounded @ torch.tensor([[127.0], [51.0]]) + 0.5, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize(
        "layer", [nn.LSTM(6, 8, 2, bidirectional=True), nn.GRU(6, 8), nn.LSTMCell(6, 8), nn.GRUCell(6, 8)], ids=str
    )
    def test_recurrent_layers_keep_their_answers(self, layer):
        """Int8 in every gate, and states within a few hundredths of float32's."""
        x = torch.randn(3, 6) if "Cell" in type(layer).__name__ else torch.randn(5, 3, 6)
        exact, found = layer.eval()(x), quantize_dynamic(layer).model(x)
        exact, found = (states[0] if isinstance(states, tuple) else states for states in (exact, found))

        assert 0 < (exact - found).abs().max() < 0.05

    def test_the_lstm_that_reads_rows_is_int8_as_a_whole(self, images):
        """Both of its layers change, and an image keeps its class."""
        model = RowLSTM(RowLSTMConfig(hidden=32)).eval()
        quantized = quantize_dynamic(model)

        assert [layer.kind for layer in quantized.changed] == ["LSTM", "Linear"]
        assert compare_outputs(model, quantized.model, [images]).sqnr_db > 20

    @pytest.mark.parametrize(
        ("layer", "why"),
        [
            (nn.LSTM(4, 8, proj_size=2), "ignores an LSTM's projection"),
            (nn.LSTM(4, 8, bias=False), "wants a recurrent layer with bias"),
            (nn.RNN(4, 8), "has no dynamic kernel for it"),
            (type("Mine", (nn.Linear,), {})(4, 8), "no class derived from it; use torchao"),
        ],
        ids=str,
    )
    def test_what_it_would_break_or_skip_is_left(self, layer, why):
        """Layers that fail inside torch.ao, or that it passes over in silence, are listed with the way out."""
        assert why in left(quantize_dynamic(nn.Sequential(layer, nn.Linear(8, 2)).eval()))["0"]

    def test_its_deprecation_warning_passes_and_nothing_else_does(self, mixer):
        """What torch says about the future of this call is not hidden from whoever wants to see warnings."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            quantize_dynamic(mixer)

        assert {warning.category for warning in said} == {DeprecationWarning}
        assert str(said[0].message).startswith("torch.ao.quantization is deprecated")

    def test_another_device_is_refused(self):
        """Its kernels are for CPUs."""
        with pytest.raises(ValueError, match=r"run on a CPU and the model is on meta; call \.cpu\(\) on it"):
            quantize_dynamic(nn.Linear(4, 4, device="meta").eval())


class TestTorchao:
    def test_int8_is_really_there(self, mixer):
        """Each listed layer has an int8 weight with a scale for each output."""
        quantized = quantize_dynamic(mixer, backend="torchao")
        weights = [quantized.model.get_submodule(layer.name).weight for layer in quantized.changed]

        assert len(weights) == 6
        assert all(weight.qdata.dtype == torch.int8 and len(weight.scale) == len(weight) for weight in weights)

    def test_an_lstm_is_left_and_named(self):
        """Silently, in torchao itself; the list says what to use."""
        quantized = quantize_dynamic(RowLSTM(RowLSTMConfig(hidden=8, layers=1)).eval(), backend="torchao")

        assert left(quantized) == {
            "lstm": "torchao has no dynamic LSTM; use torch.ao while it lasts, or nn.Linear for each gate"
        }

    def test_an_image_does_not_depend_on_its_batch(self, mixer, images):
        """A scale for each row: alone as in company, where torch.ao's scale is the batch's."""
        moved = {}
        for backend in BACKENDS:
            model = quantize_dynamic(mixer, backend=backend).model
            moved[backend] = float((model(images)[:1] - model(images[:1])).abs().max())

        assert moved["torchao"] < 1e-5 < moved["torch.ao"]

    def test_settings_of_the_process_stay(self, mixer):
        """The settings that torchao recommends would hold for everything that is compiled from then on."""
        with torch._inductor.config.patch(coordinate_descent_tuning=False):
            quantize_dynamic(mixer, backend="torchao")

            assert not torch._inductor.config.coordinate_descent_tuning

    def test_without_the_package_the_extra_is_named(self, mixer, monkeypatch):
        """The message can be pasted."""
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
        with pytest.raises(ImportError, match=r"pip install 'deploykit\[compression\]'"):
            quantize_dynamic(mixer, backend="torchao")


def foreign(name: str) -> nn.Module:
    """A network that this project did not write, random weights, 10 classes."""
    if name.startswith("vit"):
        timm = pytest.importorskip("timm")
        return timm.create_model(name, num_classes=10, img_size=32, patch_size=4, depth=2).eval()
    model = torchvision.models.get_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of what is seen, without which random weights let the signal fade
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "changed", "kinds_left"),
    [
        ("resnet18", 1, {"Conv2d"}),
        ("mobilenet_v3_small", 2, {"Conv2d"}),
        ("vit_tiny_patch16_224", 9, {"Conv2d"}),  # 4 linear layers in each of two blocks, and the head
    ],
)
def test_networks_of_others(name, changed, kinds_left, images, backend):
    """Their linear layers become int8 with small errors, and their convolutions are listed as left."""
    model = foreign(name)
    quantized = quantize_dynamic(model, backend=backend)
    found = compare_outputs(model, quantized.model, [images])

    assert (len(quantized.changed), {layer.kind for layer in quantized.left}) == (changed, kinds_left)
    assert found.sqnr_db > 20
    assert found.agreement >= 0.7  # of random logits that lie close together
