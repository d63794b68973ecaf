"""One training loop and one evaluation for the whole course: fine-tuning, QAT, distillation and mixed precision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from deploykit import distributed
from deploykit.data import Batches, refuse_test_split
from deploykit.evaluation import Accuracy, Predictor, evaluate, evaluate_together
from deploykit.identity import describe, differences, optimizer_settings
from deploykit.optimizers import OPTIMIZERS, SCHEDULES, adamw, muon, schedule_factor, sgd
from deploykit.resumable import DivergedError, ResumableRun, TrainingLog

__all__ = [
    "OPTIMIZERS",
    "Accuracy",
    "CrossEntropy",
    "DivergedError",
    "Loss",
    "Predictor",
    "TrainingLog",
    "adamw",
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


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The ordinary loss, in the form that :func:`fit` takes; it prints its settings, which are part of a run's key."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, a scalar."""
        return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)


def cross_entropy(*, label_smoothing: float = 0.0) -> Loss:
    """Return the ordinary loss in the form that :func:`fit` takes: ``(model, images, labels) -> scalar``."""
    return CrossEntropy(label_smoothing)


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

    Under torchrun, within ``distributed.joined()``, the same call on every process trains one model: each takes its
    part of every batch, gradients and loss are those of the whole, and all processes end with the same weights, or
    with the same error. The curve is that of one process, up to rounding, except for BatchNorm: it normalises with
    the statistics of each process's part (as DistributedDataParallel always has it), while its running statistics
    are averaged over the processes after each step.

    Args:
        model: any module from float [N, 3, H, W] to logits [N, classes]; it is moved to channels_last.
        batches: training batches; their order and augmentation depend on (seed, epoch, step) only.
        epochs: passes over the data.
        loss: ``(model, images, labels) -> scalar``, the mean over the images; plain cross-entropy when not given. It
            is recognised by what it prints or by its qualified name. Under torchrun it gets the model wrapped.
        optimizer: called with the model; the learning rate it sets is the peak of the schedule.
        schedule: "cosine" or "one-cycle", both to 0.
        warmup: share of training in which the learning rate rises linearly from 0.
        precision: "fp32", "bf16", "fp16" (CUDA, with GradScaler), or "auto": bf16 where the hardware has it.
        ema_decay: when given, the model ends with the exponential moving average of its weights, at this decay.
        validation: when given, accuracy on it is logged after each epoch.
        checkpoint: when given, the state is kept in this file while training runs, and a run that finds the file
            goes on from it exactly, in mid-epoch too: the weights are those of an unbroken run, bit for bit (by the
            same number of processes; with more than two, the order in which gradients are added may differ).
        checkpoint_every_s: seconds between two writes of that file; it is also written on Ctrl-C.
        progress: show a progress bar.

    Raises:
        ValueError: the test split or no batch was given; an unknown precision or schedule; a checkpoint of another run
            (the message names each setting that differs); processes that were given different trainings.
        KeyboardInterrupt: Ctrl-C or SIGTERM, on any process; the step under way is finished and the state written.
        DivergedError: the loss is NaN or infinite; says at which step.
    """
    batches = _check(batches, validation, epochs=epochs, schedule=schedule, warmup=warmup)
    model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    precision = resolve_precision(precision, device)
    dtype = DTYPES[precision]
    loss = loss or cross_entropy()
    steps = epochs * len(batches)
    stepper = optimizer(model)
    key = _key(
        batches, stepper, model=model, loss=loss, epochs=epochs, schedule=schedule, warmup=warmup, precision=precision,
        ema_decay=ema_decay, validation=getattr(validation, "split", None), checkpoint=bool(checkpoint),
    )  # fmt: skip
    network = distributed.share_gradients(model)
    factor = functools.partial(schedule_factor, schedule=schedule, warmup=warmup)
    scheduler = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: factor(step / steps))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True) if ema_decay else None
    )
    parts = {"model": model, "optimizer": stepper, "scheduler": scheduler, "scaler": scaler, "average": average}
    run = ResumableRun(parts, key, path=Path(checkpoint) if checkpoint else None, every_s=checkpoint_every_s)
    run.restore()
    shown = progress and distributed.is_first()
    bar = tqdm(total=steps, initial=run.epoch * len(batches) + run.step, disable=not shown, unit="step", leave=False)
    with bar, run.stopped_between_steps():
        for epoch in range(run.epoch, epochs):
            model.train()
            for batch in batches.epoch(epoch, start=run.step):
                images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    value = loss(network, images, labels)
                rate = float(scheduler.get_last_lr()[0])
                weight = run.note_loss(value.item(), images=len(labels), learning_rate=rate)
                stepper.zero_grad(set_to_none=True)
                scaler.scale(value * weight).backward()
                scaler.step(stepper)
                scaler.update()
                scheduler.step()
                distributed.average_buffers(model)
                if average is not None:
                    average.update_parameters(model)
                run.finish_step()
                bar.update()
            accuracy = evaluate_together(average or model, validation).accuracy if validation is not None else None
            row = run.finish_epoch(learning_rate=float(scheduler.get_last_lr()[0]), validation_accuracy=accuracy)
            bar.set_postfix(row)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return run.log


def _check(batches: Batches, validation: Batches | None, *, epochs: int, schedule: str, warmup: float) -> Batches:
    """Refuse what cannot be meant; return this process's part of the batches."""
    refuse_test_split(batches, "training")
    if validation is not None:
        refuse_test_split(validation, "choosing by validation accuracy")
        validation.for_rank(0, 1)  # each process takes its share of whole batches
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; use one of {', '.join(SCHEDULES)}")
    if epochs < 1 or not 0 <= warmup < 1:
        raise ValueError(f"epochs is {epochs} and warmup {warmup}; epochs must be 1 or more, warmup a share in [0, 1)")
    if not len(batches):
        raise ValueError(
            "there is not one whole batch to train on; give a smaller batch size, or batches without drop_last"
        )
    return batches.for_rank(*distributed.place())


def _key(batches: Batches, optimizer: torch.optim.Optimizer, **settings: object) -> dict[str, Any]:
    """Return what identifies a training; see that all processes are at the same one.

    The weights it starts from are not in it: those of the file count.
    """
    _, processes = distributed.place()
    described = {name: describe(value) for name, value in settings.items()}
    key = optimizer_settings(optimizer) | batches.settings() | described | {"processes": processes}
    for rank, other in enumerate(distributed.on_each(lambda: key)):
        if different := differences(other, key):
            raise ValueError(
                f"the processes were given different trainings (rank {rank}: {different}); "
                "call fit with the same arguments on all of them"
            )
    return key
