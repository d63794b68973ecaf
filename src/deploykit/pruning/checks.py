"""What every recipe of this folder refuses before any work is done, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

INTEGER_OR_OBSERVED = ("torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.q", "torch.ao.quantization")


def check_model(model: nn.Module, purpose: str) -> None:
    """Raise unless ``model`` is a plain floating-point module with finite weights of its own.

    Args:
        model: in training or evaluation mode; float32 as a rule, every other floating-point dtype passes too.
        purpose: what it is for, in the words of the messages: "pruning".

    Raises:
        TypeError: it is no ``torch.nn.Module``.
        ValueError: it is compiled or quantized, its weights are masked or parametrized, or a weight or statistic is
            NaN or infinite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{purpose} takes a torch.nn.Module, not {type(model).__name__}")
    for name, module in model.named_modules():
        where = repr(name) if name else "the model itself"
        if hasattr(module, "_orig_mod"):
            raise ValueError(
                f"{where} is compiled; {purpose} takes the module before torch.compile: compile what comes out of it"
            )
        if is_quantized(module):
            raise ValueError(f"{where} ({type(module).__name__}) is quantized; {purpose} comes before quantization")
        if masked := [tensor for tensor, _ in module.named_buffers(recurse=False) if tensor.endswith("_mask")]:
            tensor = masked[0].removesuffix("_mask")
            if hasattr(module, f"{tensor}_orig"):
                raise ValueError(
                    f"{where} is masked already (it has {tensor}_orig and {tensor}_mask); before {purpose}, make the "
                    f"mask permanent: torch.nn.utils.prune.remove(module, {tensor!r})"
                )
        if nn.utils.parametrize.is_parametrized(module) or isinstance(vars(module).get("weight"), Tensor):
            raise ValueError(
                f"{where} computes its weights from others; before {purpose}, make them plain: "
                "make_permanent for the masks of this folder, remove_parametrizations or remove_weight_norm of "
                "torch.nn.utils for others"
            )
    _check_finite(model, purpose)


def is_quantized(module: nn.Module) -> bool:
    """Tell whether a single module holds integer weights, observers or fake quantization of any torch library."""
    home = type(module).__module__
    if home.startswith((*INTEGER_OR_OBSERVED, "torchao.quantization")) or "fake_quantize" in home:
        return True
    if isinstance(module, torch.fx.GraphModule) and any("quantize" in str(node.target) for node in module.graph.nodes):
        return True
    return any(
        type(parameter).__module__.startswith("torchao.") or not parameter.is_floating_point()
        for parameter in module.parameters(recurse=False)
    )


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is at least 0 and below 1, and TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; give a number from 0 up to, but not including, 1")
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; give a share from 0 up to, but not including, 1: 0.5 removes half")


def check_runs(model: nn.Module, example_input: Tensor) -> None:
    """Raise unless the model can process ``example_input``: TypeError for what is no tensor, else ValueError."""
    if not isinstance(example_input, Tensor):
        raise TypeError(
            f"example_input is {type(example_input).__name__}; give one tensor, images float32 [N, C, H, W]"
        )
    was_training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(example_input[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot process an input of shape {tuple(example_input.shape)}: {error}"
        ) from error
    finally:
        for module in was_training:
            module.training = True


def check_split(batches: object, purpose: str) -> None:
    """Raise ValueError if ``batches`` say (``.split``) that they come from the test split."""
    if getattr(batches, "split", None) == "test":
        raise ValueError(
            f"{purpose} was given the test split, which is only for reporting: a choice made on it would make the "
            "reported accuracy too good. Use training or validation images"
        )


def images_of(batches: Iterable[Any], purpose: str, *, usual: str) -> list[Tensor]:
    """Return the images of batches that may have labels too; ValueError says what is ``usual`` where there is none."""
    images = [batch[0] if isinstance(batch, tuple | list) else batch for batch in batches]
    if not images:
        raise ValueError(f"{purpose} got no image; {usual} are usual")
    return images


def _check_finite(model: nn.Module, purpose: str) -> None:
    for kind, tensors in (("weights", model.named_parameters()), ("statistics", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{name} holds NaN or infinite {kind}; {purpose} compares numbers, and what these come from "
                    "(a training that diverged, most often) has to be repaired first"
                )
