"""From a torch module to ONNX: any batch size, weights inside, names as in the module, no machine's paths."""

from __future__ import annotations

import ast
import copy
import traceback
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .files import OPSET, SUPPORTED_OPSETS, opset_of, strip

if TYPE_CHECKING:
    import onnx

IMAGE_DIMENSIONS = 4  # [N, channels, height, width]
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node comes from
# Said of torch's own code while it exports an LSTM; the exported model is right (compared in the tests).
EXPORTER_NOISE = (
    ".*_check_is_size will be removed",
    r".*tensor attributes .*_flat_weights.* were assigned during export",
)


def export_onnx(model: nn.Module, images: Tensor, *, opset: int = OPSET, max_batch: int = 1024) -> onnx.ModelProto:
    """Return ``model`` as ONNX, input "images" float32 [N, C, H, W], output "logits".

    Batch norms come out as part of the convolutions before them. A node is named after the module that it computes,
    "blocks.0.conv1/Conv", a second one of a name gets a number. Nothing in the result tells on which machine it was
    made; the exporter alone would write the paths of source files into every node.

    Args:
        model: in evaluation mode, float32, or a graph that PT2E has quantized already; it is not changed.
        images: an example, float32 [N, C, H, W]: C, H and W become fixed, N does not.
        opset: the version of ONNX's operators. torch's exporter writes 20 by itself and none below 18.
        max_batch: the largest N that the model is to be good for. ONNX does not record it.

    Raises:
        ImportError: onnx or onnxscript is missing.
        TypeError: ``model`` is no module, or the images are no tensor.
        ValueError: it is in training mode or not float32, or cannot process the images; a module in it cannot be
            exported; an opset that the exporter cannot write.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so with a long traceback
    except ImportError as error:
        raise ImportError("the export to ONNX needs onnx and onnxscript: pip install 'deploykit[onnx]'") from error

    _check(model, images)
    if opset not in SUPPORTED_OPSETS:  # for 17 the exporter prints a traceback, returns 18 and raises nothing
        first, last = SUPPORTED_OPSETS[0], SUPPORTED_OPSETS[-1]
        raise ValueError(f"opset is {opset}; torch's exporter writes {first} to {last}")
    # A batch of one would be taken for a constant.
    proto = _export(model, images[:1].detach().cpu().repeat(2, 1, 1, 1), opset, max_batch)
    _check_form(proto, type(model).__name__, opset)
    _name_nodes_by_module(proto)
    return strip(proto)


def is_converted(model: nn.Module) -> bool:
    """Tell whether ``model`` is what ``convert_pt2e`` returns: a graph with integers in it."""
    if not isinstance(model, torch.fx.GraphModule):
        return False
    return any("dequantize" in str(node.target) for node in model.graph.nodes)


def _check(model: nn.Module, images: Tensor) -> None:
    """Refuse what cannot be exported, before the exporter takes its seconds."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"export_onnx takes a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(images, Tensor):
        raise TypeError(f"the example images are {type(images).__name__}; give a tensor float32 [N, C, H, W]")
    if images.dtype != torch.float32 or images.ndim != IMAGE_DIMENSIONS or not len(images):
        given = f"{_dtype_name(images.dtype)} {list(images.shape)}"
        raise ValueError(f"the example images are {given}; give float32 [N, C, H, W]")
    kind = type(model).__name__
    if not is_converted(model):
        if any(module.training for module in model.modules()):
            raise ValueError(
                f"{kind} is in training mode, where batch norm and dropout depend on the batch; call .eval() before "
                "export_onnx"
            )
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {_dtype_name(parameter.dtype)}; export the float32 model and use convert_precision on "
                    "the result, which keeps float32 at the input and where a smaller type would do harm"
                )
    try:
        with torch.no_grad():
            model(images[:2])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{kind} cannot process images of shape {list(images.shape)}: {error}") from error


def _export(model: nn.Module, example: Tensor, opset: int, max_batch: int) -> onnx.ModelProto:
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
                opset_version=opset,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=max_batch)},),
            )
        except RuntimeError as error:  # the root of all that the exporter raises
            raise ValueError(
                f"{_culprit(model, error)} cannot be exported to ONNX: {_reason(error)}; write that part with torch "
                "operators that ONNX has, without a branch that depends on values"
            ) from error
    return cast("onnx.ModelProto", cast("Any", program).model_proto)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong first: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _culprit(model: nn.Module, error: BaseException) -> str:
    """Name the module in whose code an export stopped; the last in the traceback, of the first cause that has one."""
    names = {id(module): name for name, module in model.named_modules()}
    found: nn.Module = model
    chained: BaseException | None = error
    while chained is not None:
        for frame, _ in traceback.walk_tb(chained.__traceback__):
            owner = frame.f_locals.get("self")
            found = owner if isinstance(owner, nn.Module) and id(owner) in names else found
        chained = chained.__cause__ or chained.__context__
    kind = type(found).__name__
    return f"{names[id(found)]} ({kind})" if names[id(found)] else kind


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_form(proto: onnx.ModelProto, kind: str, opset: int) -> None:
    """Raise unless opset and batch size are as asked for: the exporter changes both without a word."""
    if opset_of(proto) != opset:
        raise ValueError(f"torch {torch.__version__} wrote opset {opset_of(proto)}, and {opset} was asked for")
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
