"""Models that this project did not write, pruned; and its own, pruned, saved, exported and quantized in a row."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from pruning_nets import names, silence
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("torch_pruning")

from deploykit.cost import macs, parameters
from deploykit.models import load_checkpoint, resnet, resnet_like, save_checkpoint
from deploykit.pruning.blocks import prune_blocks, removable_blocks
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.refit import refit_layers


def images(number: int, size: int, *, seed: int = 0) -> Tensor:
    """Draw images, float32 [number, 3, size, size]."""
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def resnet18() -> tuple[nn.Module, int]:
    """Build torchvision's, and the size of the images."""
    return torchvision.models.resnet18(num_classes=10), 64


def mobilenet() -> tuple[nn.Module, int]:
    """Build torchvision's small MobileNetV3: depthwise convolutions, squeeze-and-excitation."""
    return torchvision.models.mobilenet_v3_small(num_classes=10), 64


def densenet() -> tuple[nn.Module, int]:
    """Build torchvision's DenseNet-121: every layer reads a part of what many others wrote."""
    return torchvision.models.densenet121(num_classes=10), 64


def vit() -> tuple[nn.Module, int]:
    """Build a short ViT of timm's."""
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=10), 32


@pytest.fixture(scope="module", params=[resnet18, mobilenet, densenet, vit], ids=lambda build: build.__name__)
def foreign(request):
    """Build one with random weights, a plan that takes three tenths of its MACs, and the pruned model."""
    torch.manual_seed(0)
    model, size = request.param()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    model = model.eval()
    plan = plan_pruning(model, images(1, size), target_macs=round(0.7 * macs(model, images(1, size))))
    return model, size, plan, prune_channels(model, plan)


class TestForeignModels:
    def test_macs_and_parameters_are_those_planned(self, foreign):
        """Met within two percent, counted by the library's own counter."""
        model, size, plan, pruned = foreign

        assert plan.macs == (macs(model, images(1, size)), macs(pruned, images(1, size)))
        assert plan.macs[1] == pytest.approx(0.7 * plan.macs[0], rel=0.02)
        assert plan.parameters == (parameters(model), parameters(pruned))

    def test_channels_that_nobody_reads_go_without_a_trace(self, foreign):
        """The right entries of every layer went: same logits as the full model in which they are not read."""
        model, size, plan, _ = foreign
        silent = copy.deepcopy(model)
        silence(silent, plan)
        with torch.no_grad():
            expected, found = silent(images(2, size)), prune_channels(silent, plan)(images(2, size))

        assert_close(found, expected, rtol=1e-3, atol=1e-5)

    def test_it_trains(self, foreign):
        """Forward in training mode, and a gradient for every parameter."""
        _, size, _, pruned = foreign
        trained = copy.deepcopy(pruned).train()
        trained(images(2, size)).square().sum().backward()

        assert all(parameter.grad is not None for parameter in trained.parameters())

    def test_refitted_it_answers_more_like_the_full_one(self, foreign):
        """On images that it was not refitted on. DenseNet's 120 layers take a minute and were tried by hand."""
        model, size, plan, pruned = foreign
        if isinstance(model, torchvision.models.DenseNet):
            pytest.skip("takes a minute")
        refitted = refit_layers(pruned, model, images(24, size).split(12), plan=plan)
        with torch.no_grad():
            wanted, *found = (one(images(16, size, seed=1)) for one in (model, pruned, refitted))
        before, after = ((logits - wanted).square().mean() for logits in found)

        assert after < 0.5 * before

    def test_what_is_left_has_a_reason(self, foreign):
        """The classifier always; in a ViT all but the feed-forward layers."""
        model, _, plan, _ = foreign
        last = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]

        assert dict(plan.left)[last] == "its outputs are the model's outputs"
        if last == "head":
            assert [removal.group.layer for removal in plan.removals] == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
            assert dict(plan.left)["blocks.0.attn.qkv"] == "it feeds an attention, which splits its channels into heads"
            assert dict(plan.left)["patch_embed.proj"].startswith("the parameter pos_embed would be cut too")
        else:
            assert names(plan.left) == {last}

    def test_it_is_exported(self, foreign):
        """To ONNX, with the pruned model's logits. DenseNet's export takes a minute and was tried by hand."""
        pytest.importorskip("onnxscript")
        from deploykit.export import export_onnx
        from deploykit.runtimes import onnxruntime

        _, size, _, pruned = foreign
        if isinstance(pruned, torchvision.models.DenseNet):
            pytest.skip("exported by hand: a minute of time")
        predict = onnxruntime.load(export_onnx(pruned, images(2, size)))
        with torch.no_grad():
            assert_close(predict(images(3, size)), pruned(images(3, size)), rtol=1e-3, atol=1e-4)


def test_blocks_of_foreign_models():
    """Residual blocks without a projection, in three families; a MobileNet has them where nothing changes."""
    assert removable_blocks(resnet18()[0], images(1, 64)) == (
        "layer1.0",
        "layer1.1",
        "layer2.1",
        "layer3.1",
        "layer4.1",
    )
    assert removable_blocks(vit()[0], images(1, 32)) == ("blocks.0", "blocks.1")
    assert removable_blocks(mobilenet()[0], images(1, 64))[:2] == ("features.3", "features.5")


def test_a_compiled_model_is_refused():
    """Its module is inside; what comes out can be compiled."""
    with pytest.raises(
        ValueError, match=r"the model itself is compiled; pruning takes the module before torch\.compile"
    ):
        plan_pruning(torch.compile(nn.Linear(2, 2)), torch.zeros(1, 2), ratio=0.5)


LOAD = """
import sys, torch
from deploykit.models import load_checkpoint
model = load_checkpoint(sys.argv[1])
torch.save(model(torch.load(sys.argv[1] + "/images.pt")), sys.argv[1] + "/logits.pt")
"""


def test_pruned_saved_loaded_exported_quantized(tmp_path):
    """One network through all of it: each step has the logits of the one before; int8 comes near."""
    pytest.importorskip("onnxscript")
    from deploykit.export import export_onnx
    from deploykit.runtimes import onnxruntime
    from deploykit.static_quantization import quantize_static

    torch.manual_seed(0)
    full, given = resnet(14).eval(), images(32, 32)
    thinner = prune_channels(full, plan_pruning(full, given, ratio=0.3))
    model = resnet_like(prune_blocks(thinner, ["blocks.1"], example_input=given))
    save_checkpoint(model, tmp_path / "pruned", card="# pruned\n")
    with torch.no_grad():
        logits = model(given)
    torch.save(given, tmp_path / "pruned" / "images.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "pruned")], check=True)

    assert_close(torch.load(tmp_path / "pruned" / "logits.pt"), logits, rtol=0, atol=0)
    loaded = load_checkpoint(tmp_path / "pruned")
    assert_close(onnxruntime.load(export_onnx(loaded, given))(given), logits, rtol=1e-4, atol=1e-4)
    quantized = quantize_static(loaded, [given], backend="onnxruntime")
    error = onnxruntime.load(quantized.model)(given) - logits
    assert not quantized.left
    assert error.norm() < 0.1 * logits.norm()
