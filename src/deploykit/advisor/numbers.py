"""Which numbers a network should compute with: a decision of nine lines, on which the rest of a plan hangs.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations


def choose_numbers(
    kind: str,
    target: str,
    *,
    data: str = "none",
    budget_points: float = 1.0,
    runtime: str | None = None,
    bf16: bool = False,
    int8_loss_points: float | None = None,
    can_train: bool = False,
) -> str:
    """Return "float32", "bf16", "float16", "dynamic int8", "static int8" or "trained int8".

    Args:
        kind: "cnn", "linear", "recurrent" or "attention": what the network spends its time on.
        target: "x86-vnni", "x86", "arm" or "nvidia".
        data: "none", "images" (of the kind it will see) or "labelled".
        budget_points: accuracy that may be lost; 0 means that no answer may change.
        runtime: where it must run: "openvino", "onnxruntime", "torch", "tensorrt"; None leaves it open.
        bf16: whether OpenVINO would find instructions for bfloat16.
        int8_loss_points: what static int8 was measured to lose; None if it was not tried.
        can_train: whether there are images and time for a training through the rounding.
    """
    on_x86 = target in {"x86", "x86-vnni"}
    half = "bf16" if bf16 and on_x86 and runtime in {None, "openvino"} else "float32"
    if budget_points == 0:
        return "float32"
    if target == "nvidia":
        return "float16"
    matrices = kind != "cnn" and runtime in {None, "torch"} and target != "arm"  # what dynamic int8 reaches
    if kind == "recurrent":  # static quantization leaves recurrent layers in float
        return "dynamic int8" if matrices else half
    if data == "none":
        return "dynamic int8" if matrices else half
    if int8_loss_points is not None and int8_loss_points > budget_points:
        return "trained int8" if can_train else half
    return "static int8"
