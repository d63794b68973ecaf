"""From a torch module to ONNX: any batch size, weights inside, names as in the module, no machine's paths."""

from __future__ import annotations

import ast
import copy
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .checks import calibration_images, check_model, check_runs
from .graphs import culprit

if TYPE_CHECKING:
    import onnx

OPSET = 20  # what torch's exporter writes by itself; it never goes below 18, whatever is asked for
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node comes from
# Said of torch's own code while it exports an LSTM; the exported model is right (compared in the tests).
EXPORTER_NOISE = (
    ".*_check_is_size will be removed",
    r".*tensor attributes .*_flat_weights.* were assigned during export",
)


def export_onnx(model: nn.Module, images: Tensor, *, max_batch: int = 1024) -> onnx.ModelProto:
    """Return ``model`` as ONNX, input "images" float32 [N, C, H, W], output "logits".

    Batch norms come out as part of the convolutions before them. A node is named after the module that it computes,
    "blocks.0.conv1/Conv", a second one of a name gets a number. Nothing in the result tells on which machine it was
    made; the exporter alone would write the paths of source files into every node.

    Args:
        model: in evaluation mode, float32, or a graph that PT2E has quantized already; it is not changed.
        images: an example, float32 [N, C, H, W]: C, H and W become fixed, N does not.
        max_batch: the largest N that the model is to be good for. ONNX does not record it.

    Raises:
        ImportError: onnx or onnxscript is missing.
        TypeError: ``model`` is no module.
        ValueError: it is in training mode, or cannot process the images, or a module in it cannot be exported.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so with a long traceback
    except ImportError as error:
        raise ImportError("the export to ONNX needs onnx and onnxscript: pip install 'deploykit[onnx]'") from error

    if not is_converted(model):
        check_model(model, "export_onnx")
    (example,) = calibration_images([images], purpose="example")
    check_runs(model, example)
    # A batch of one would be taken for a constant.
    proto = _export(model, example[:1].repeat(2, 1, 1, 1), max_batch)
    _check_form(proto, type(model).__name__)
    _name_nodes_by_module(proto)
    return strip(proto)


def is_converted(model: nn.Module) -> bool:
    """Tell whether ``model`` is what ``convert_pt2e`` returns: a graph with integers in it."""
    if not isinstance(model, torch.fx.GraphModule):
        return False
    return any("dequantize" in str(node.target) for node in model.graph.nodes)


def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove from ``proto``, in place, all that no runtime reads: notes of exporters (machine paths) and shapes."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    for holder in (proto, proto.graph):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    del proto.graph.value_info[:]
    return proto


def _export(model: nn.Module, example: Tensor, max_batch: int) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        for message in EXPORTER_NOISE:
            warnings.filterwarnings("ignore", message=message)
        if is_converted(model):  # such a graph cannot be set to evaluation mode, and has been made for it
            warnings.filterwarnings("ignore", message=".*in training mode")
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=max_batch)},),
            )
        except RuntimeError as error:  # the root of all that the exporter raises
            raise ValueError(
                f"{culprit(model, error)} cannot be exported to ONNX: {_reason(error)}; write that part with torch "
                "operators that ONNX has, without a branch that depends on values"
            ) from error
    return cast("onnx.ModelProto", cast("Any", program).model_proto)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong first: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _check_form(proto: onnx.ModelProto, kind: str) -> None:
    """Raise unless opset and batch size are as asked for: the exporter changes both without a word."""
    opset = {imported.domain: imported.version for imported in proto.opset_import}.get("")
    if opset != OPSET:
        raise ValueError(f"torch {torch.__version__} wrote opset {opset}, and {OPSET} was asked for")
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ValueError(
            f"{kind} was exported for batches of {batch.dim_value} only: somewhere it takes the batch size for a "
            "constant; reshape with -1, or with the sizes that the tensor has in forward()"
        )


def _name_nodes_by_module(proto: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in proto.graph.initializer if tensor.name.endswith(".weight")}
    times: Counter[str] = Counter()
    for node in proto.graph.node:
        owned = next((name.removesuffix(".weight") for name in node.input[1:2] if name in weights), None)
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "[]")
        # The last scope is the operator, the one before it the module. Batch norm's note wins where it was folded into
        # a convolution: there the weight knows better.
        module = owned or (ast.literal_eval(scopes)[:-1] or [""])[-1]
        name = f"{module}/{node.op_type}" if module else node.op_type
        times[name] += 1
        node.name = name if times[name] == 1 else f"{name}_{times[name]}"
