"""Quantization-aware training: a module that feels its rounding, for an ordinary training loop, and its int8 form."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .batchnorms import merge_batchnorms, with_usual_batchnorm
from .checks import calibration_images, check_model, check_runs
from .graphs import check_names, export_graph, layers_of
from .report import Quantized, require_change

BATCHNORM = torch.ops.aten.batch_norm.default
TRAINING_OF_BATCHNORM = 5  # place among its arguments


class FakeQuantized(nn.Module):
    """The graph of a network with fake quantization in it, which trains and evaluates like any module.

    A graph has no modes: ``train()`` and ``eval()`` of an exported module raise. Here they do what they do elsewhere,
    from the next call on: in training, batch norm uses the batch and the observers follow the range of activations and
    weights; in evaluation, and once frozen, neither does, so that validation images leave no trace.

    Attributes:
        graph: from ``prepare_qat_pt2e``.
        skip: names of modules that were left in float.
        batchnorm_frozen: whether batch norm keeps to its running statistics in training, too.
        observers_frozen: whether the ranges stay as they are in training, too.
    """

    def __init__(self, graph: GraphModule, skip: Collection[str]) -> None:
        super().__init__()
        self.graph = graph
        self.skip = tuple(skip)
        self.batchnorm_frozen = False
        self.observers_frozen = False
        self._form: tuple[bool, bool] | None = None  # that the graph has now; None: it has to be made sure of
        self.eval()

    def train(self, mode: bool = True) -> FakeQuantized:  # noqa: FBT001, FBT002 - nn.Module has it so
        """Change the mode. Those inside are told by their flag: their own ``train`` raises."""
        for module in self.modules():
            module.training = mode
        self._form = None
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float32 [N, C, H, W], to logits [N, classes]."""
        self.take_form(
            batchnorm=self.training and not self.batchnorm_frozen,
            observing=self.training and not self.observers_frozen,
        )
        return self.graph(images)

    def take_form(self, *, batchnorm: bool, observing: bool) -> None:
        """Rewrite the graph: batch norm by the batch or by running statistics, observers on or off."""
        if self._form == (batchnorm, observing):
            return
        for node in self.graph.graph.find_nodes(op="call_function", target=BATCHNORM):
            node.update_arg(TRAINING_OF_BATCHNORM, batchnorm)
        self.graph.recompile()
        for quantizer in _fake_quantizers(self):
            quantizer.enable_fake_quant()
            quantizer.enable_observer(observing)
            if not observing:  # a mean of several models (EMA) averages the ranges, and the scales follow from these
                scale, zero_point = quantizer.calculate_qparams()
                quantizer.scale.copy_(scale)
                quantizer.zero_point.copy_(zero_point)
        self._form = (batchnorm, observing)


def prepare_qat(
    model: nn.Module,
    images: Tensor,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    symmetric: bool = False,
    skip: Collection[str] = (),
) -> FakeQuantized:
    """Return a module to fine-tune that rounds weights and activations as the integers will; the model is not changed.

    It starts as the model quantized after training, with ranges from the images given, and learns to live with the
    rounding, whose gradient is the straight-through estimate (Jacob et al. 2018, section 3). Batch norm is merged with
    the convolution before it, so that what is rounded are the weights that will be used (section 3.2). Fine-tune it
    with a learning rate of a hundredth to a tenth of the training's; towards the end, freeze the observers and the
    batch norms; then :func:`convert_qat`. Dropout stays off.

    Args:
        model: float32, in evaluation mode.
        images: training images, float32 [N, C, H, W], a few dozen or more: the ranges start from them.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        symmetric: activations with zero point 0, for TensorRT.
        skip: names of modules that stay in float, with all that is in them: "blocks.0.conv1".

    Raises:
        TypeError: it is no module.
        ValueError: a model in training mode, quantized already, not float32 or that cannot be exported, images that
            cannot be used, bits out of range, a name of no module.
        ImportError: torchao is missing.
    """
    check_model(model, "quantization-aware training")
    (images,) = calibration_images([images], purpose="initial")
    check_runs(model, images)
    from .quantizer import IntegerQuantizer  # says what to install where torchao is missing

    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    quantizer = IntegerQuantizer(**bits, symmetric=symmetric, skip=skip, qat=True)
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    graph = export_graph(with_usual_batchnorm(model), images)
    check_names(graph, skip)
    prepared = FakeQuantized(prepare_qat_pt2e(graph, quantizer), skip)
    with torch.no_grad():
        prepared.take_form(batchnorm=False, observing=True)
        prepared.graph(images)
    return prepared.eval()


def freeze_observers(prepared: FakeQuantized) -> None:
    """Keep the ranges, and with them all scales and zero points, as they are from now on, in place.

    Towards the end of training, so that the weights settle on a grid that no longer moves (Krishnamoorthi 2018,
    section 4).
    """
    _check_prepared(prepared)
    prepared.observers_frozen = True
    prepared.train(prepared.training)


def freeze_batchnorm(prepared: FakeQuantized) -> None:
    """Let batch norm use and keep its running statistics from now on, in place, in training as it will in inference.

    Towards the end of training: with statistics of single batches in it, training does not see what inference will
    (Krishnamoorthi 2018, section 3.2.2).
    """
    _check_prepared(prepared)
    prepared.batchnorm_frozen = True
    prepared.train(prepared.training)


def convert_qat(prepared: FakeQuantized) -> Quantized:
    """Return the int8 form of a trained module, as ``quantize_pt2e`` would; what is given can be trained on.

    The logits are those of ``prepared`` in evaluation mode, up to rounding: batch norm is now part of the weights.

    Raises:
        TypeError: it does not come from :func:`prepare_qat`.
        ValueError: no layer in it is quantized.
    """
    _check_prepared(prepared)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    trained = copy.deepcopy(prepared)
    trained.take_form(batchnorm=False, observing=False)
    merge_batchnorms(trained.graph)
    converted = convert_pt2e(trained.graph)
    layers = layers_of(converted, quantizer="portable", skip=prepared.skip)
    require_change(layers, "quantization-aware training", "it knows convolutions and linear layers")
    return Quantized(converted, "PT2E (quantization-aware training)", layers)


def _fake_quantizers(prepared: nn.Module) -> Iterator[Any]:
    from torchao.quantization.pt2e import FakeQuantizeBase

    return (module for module in prepared.modules() if isinstance(module, FakeQuantizeBase))


def _check_prepared(prepared: object) -> None:
    if not isinstance(prepared, FakeQuantized):
        raise TypeError(f"give the module that prepare_qat returned, not {type(prepared).__name__}")
