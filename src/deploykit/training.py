"""One training loop and one evaluation for the whole course: fine-tuning, QAT, distillation and mixed precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from deploykit.data import Batches, refuse_test_split
from deploykit.evaluation import Accuracy, Predictor, evaluate
from deploykit.resumable import DivergedError, ResumableRun, TrainingLog

__all__ = [
    "OPTIMIZERS",
    "Accuracy",
    "DivergedError",
    "Loss",
    "Predictor",
    "TrainingLog",
    "cross_entropy",
    "evaluate",
    "fit",
    "muon",
    "resolve_precision",
    "schedule_factor",
    "sgd",
]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("cosine", "one-cycle")
CONVOLUTION_DIMENSIONS = 4  # a weight is [out, in, height, width]


def cross_entropy(*, label_smoothing: float = 0.0) -> Loss:
    """Return the ordinary loss in the form that :func:`fit` takes: ``(model, images, labels) -> scalar``."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)

    return loss


def sgd(
    model: nn.Module, *, peak_lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    """SGD with Nesterov momentum, the field's default for small residual networks."""
    return torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=momentum, nesterov=True, weight_decay=weight_decay)


def muon(
    model: nn.Module,
    *,
    peak_lr: float = 0.02,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    other_lr: float = 2e-3,
) -> torch.optim.Optimizer:
    """Muon for the convolutions and AdamW for the rest, in one optimizer (timm's).

    Muon orthogonalises the momentum of each convolution, flattened to a matrix, before it is applied (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon/). Where epochs are few it reaches the accuracy of SGD in fewer.

    Args:
        model: its parameters with four dimensions go to Muon.
        peak_lr: learning rate of the convolutions.
        momentum: of the convolutions, Nesterov.
        weight_decay: decoupled, for both parts.
        other_lr: AdamW's learning rate for biases, normalisation and linear layers.

    Raises:
        ImportError: timm is missing; the message names the extra.
    """
    try:
        from timm.optim import Muon
    except ImportError as error:
        raise ImportError("the Muon optimizer is timm's: pip install 'deploykit[training]'") from error
    convolutions = [p for p in model.parameters() if p.ndim == CONVOLUTION_DIMENSIONS]
    others = [p for p in model.parameters() if p.ndim != CONVOLUTION_DIMENSIONS]
    groups: list[dict[str, Any]] = [{"params": convolutions}, {"params": others, "use_fallback": True}]
    return Muon(
        groups,
        lr=peak_lr, momentum=momentum, nesterov=True, weight_decay=weight_decay,
        conv_mode="flatten", fallback_lr_scale=other_lr / peak_lr,
    )  # fmt: skip


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "muon": muon}


def schedule_factor(progress: float, *, schedule: str = "cosine", warmup: float = 0.0) -> float:
    """Return the learning rate at ``progress`` in [0, 1] of training, as a share of the peak.

    "cosine" falls as (1 + cos(pi t)) / 2 (Loshchilov & Hutter 2017, eq. 5, one period), "one-cycle" linearly (after
    Smith & Topin 2018); both rise linearly during the first ``warmup`` share of training and end at 0.
    """
    if progress < warmup:
        return progress / warmup
    t = (progress - warmup) / (1 - warmup)
    return (1 + math.cos(math.pi * t)) / 2 if schedule == "cosine" else 1 - t


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into "bf16" where the hardware multiplies bf16 natively, else "fp32"; check the others.

    Raises:
        ValueError: an unknown name, or "fp16" on a CPU.
    """
    if precision != "auto" and precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is unknown; use auto, {', '.join(DTYPES)}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            "precision 'fp16' needs a CUDA device, where GradScaler guards it; on a CPU use 'bf16' or 'fp32'"
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16") else "fp32"


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    loss: Loss | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    schedule: str = "cosine",
    warmup: float = 0.0,
    precision: str = "auto",
    ema_decay: float | None = None,
    validation: Batches | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every_s: float = 120.0,
    progress: bool = False,
) -> TrainingLog:
    """Train ``model`` in place and return its log; the model ends in eval mode.

    Args:
        model: any module from float [N, 3, H, W] to logits [N, classes]; it is moved to channels_last.
        batches: training batches; their order and augmentation depend on (seed, epoch, step) only.
        epochs: passes over the data.
        loss: ``(model, images, labels) -> scalar``; plain cross-entropy when not given.
        optimizer: called with the model; the learning rate it sets is the peak of the schedule.
        schedule: "cosine" or "one-cycle", both to 0.
        warmup: share of training in which the learning rate rises linearly from 0.
        precision: "fp32", "bf16", "fp16" (CUDA, with GradScaler), or "auto": bf16 where the hardware has it.
        ema_decay: when given, the model ends with the exponential moving average of its weights, at this decay.
        validation: when given, accuracy on it is logged after each epoch.
        checkpoint: when given, the state is kept in this file while training runs, and a run that finds the file
            goes on from it exactly, in mid-epoch too: the weights are those of an unbroken run, bit for bit.
        checkpoint_every_s: seconds between two writes of that file; it is also written on Ctrl-C.
        progress: show a progress bar.

    Raises:
        ValueError: the test split was given; an unknown precision or schedule; a checkpoint of another run.
        DivergedError: the loss is NaN or infinite; says at which step.
    """
    _check(batches, validation, epochs=epochs, schedule=schedule, warmup=warmup)
    model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    dtype = DTYPES[resolve_precision(precision, device)]
    loss = loss or cross_entropy()
    steps = epochs * len(batches)
    stepper = optimizer(model)
    factor = functools.partial(schedule_factor, schedule=schedule, warmup=warmup)
    scheduler = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: factor(step / steps))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True) if ema_decay else None
    )

    parts = {"model": model, "optimizer": stepper, "scheduler": scheduler, "scaler": scaler, "average": average}
    key = {"epochs": epochs, "batches": len(batches), "seed": batches.seed, "schedule": schedule, "warmup": warmup}
    run = ResumableRun(
        parts, key | {"ema_decay": ema_decay}, path=Path(checkpoint) if checkpoint else None, every_s=checkpoint_every_s
    )
    run.restore()
    bar = tqdm(total=steps, initial=run.epoch * len(batches) + run.step, disable=not progress, unit="step", leave=False)
    with bar, run.stopped_between_steps():
        for epoch in range(run.epoch, epochs):
            model.train()
            for batch in batches.epoch(epoch, start=run.step):
                images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    value = loss(model, images, labels)
                run.note_loss(value.item(), learning_rate=float(scheduler.get_last_lr()[0]))
                stepper.zero_grad(set_to_none=True)
                scaler.scale(value).backward()
                scaler.step(stepper)
                scaler.update()
                scheduler.step()
                if average is not None:
                    average.update_parameters(model)
                run.finish_step()
                bar.update()
            accuracy = evaluate(average or model, validation).accuracy if validation is not None else None
            row = run.finish_epoch(learning_rate=float(scheduler.get_last_lr()[0]), validation_accuracy=accuracy)
            bar.set_postfix(row)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return run.log


def _check(batches: Batches, validation: Batches | None, *, epochs: int, schedule: str, warmup: float) -> None:
    refuse_test_split(batches, "training")
    if validation is not None:
        refuse_test_split(validation, "choosing by validation accuracy")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
    if epochs < 1 or not 0 <= warmup < 1:
        raise ValueError(f"epochs is {epochs} and warmup {warmup}; epochs must be 1 or more, warmup a share in [0, 1)")
