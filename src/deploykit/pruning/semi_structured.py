"""2:4 sparsity: of every four consecutive inputs two are 0, the pattern that sparse tensor cores compute with.

A GPU from NVIDIA's Ampere generation on (compute capability 8.0) skips the zeros of this pattern and of no other: it
stores two of four weights, and two bits each that say where they belong (Mishra et al. 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from .checks import check_model
from .masks import refuse_masks, with_masks
from .prunable import PRUNABLE, layers_to_prune

GROUP, ZEROS = 4, 2
MATRIX_DIMENSIONS = 2
AMPERE = (8, 0)
HALF = (torch.float16, torch.bfloat16)


def prune_2_4(
    model: nn.Module, *, layers: tuple[type[nn.Module], ...] = PRUNABLE, ignore: Collection[str] = ()
) -> nn.Module:
    """Return a copy in which the two smallest of every four consecutive inputs are masked (Mishra et al. 2021).

    Groups lie along dimension 1 of the weight: four neighbours in a row of a matrix [out, in], which is the form that
    cuSPARSELt and ``torch.sparse.to_sparse_semi_structured`` take; for a convolution [out, in, kh, kw] four input
    channels at the same place of the kernel. TensorRT and cuDNN store convolutions with the channels last, so that
    these four are neighbours in memory, and TensorRT asks for exactly this. In the order of PyTorch's own memory,
    in x kh x kw, a group would mix places of the kernel, and no sparse convolution would take it.

    A layer whose inputs are no multiple of four is left as it is: :func:`unsuited_for_2_4` names them beforehand, and
    ``sparsity_report`` shows which layers have the pattern.

    Args:
        model: float, without masks; it is not changed.
        layers: classes of layers whose ``weight`` is pruned, [out, in, ...].
        ignore: names of modules that are left alone, with all that is in them.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: it has masks; a name of no module; no layer has a multiple of four inputs; NaN.
    """
    found = _layers(model, layers, ignore)
    unsuited = _unsuited(found)
    if len(unsuited) == len(found):
        raise ValueError(f"no layer of {type(model).__name__} can be pruned 2:4: {_listed(unsuited)}")
    weights = {name: cast("Tensor", layer.weight).detach() for name, layer in found.items() if name not in unsuited}
    return with_masks(model, {name: keep_2_4(weight) for name, weight in weights.items()})


def unsuited_for_2_4(
    model: nn.Module, *, layers: tuple[type[nn.Module], ...] = PRUNABLE, ignore: Collection[str] = ()
) -> dict[str, str]:
    """Return the layers that :func:`prune_2_4` leaves as they are, name to reason; arguments and errors are its own."""
    return _unsuited(_layers(model, layers, ignore))


def keep_2_4(weight: Tensor) -> Tensor:
    """Return bool, the shape of ``weight``: True for the two largest magnitudes of every four along dimension 1."""
    groups = weight.abs().movedim(1, -1).unflatten(-1, (-1, GROUP))
    smallest = groups.argsort(dim=-1, stable=True)[..., :ZEROS]
    kept = torch.ones_like(groups, dtype=torch.bool).scatter(-1, smallest, value=False)
    return kept.flatten(-2).movedim(-1, 1)


def is_2_4(weight: Tensor) -> bool:
    """Tell whether at least two of every four consecutive inputs (dimension 1) are 0; never if they are no fours."""
    if weight.ndim < MATRIX_DIMENSIONS or weight.shape[1] % GROUP:
        return False
    zeros = (weight == 0).movedim(1, -1).unflatten(-1, (-1, GROUP)).sum(dim=-1)
    return bool((zeros >= ZEROS).all())


def to_semi_structured(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers with the 2:4 pattern store half their weights and run on sparse tensor cores.

    Other layers stay as they are; PyTorch has no sparse convolution. For inference only: run it under
    ``torch.inference_mode()``.

    Args:
        model: float16 or bfloat16, on a CUDA device of compute capability 8.0 or newer; from ``make_permanent``.

    Raises:
        TypeError: the model is no ``torch.nn.Module``.
        ValueError: no such device, another dtype, masks, no linear layer with the pattern, or one with a shape that
            the kernels do not take (named, with PyTorch's reason).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sparse tensor cores take a torch.nn.Module, not {type(model).__name__}")
    _require_sparse_tensor_cores(model)
    refuse_masks(model, "to_semi_structured")
    converted = copy.deepcopy(model)
    linear = {name: m for name, m in converted.named_modules() if isinstance(m, nn.Linear) and is_2_4(m.weight)}
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no Linear with the 2:4 pattern; call prune_2_4, fine-tune and make_permanent"
        )
    for name, layer in linear.items():
        if layer.weight.dtype not in HALF:
            raise ValueError(
                f"{name} is {str(layer.weight.dtype).removeprefix('torch.')}; sparse tensor cores take float16 or "
                "bfloat16: call .half() or .bfloat16() on the model"
            )
        try:
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        except RuntimeError as error:
            raise ValueError(f"{name} has a weight that the sparse kernels do not take: {error}") from error
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return converted


def _require_sparse_tensor_cores(model: nn.Module) -> None:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        raise ValueError(
            f"{type(model).__name__} is on {device.type}; 2:4 sparsity is computed with by the sparse tensor cores of "
            "an NVIDIA GPU of compute capability 8.0 or newer only: move the model there, model.half().to('cuda')"
        )
    if (capability := torch.cuda.get_device_capability(device)) < AMPERE:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has compute capability {'.'.join(map(str, capability))}; sparse "
            "tensor cores come with 8.0 (Ampere)"
        )


def _layers(model: nn.Module, layers: tuple[type[nn.Module], ...], ignore: Collection[str]) -> dict[str, nn.Module]:
    if isinstance(model, nn.Module):
        refuse_masks(model, "2:4 pruning")
    check_model(model, "2:4 pruning")
    return layers_to_prune(model, layers=layers, ignore=ignore)


def _unsuited(found: dict[str, nn.Module]) -> dict[str, str]:
    inputs = {name: cast("Tensor", layer.weight).shape[1] for name, layer in found.items()}
    return {name: f"{count} inputs, no multiple of four" for name, count in inputs.items() if count % GROUP}


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} has {reason}" for name, reason in reasons.items())
