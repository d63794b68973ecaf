"""The steps that a plan can have, each with its reason, what it brought where it was measured, and the call."""

from __future__ import annotations

from deploykit.advisor.case import RUNTIME_NAMES, Case
from deploykit.advisor.effects import (
    DRAWN,
    PRUNED,
    Effect,
    claim_effect,
    recorded_batching,
    recorded_loss,
    recorded_speed,
    training_loss,
)
from deploykit.advisor.plan import Step

EAGER = "PyTorch eager, float32"
BINDS = {
    "overhead": "overhead binds, so fewer calls help and less arithmetic alone does not",
    "memory": "moving bytes binds, so fusing operators and smaller numbers help",
    "compute": "arithmetic binds, so fewer multiplications and cheaper ones help",
}


def baseline(case: Case) -> Step:
    """Measure what is there, and what binds it if nobody knows."""
    claim = claim_effect("establish-a-baseline-first", here=case.is_here)
    if case.profile.bottleneck is None:
        why = "The bottleneck is not known yet, and it decides which of the steps below are worth their trouble."
        call = ("deploykit.advisor.profile_network", "model, images, peaks")
        return Step("measure", "Keep a baseline and find the bottleneck", why, (claim,), "02", *call)
    share = case.profile.shares[case.profile.bottleneck]
    why = f"Here {BINDS[case.profile.bottleneck]} ({share:.0%} of the time); every step is held against this number."
    call = ("deploykit.measure.compare", "{'before': model, 'after': predictor}, images")
    return Step("measure", "Keep a baseline, and measure after every step", why, (claim,), "01", *call)


def shrink(case: Case) -> Step:
    """Make the network smaller."""
    if case.profile.kind != "cnn":
        why = "A narrower or shallower network of the same kind has fewer calls, fewer bytes and less arithmetic."
        effect = (claim_effect("teacher-should-be-clearly-better", here=case.is_here),)
        return Step("damage", "Take a smaller network as student", why, effect, "08", "deploykit.models.build", "name")
    if case.draws:
        why = "Few layers and most of the work on few pixels: quicker than what pruning leaves, for more points."
        call = ("deploykit.models.ResNet", "config")
        return Step("damage", "Draw a small network for the processor", why, (training_loss(DRAWN),), "13", *call)
    why = "Whole blocks leave the widths that kernels like, and save calls, bytes and arithmetic alike."
    effects = (claim_effect("combined-beats-either-alone", here=case.is_here), training_loss(PRUNED))
    call = ("deploykit.pruning.blocks.prune_blocks", "model, names, example_input=images[:1]")
    return Step("damage", "Take out the blocks that are missed least", why, effects, "13", *call)


def teach(case: Case) -> Step:
    """Mend it."""
    labelled, remembers = case.wanted.data == "labelled", case.profile.kind == "cnn" and not case.draws
    with_labels = "original-mends-what-pruning-broke" if remembers else "distillation-beats-labels"
    claim = with_labels if labelled else "teacher-labels-replace-labels"
    why = "The network that is there is a teacher that costs nothing, and after int8 nothing can be mended any more."
    arguments = "teacher=model" if labelled else "teacher=model, alpha=1.0"  # without labels only the teacher counts
    call = ("deploykit.distillation.ResponseLoss", arguments)
    what = f"{'Fine-tune' if remembers else 'Train it'} with the original as teacher"
    return Step("learn", what, why, (claim_effect(claim, here=case.is_here),), "08", *call)


def train_through_rounding(case: Case) -> Step:
    """Fine-tune with rounded numbers."""
    lost, allowed = case.profile.int8_loss_points, case.wanted.budget_points
    why = (
        f"Static int8 was measured to lose {lost:.2g} points where {allowed:.2g} are allowed; training gets some back."
    )
    effects = (claim_effect("qat-is-most-accurate", here=case.is_here),)
    call = ("deploykit.quantization.qat.prepare_qat", "model, images")
    return Step("learn", "Fine-tune through the rounding", why, effects, "05", *call)


def enter_runtime(case: Case) -> Step:
    """Leave the framework."""
    name = RUNTIME_NAMES[case.runtime]
    speed: Effect = claim_effect("a-runtime-beats-the-framework", here=case.is_here)
    if case.recorded:
        speed = recorded_speed(f"{name}, float32", over=EAGER, batch=case.profile.batch)
    why = "A runtime fuses operators and calls no Python between them; answers differ by rounding only."
    if case.runtime == "torch":
        call = ("deploykit.runtimes.inductor.save", "model, path, images=images")
        return Step("runtime", "Compile ahead of time", why, (speed,), "11", *call)
    call = ("deploykit.export.export_onnx", "model, images")
    return Step("runtime", f"Export to ONNX and run it in {name}", why, (speed,), "11", *call)


def enter_tensorrt(case: Case) -> Step:
    """Build an engine of the float32 file, as the baseline on the GPU."""
    why = "The engine in float32 is the number that float16 has to beat on that GPU; int8 comes after both."
    effects = (claim_effect("tensorrt-is-2-to-5-times-faster", here=case.is_here),)
    call = ("deploykit.runtimes.tensorrt_build.build_engine", "onnx_path, engine_path")
    return Step("runtime", "Export to ONNX and build a TensorRT engine", why, effects, "12", *call)


def larger_batches(case: Case) -> Step:
    """Share the overhead of a call."""
    why = (
        "Overhead is paid once a call, however many images are in it, and no latency is demanded that would forbid it."
    )
    effect = claim_effect("choose-batch-size-by-hardware", here=case.is_here)
    if case.recorded:
        effect = recorded_batching(f"{RUNTIME_NAMES[case.runtime]}, float32")
    call = ("deploykit.measure.measure", "predictor, images")
    return Step("runtime", "Hand over more images per call", why, (effect,), "11", *call)


def static_int8(case: Case) -> Step:
    """Quantize with calibration images."""
    what = "Quantize to int8 with calibration images"
    why = "Eight bits are a quarter of the bytes and cheaper products, and it takes minutes; look at the loss."
    effects = _measured(case, "static-is-fast", "static-loses-little")
    target = case.wanted.target
    if case.portable:
        call = ("deploykit.quantization.pt2e.quantize_pt2e", "model, calibration, quantizer='portable'")
    elif case.runtime == "onnxruntime" and target != "x86-vnni":
        options = "reduce_range=True" if target == "x86" else "target='arm'"
        call = ("deploykit.quantization.onnx.quantize_onnx", f"path, calibration, {options}")
    else:
        backend = "inductor" if case.runtime == "torch" else case.runtime
        call = ("deploykit.static_quantization.quantize_static", f"model, calibration, backend={backend!r}")
    return Step("numbers", what, why, effects, "04", *call)


def trained_int8(case: Case) -> Step:
    """Convert what was trained through the rounding."""
    why = "The scales are those that the network was trained with; one ONNX file runs in int8 in every CPU runtime."
    effects = _measured(case, "static-is-fast", "qat-is-most-accurate")
    call = ("deploykit.quantization.qat.convert_qat", "prepared")
    return Step("numbers", "Convert to int8", why, effects, "05", *call)


def dynamic_int8(case: Case) -> Step:
    """Quantize without images."""
    recurrent = case.profile.kind == "recurrent"
    why = (
        "Static quantization leaves recurrent layers in float; PyTorch has dynamic kernels for them, and needs no "
        "images. The file becomes a quarter; time is gained where the weights are large, and may be lost elsewhere."
        if recurrent
        else "Its work is in matrix products, which this reaches, and there are no images to calibrate with."
    )
    speed = "dynamic-suits-recurrent-networks" if recurrent else "dynamic-speeds-up-little"
    effects = (claim_effect(speed, here=case.is_here), claim_effect("dynamic-needs-no-data", here=case.is_here))
    call = ("deploykit.quantization.dynamic.quantize_dynamic", "model")
    return Step("numbers", "Quantize dynamically", why, effects, "03", *call)


def bf16(case: Case) -> Step:
    """Compute in bfloat16."""
    why = "The processor multiplies bfloat16, which needs no images and loses next to nothing."
    effects = _measured(case, "choose-precision-by-hardware")
    call = ("deploykit.runtimes.openvino.load", "path, precision='bf16'")
    return Step("numbers", "Let OpenVINO compute in bfloat16", why, effects, "10", *call)


def float16(case: Case) -> Step:
    """Convert the file for the GPU."""
    why = "GPUs multiply float16 much faster, and in TensorRT the types in the file decide; build the engine from it."
    effects = (claim_effect("fp16-without-accuracy-loss", here=case.is_here),)
    call = ("deploykit.export.convert_precision", "exported, 'float16'")
    return Step("numbers", "Convert the file to float16", why, effects, "12", *call)


def _measured(case: Case, *otherwise: str) -> tuple[Effect, ...]:
    """Return speed and loss of the case's form from the recorded runs, or what the claims say."""
    if not case.recorded:
        return tuple(claim_effect(claim, here=case.is_here) for claim in otherwise)
    over = f"{RUNTIME_NAMES[case.runtime]}, float32"
    return recorded_speed(case.form, over=over, batch=case.profile.batch), recorded_loss(case.form)
