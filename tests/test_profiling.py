"""A profile tells operators and layers apart, accounts for all of the time, and gives nothing of the machine away."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from deploykit.models import resnet
from deploykit.profiling import LayerTime, OperatorTime, Profile, profile

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(scope="module")
def profiled() -> Profile:
    """ResNet-8, three calls."""
    return profile(resnet(8).eval(), IMAGES, calls=3)


@pytest.fixture
def made_up() -> Profile:
    """Two operators and three layers with times that can be added in the head."""
    operators = (OperatorTime("add", 1, 1.0), OperatorTime("conv", 2, 3.0), OperatorTime("view", 9, 0.0))
    layers = (LayerTime("a", "Conv2d", 2.0), LayerTime("b", "ReLU", 1.0), LayerTime("c", "Conv2d", 5.0))
    return Profile(operators, layers, 8.0, 8.8, 10.0, 3, 64, 2, {"traceEvents": []})


class TestTables:
    def test_operators_by_time(self, made_up):
        """The slowest comes first, shares are of all operators' time, and what takes none is left out."""
        assert made_up.operators().to_dict("list") == {
            "operator": ["conv", "add"], "calls": [2, 1], "self_ms": [3.0, 1.0], "share": [0.75, 0.25],
        }  # fmt: skip

    def test_layers_in_the_order_of_the_model(self, made_up):
        """Shares are of all layers' time."""
        assert list(made_up.by_layer()["layer"]) == ["a", "b", "c"]
        assert list(made_up.by_layer()["share"]) == [0.25, 0.125, 0.625]

    def test_kinds_of_layers_by_time(self, made_up):
        """Layers of one kind are added up."""
        assert made_up.by_layer_type().to_dict("list") == {
            "layer_type": ["Conv2d", "ReLU"], "ms": [7.0, 1.0], "share": [0.875, 0.125],
        }  # fmt: skip

    def test_the_price_of_looking_is_said(self, made_up):
        """The line has the undisturbed call and what clocks and profiler added to it."""
        assert str(made_up) == (
            "one call at batch 64, 2 threads: 8 ms; 8.8 ms with a clock in each layer (+10%), "
            "10 ms under the profiler (+25%)"
        )


class TestProfile:
    def test_the_operators_are_those_of_the_network(self, profiled):
        """ResNet-8 calls 9 convolutions, 9 batch norms, 1 linear layer and 3 additions."""
        calls = profiled.operators().set_index("operator")["calls"]

        assert (calls["aten::native_batch_norm"], calls["aten::addmm"]) == (9, 1)
        assert calls.filter(like="convolution").max() == 9

    def test_operators_times_are_those_of_one_call(self):
        """However many calls were made, operators' own times add up to about one of them, not to all."""
        profiled = profile(resnet(8).eval(), IMAGES, calls=40)

        assert profiled.operators()["self_ms"].sum() < 10 * profiled.profiled_ms

    def test_each_layer_is_there_once(self, profiled):
        """Rows carry the names of the modules that ran, the outermost one a name of its own."""
        layers = profiled.by_layer()

        assert layers["layer"].is_unique
        assert {"(model)", "blocks.0", "blocks.0.conv1", "fc"} <= set(layers["layer"])
        assert (layers["layer_type"] == "Conv2d").sum() == 9

    def test_shares_add_up_to_the_whole(self, profiled):
        """Of operators, of layers and of kinds of layers."""
        tables = (profiled.operators(), profiled.by_layer(), profiled.by_layer_type())

        assert [table["share"].sum() for table in tables] == pytest.approx([1, 1, 1])

    def test_the_model_is_left_as_it_was(self):
        """No hook, no wrapped forward and no changed mode stays behind."""
        model = resnet(8).eval()
        before = {name: set(module.__dict__) for name, module in model.named_modules()}

        profile(model, IMAGES, calls=1)

        assert {name: set(module.__dict__) for name, module in model.named_modules()} == before

    def test_a_function_has_operators_and_no_layers(self):
        """What is no torch module is profiled by operator; asking for its layers says what to profile instead."""
        profiled = profile(lambda images: images.flatten(1)[:, :10] * 2, IMAGES, calls=2)

        assert profiled.operators().set_index("operator")["calls"]["aten::mul"] == 1
        assert profiled.clocked_ms is None
        with pytest.raises(ValueError, match=r"this profile has no layers.*profile the model that it was made from"):
            profiled.by_layer_type()

    @pytest.mark.parametrize(
        ("model", "images", "message"),
        [
            (resnet(8), IMAGES, r"ResNet is in training mode.*call model\.eval\(\) first"),
            (
                resnet(8).eval(),
                IMAGES.double(),
                r"images are torch\.float64.*a float32 tensor \[N, 3, H, W\] is needed",
            ),
            (resnet(8).eval(), torch.zeros(1, 3, 32, 32, device="meta"), "images are on meta; this profile reads"),
            (nn.Flatten().eval(), IMAGES * float("nan"), "returned NaN or infinity"),
        ],
        ids=["training", "double", "not on the CPU", "nan"],
    )
    def test_what_cannot_be_profiled_is_refused(self, model, images, message):
        """The message says what was given and what to do."""
        with pytest.raises(ValueError, match=message):
            profile(model, images, calls=1)


class TestTrace:
    def test_the_trace_names_layers_and_operators(self, profiled, tmp_path):
        """The file is JSON in Chrome's form, with an event for each layer in each call."""
        written = profiled.export_chrome_trace(tmp_path / "trace.json")
        events = [event.get("name") for event in json.loads(written.read_text(encoding="utf-8"))["traceEvents"]]

        assert events.count("blocks.0.conv1: Conv2d") == 3
        assert "aten::addmm" in events

    def test_the_trace_names_no_path(self, profiled, tmp_path):
        """Neither the folder that it passed through nor where the library lies is in it."""
        text = profiled.export_chrome_trace(tmp_path / "trace.json").read_text(encoding="utf-8")

        assert "/tmp" not in text  # noqa: S108 - what is looked for
        assert "site-packages" not in text
        assert set(json.loads(text)) <= {"schemaVersion", "displayTimeUnit", "baseTimeNanoseconds", "traceEvents"}
