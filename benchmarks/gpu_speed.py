"""What does low precision save on this GPU, and what do CUDA graphs and 2:4 sparsity?

    python benchmarks/gpu_speed.py      # on a quiet machine with a GPU of compute capability 8.0 or newer, two minutes

A training step and inference, all forms of one in turns, from random weights: time does not depend on them. Writes
data/results/gpu-speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from fine_tuning import command
from on_gpu import GraphedTeacher, graphed
from torch import Tensor, nn

from deploykit.measure import compare
from deploykit.models import build
from deploykit.pruning.masks import make_permanent
from deploykit.pruning.semi_structured import prune_2_4, to_semi_structured
from deploykit.recorded import recorded, write_recorded
from deploykit.training import cross_entropy, sgd

Predictor = Callable[[Tensor], Tensor]

PLAIN, TF32 = "fp32", "fp32 through TF32 (PyTorch's default for convolutions)"
FORMS: dict[str, torch.dtype | None] = {PLAIN: None, TF32: None, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH = "bf16 as CUDA graphs"
SQUARE = 4096  # inputs, outputs and images of the linear layer


@contextlib.contextmanager
def as_asked(form: str) -> Iterator[None]:
    """Compute in the precision of a form."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = form != PLAIN
    dtype = FORMS.get(form, torch.bfloat16)
    try:
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def step(name: str, form: str, images: Tensor, labels: Tensor, stack: contextlib.ExitStack) -> Predictor:
    """Return a whole training step, the optimizer's part included; fp16 with a GradScaler."""
    network = build(name).cuda().to(memory_format=torch.channels_last).train()
    optimizer, loss = sgd(network, peak_lr=1e-3), cross_entropy()
    scaler = torch.amp.GradScaler("cuda", enabled=form == "fp16")
    if form == GRAPH:
        stack.enter_context(graphed(network, images))

    def one_step(images: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            with as_asked(form):
                value = loss(network, images, labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        return labels.new_zeros(len(images), 1).float()

    return one_step


def inference(network: nn.Module, form: str, images: Tensor) -> Predictor:
    """Return a predictor in the precision of a form."""
    if form == GRAPH:
        return GraphedTeacher(network, images)

    def answer(images: Tensor) -> Tensor:
        with as_asked(form):
            return network(images)

    return answer


def rows_of(what: str, network: str, forms: Mapping[str, Predictor], images: Tensor, budget_s: float) -> list[dict]:
    """Return one row for each form: its median, and its speed over the first."""
    found = compare(forms, images, device="cuda", budget_s=budget_s)
    rows: list[dict[str, Any]] = []
    for form in forms:
        row = {"what": what, "network": network, "batch": len(images), "form": form}
        row["median_ms"] = round(found.measurements[form].median_ms, 3)
        first = next(iter(forms))
        if form != first:
            ratio = found.ratio(form, over=first)
            row |= {"times": round(ratio.value, 2), "times_low": round(ratio.low, 2)}
            row["times_high"] = round(ratio.high, 2)
        rows.append(row)
    return rows


def main() -> None:
    """Time, record and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=6, help="of each comparison")
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(128, 3, 32, 32, generator=generator).cuda().to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (128,), generator=generator).cuda()
    rows = []
    for name in ("resnet20", "resnet56", "resnet20x4"):
        with contextlib.ExitStack() as stack:
            steps = {form: step(name, form, images, labels, stack) for form in (*FORMS, GRAPH)}
            rows += rows_of("training step", name, steps, images, given.budget_s)
    for name, batch in (("resnet56", 64), ("resnet56", 1), ("resnet20x4", 64)):
        network = build(name).cuda().to(memory_format=torch.channels_last).eval()
        answers = {form: inference(network, form, images[:batch]) for form in (*FORMS, GRAPH)}
        rows += rows_of("inference", name, answers, images[:batch], given.budget_s)
    dense = nn.Sequential(nn.Flatten(), make_permanent(prune_2_4(nn.Linear(SQUARE, SQUARE)))).cuda().half()
    sparse = to_semi_structured(copy.deepcopy(dense))
    forms = {"dense": lambda images: dense(images.half()), "2:4": lambda images: sparse(images.half())}
    inputs = torch.randn(SQUARE, 16, 16, 16, generator=generator).cuda()
    rows += rows_of("inference in fp16", f"a linear layer, {SQUARE} to {SQUARE}", forms, inputs, given.budget_s)
    what = f"training steps and inference on an {torch.cuda.get_device_name()}, 32x32 images, forms timed in turns"
    write_recorded("gpu-speed", rows, what=what, command=command())
    print(recorded("gpu-speed"))


if __name__ == "__main__":
    main()
