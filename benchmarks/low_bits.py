"""How much accuracy do 4, 3 and 2 bits cost, rounded only and trained with the rounding in place?

    python benchmarks/low_bits.py                                          # 3 x 40 epochs, hours
    python benchmarks/low_bits.py --bits 3 --split train --epochs 10       # to choose a recipe, judged on val
    python benchmarks/low_bits.py --model resnet8 --dataset shapes32 --images 640 --epochs 1 --out build/trial

Each number of bits starts from the weights of the one before (Zhuang et al. 2018, "Towards Effective Low-bitwidth
Convolutional Neural Networks", progressive quantization), the first from the float network, which is also the teacher
of all unless --teachers are named. Stopped with Ctrl-C or killed, the same command goes on from where it was. Writes a
folder MODEL-DATASET-wBaB for each and, unless it is a trial, data/results/low-bits-B.json.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime as dt
import functools
import sys
from pathlib import Path
from typing import Any, cast

import torch
from fine_tuning import command
from teaching import add_teachers, lessons, who_taught
from torch import nn

from deploykit.cards import model_card
from deploykit.cost import macs, parameters
from deploykit.data import Batches, load_dataset
from deploykit.distillation import ResponseLoss
from deploykit.machine import machine
from deploykit.models import Network, load_pretrained
from deploykit.places import atomic_write, data_folder
from deploykit.quantization.low_bit_files import integer_weights, save_low_bits
from deploykit.quantization.low_bits import parameter_groups, prepare_low_bits
from deploykit.recorded import write_recorded
from deploykit.significance import paired_difference
from deploykit.training import Accuracy, TrainingLog, evaluate, fit, resolve_precision

Row = dict[str, Any]

CALIBRATION_IMAGES = 512
WEIGHT_DECAY = {4: 1e-4, 3: 5e-5, 2: 2.5e-5}  # LSQ, table 2: half at 3 bits, a quarter at 2: rounding regularises
WARMUP = 0.05
STATE = "training-state.pt"


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network was trained, and the log of it."""

    recipe: Row
    log: TrainingLog


def sgd(
    model: nn.Module, *, peak_lr: float, weight_decay: float, step_lr: float, momentum: float = 0.9
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum in which the steps of the quantizers do not decay."""
    groups = parameter_groups(model, lr=peak_lr, weight_decay=weight_decay, step_lr=step_lr)
    return torch.optim.SGD(groups, lr=peak_lr, momentum=momentum, nesterov=True)


def quantized(model: Network, calibration: Batches, bits: int) -> Network:
    """Return ``model`` with weights and activations of ``bits``, edges of 8, steps from the calibration images."""
    prepared = prepare_low_bits(model, calibration, weight_bits=bits, activation_bits=bits)
    return cast("Network", prepared.to(memory_format=torch.channels_last))


def train(network: Network, batches: Batches, loss: ResponseLoss, given: argparse.Namespace, *, bits: int) -> Training:
    """Train a prepared network in place; go on from its folder's state where there is one."""
    recipe: Row = {
        "optimizer": "sgd, Nesterov momentum 0.9",
        "peak_lr": given.peak_lr,
        "step_lr": given.step_lr,
        "weight_decay": f"{WEIGHT_DECAY.get(bits, WEIGHT_DECAY[4])}, steps 0",
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "schedule": f"cosine to 0, warm-up {WARMUP:.0%}",
        "loss": repr(loss),
        **who_taught(given),
        "precision": resolve_precision(given.precision, torch.device("cpu")),
        "seed": given.seed,
        "augmentation": "random crop with padding 4, horizontal flip",
    }
    optimizer = functools.partial(
        sgd,
        peak_lr=given.peak_lr,
        step_lr=given.step_lr,
        weight_decay=WEIGHT_DECAY.get(bits, WEIGHT_DECAY[4]),
    )
    log = fit(
        network, batches,
        epochs=given.epochs, loss=loss, optimizer=optimizer, schedule="cosine", warmup=WARMUP,
        precision=given.precision, checkpoint=folder(given, bits) / STATE, progress=sys.stderr.isatty(),
    )  # fmt: skip
    return Training(recipe, log)


def folder(given: argparse.Namespace, bits: int) -> Path:
    """Return where the network of a number of bits belongs."""
    return given.out / f"{given.model}-w{bits}a{bits}-{given.dataset}"


def row(bits: int, network: nn.Module, log: TrainingLog, *, fp32: Accuracy, ptq: Accuracy, qat: Accuracy) -> Row:
    """Return what is recorded of a number of bits: accuracies from 0 to 1, differences in points."""
    lost = paired_difference(fp32.correct, qat.correct)
    low, high = qat.interval
    edges = {weights.bits for weights in integer_weights(network).values()}
    return {
        "weight_bits": bits,
        "activation_bits": bits,
        "edge_bits": max(edges),
        "judged_on": qat.split,
        "judged_images": qat.images,
        "accuracy_fp32": fp32.accuracy,
        "accuracy_ptq": ptq.accuracy,
        "accuracy_qat": qat.accuracy,
        "accuracy_qat_low": low,
        "accuracy_qat_high": high,
        "qat_minus_fp32_points": round(100 * lost.difference, 2),
        "qat_minus_fp32_points_low": round(100 * lost.interval[0], 2),
        "qat_minus_fp32_points_high": round(100 * lost.interval[1], 2),
        "weights_kib": round(sum(weights.kib for weights in integer_weights(network).values()), 1),
        "epochs": len(log.rows),
        "minutes": round(log.rows[-1]["seconds"] / 60, 1),
    }


def write(network: Network, training: Training, accuracy: Accuracy, given: argparse.Namespace, *, bits: int) -> None:
    """Write the folder of a trained network: integers, model card and log."""
    there = folder(given, bits)
    example = torch.zeros(1, 3, 32, 32)
    description = network.config.description
    card = model_card(
        name=f"{given.model}-w{bits}a{bits}",
        dataset=given.dataset,
        description=(
            f"{description[0].upper()}{description[1:]} with weights and activations of {bits} bits, 8 in the first "
            "and the last layer (LSQ). `model.safetensors` holds the integers and their steps; load it with "
            "`deploykit.quantization.low_bit_files.load_low_bits`."
        ),
        accuracy=accuracy,
        trained_on=f"{given.split} ({given.images or 'all'} images)",
        recipe=training.recipe,
        machine=machine() | {"gpu": None},  # its networks stay on the CPU
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        minutes=training.log.rows[-1]["seconds"] / 60,
        command=command(),
        parameters=parameters(network),
        macs=macs(network, example),
    )
    save_low_bits(network, there)
    training.log.to_csv(there / "training-log.csv")
    with atomic_write(there / "README.md") as partial:
        partial.write_text(card, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a pretrained network, the teacher too")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], help="one after the other")
    parser.add_argument("--split", choices=("train", "train+val"), default="train+val")
    parser.add_argument("--images", type=int, help="train and judge on so many only: a trial")
    parser.add_argument("--epochs", type=int, default=40, help="for each number of bits")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peak-lr", type=float, default=0.04)
    parser.add_argument("--step-lr", type=float, default=0.04, help="of the quantizers' steps")
    parser.add_argument("--alpha", type=float, default=0.9, help="share of the teacher in the loss")
    parser.add_argument("--temperature", type=float, default=4.0)
    add_teachers(parser)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--out", type=Path, help="folder of the results; given, no recorded run is written")
    return parser.parse_args()


def main() -> None:
    """Train one number of bits after the other; record and print the table."""
    given = arguments()
    trial = given.out is not None or given.split == "train" or given.images is not None
    if given.out is None:
        given.out = (Path("build") / "low-bits") if trial else data_folder() / "checkpoints"
    dataset = load_dataset(given.dataset)
    given.dataset = dataset.name
    part, judged = (dataset.train, dataset.val) if given.split == "train" else (dataset.train_val, dataset.test)
    if given.images is not None:
        part, judged = part.take(given.images), judged.take(given.images)
    calibration = Batches(dataset.train.take(CALIBRATION_IMAGES), dataset, batch_size=128)
    judging = Batches(judged, dataset, batch_size=500)
    full = load_pretrained(given.model, dataset.name).to(memory_format=torch.channels_last)
    batches, teacher = lessons(part, dataset, given, itself=full)
    loss = ResponseLoss(teacher, temperature=given.temperature, alpha=given.alpha)
    fp32 = evaluate(full, judging)
    latest = copy.deepcopy(full)
    what = (
        f"{given.model} on {dataset.name} with {{bits}} bits: rounded only (PTQ), trained with the rounding (QAT, LSQ)"
    )
    for bits in given.bits:
        ptq = evaluate(quantized(full, calibration, bits), judging)
        network = quantized(latest, calibration, bits)
        training = train(network, batches, loss, given, bits=bits)
        qat = evaluate(network, judging)
        write(network, training, qat, given, bits=bits)
        found = row(bits, network, training.log, fp32=fp32, ptq=ptq, qat=qat)
        print(found, flush=True)
        if not trial:
            write_recorded(f"low-bits-{bits}", [found], what=what.format(bits=bits), command=command())
        # The float weights behind the integers, without the steps: where the next number of bits starts.
        latest.load_state_dict(network.state_dict(), strict=False)
    for bits in given.bits:
        (folder(given, bits) / STATE).unlink(missing_ok=True)  # kept so far: the next bits start from them
    if trial:
        print(f"a trial: networks in {given.out}, nothing recorded")


if __name__ == "__main__":
    main()
