"""What is often advised and is not worth trying in a given case, with the place where the course shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploykit.advisor.case import Case
from deploykit.advisor.effects import recorded_speed
from deploykit.advisor.plan import Avoided

U8S8, S8S8 = "ONNX Runtime, int8 u8s8", "ONNX Runtime, int8 s8s8"


@dataclass(frozen=True)
class Objection:
    """When something is not worth trying, and what is said then; ``source`` is a claim's id or a document."""

    what: str
    why: str
    source: str
    notebook: str
    holds: Callable[[Case], bool]


def _is_cpu(case: Case) -> bool:
    return case.wanted.target != "nvidia"


OBJECTIONS = (
    Objection(
        "dynamic quantization",
        "it reaches linear and recurrent layers only, and a convolutional network has next to none",
        "claim static-suits-cnns",
        "03",
        lambda case: case.profile.kind == "cnn",
    ),
    Objection(
        "static int8 of the exported recurrent layers",
        "ONNX Runtime and OpenVINO leave them in float32",
        "claim dynamic-suits-recurrent-networks",
        "03",
        lambda case: case.profile.kind == "recurrent",
    ),
    Objection(
        "float16 on a CPU",
        "it halves the file, and the arithmetic is done in float32 or slower",
        "claim float16-files-are-faster",
        "11",
        _is_cpu,
    ),
    Objection(
        "eight-bit weights without VNNI",
        "pairs of products are added in 16 bits and overflow without a message; seven bits do not (reduce_range)",
        "ONNX Runtime, Quantize ONNX models",
        "04",
        lambda case: case.wanted.target == "x86",
    ),
    Objection(
        "the int8 file for x86",
        "TensorRT's parser refuses unsigned activations and zero points other than 0",
        "claim one-int8-file-for-every-runtime",
        "12",
        lambda case: case.wanted.target == "nvidia",
    ),
    Objection(
        "training through the rounding first",
        "rounding alone loses next to nothing at eight bits, and takes minutes: try it before",
        "claim static-before-qat",
        "05",
        lambda case: case.numbers == "static int8" and case.profile.int8_loss_points is None,
    ),
    Objection(
        "pruning after int8",
        "integers have no gradient, so nothing can mend it any more",
        "claim prune-first-then-quantize",
        "13",
        lambda case: case.shrinks,
    ),
    Objection(
        "pruning without a fine-tuning",
        "it is the training that brings the accuracy back; that needs images and minutes",
        "claim structured-loses-accuracy",
        "06",
        lambda case: not case.can_train,
    ),
    Objection(
        "narrower layers where overhead binds",
        "they are as many calls as before",
        "claim measure-after-each-step",
        "13",
        lambda case: case.profile.kind == "cnn" and case.profile.bottleneck == "overhead",
    ),
    Objection(
        "setting weights to zero for speed",
        "a product with zero takes as long as any other",
        "claim masking-makes-faster",
        "06",
        lambda _: True,
    ),
)


def avoided(case: Case) -> tuple[Avoided, ...]:
    """Return all that is not worth trying in this case."""
    if case.met:
        return ()
    found = [Avoided(w.what, w.why, w.source, w.notebook) for w in OBJECTIONS if w.holds(case)]
    if case.wanted.target in {"x86", "x86-vnni"} and case.numbers in {"static int8", "trained int8"}:
        found.insert(0, _signed_activations(case))
    return tuple(found)


def _signed_activations(case: Case) -> Avoided:
    speed = recorded_speed(S8S8, over=U8S8, batch=case.profile.batch)
    why = "x86 multiplies unsigned by signed bytes; ONNX Runtime has to emulate the rest"
    return Avoided("signed activations (s8s8)", why, str(speed), "04")
