"""What does a teacher add to a training step? In turns with a step of labels alone, ratios within one run.

    python benchmarks/distillation_cost.py                                    # ResNet-56 teaches ResNet-20, 3 minutes

The teacher answers in float32, under bf16 autocast as in `fit`, compiled, with its batch norms folded and in bf16 in
PyTorch, compiled or not, and in OpenVINO, as int8 in ONNX Runtime, and from answers that were kept. Features and
relations are added to the answers. At last the student is trained in float32, too. Writes
data/results/distillation-cost-STUDENT-from-TEACHER.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from deploykit.data import Batches, load_dataset
from deploykit.distillation import (
    AttentionLoss,
    FeatureLoss,
    RelationLoss,
    ResponseLoss,
    SimilarityLoss,
    Teacher,
    cache_teacher_logits,
)
from deploykit.export import export_onnx
from deploykit.free_speed import fast_predictor
from deploykit.measure import compare
from deploykit.models import build, load_pretrained
from deploykit.quantization.onnx import quantize_onnx
from deploykit.recorded import recorded, write_recorded
from deploykit.runtimes import onnxruntime, openvino
from deploykit.training import Loss, cross_entropy, resolve_precision

PAIRS = {
    "resnet8": "blocks.2",
    "resnet20": "blocks.8",
    "resnet20x4": "blocks.8",
    "resnet56": "blocks.26",
}  # last blocks


def step(student_name: str, labels: Tensor, make: Callable[[torch.nn.Module], Loss], *, bf16: bool) -> Teacher:
    """Return a training step, without the optimizer's, as a predictor that ``compare`` can call."""
    student = build(student_name).to(memory_format=torch.channels_last).train()
    loss = make(student)

    def one_step(images: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            given = images.clone()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss(student, given, labels)
            student.zero_grad(set_to_none=True)
            value.backward()
        return torch.zeros(len(images), 10)

    return one_step


def in_float32(teacher: torch.nn.Module) -> Teacher:
    """Return a teacher that does not take part in the autocast of the training."""

    def answers(images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return teacher(images)

    return answers


def main() -> None:
    """Measure all ways in turns; record and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--teacher", default="resnet56", choices=PAIRS)
    arguments.add_argument("--student", default="resnet20", choices=PAIRS)
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--budget-s", type=float, default=90)
    given = arguments.parse_args()
    dataset = load_dataset("cifar10")
    images, labels = next(iter(Batches(dataset.train, dataset, batch_size=given.batch_size, augment=True)))
    teacher = load_pretrained(given.teacher, dataset.name).to(memory_format=torch.channels_last)
    layers = {PAIRS[given.student]: PAIRS[given.teacher]}
    with tempfile.TemporaryDirectory() as folder:
        proto = export_onnx(teacher, images.contiguous())
        int8 = onnxruntime.load(
            onnxruntime.save(quantize_onnx(proto, [images.contiguous()]).model, Path(folder) / "t.onnx")
        )
        onnxruntime.save(proto, float_file := Path(folder) / "float.onnx")
        in_openvino = openvino.load(float_file, precision="bf16")
        kept = cache_teacher_logits(teacher, [(images, labels)], Path(folder) / "logits.pt")
    ways: dict[str, Callable[[torch.nn.Module], Loss]] = {
        "labels": lambda _: cross_entropy(),
        "teacher in float32": lambda _: ResponseLoss(in_float32(teacher)),
        "teacher as in fit (bf16)": lambda _: ResponseLoss(teacher),
        "teacher compiled (bf16)": lambda _: ResponseLoss(torch.compile(teacher)),
        "teacher folded, in bf16": lambda _: ResponseLoss(fast_predictor(teacher, bf16=True)),
        "teacher folded, compiled, in bf16": lambda _: ResponseLoss(fast_predictor(teacher, bf16=True, compiled=True)),
        "teacher folded, in bf16, OpenVINO": lambda _: ResponseLoss(lambda x: in_openvino(x.contiguous())),
        "teacher in int8, ONNX Runtime": lambda _: ResponseLoss(lambda x: int8(x.contiguous())),
        "answers kept": lambda _: ResponseLoss(kept),
        "as in fit, and features": lambda s: (
            ResponseLoss(teacher) + FeatureLoss(teacher, layers, student=s, images=images[:2])
        ),
        "as in fit, and attention": lambda _: ResponseLoss(teacher) + AttentionLoss(teacher, layers),
        "as in fit, and relations": lambda _: ResponseLoss(teacher) + RelationLoss(teacher, layers),
        "as in fit, and similarities": lambda _: ResponseLoss(teacher) + SimilarityLoss(teacher, layers),
    }
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
    steps = {name: step(given.student, labels, make, bf16=bf16) for name, make in ways.items()}
    plain = {f"student in float32, {name}": name for name in ("labels", "teacher folded, compiled, in bf16")}
    steps |= {name: step(given.student, labels, ways[like], bf16=False) for name, like in plain.items()}
    found = compare(steps, images.contiguous(), budget_s=given.budget_s)
    references, rows = {"labels": "times_labels", "teacher as in fit (bf16)": "times_teacher"}, []
    for name in steps:
        row = {"step": name, "median_ms": round(found.measurements[name].median_ms, 1)}
        for over, key in (references if name in ways else {"student in float32, labels": "times_labels"}).items():
            if name != over:
                ratio = found.ratio(over, over=name)
                row[key] = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append(row)
    name = f"distillation-cost-{given.student}-from-{given.teacher}"
    what = f"a training step of {given.student} at batch {given.batch_size}, alone and with {given.teacher} as teacher"
    write_recorded(
        name, rows, what=what, command=shlex.join(["python", "benchmarks/distillation_cost.py", *sys.argv[1:]])
    )
    print(recorded(name))


if __name__ == "__main__":
    main()
