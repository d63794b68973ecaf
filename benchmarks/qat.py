"""Is quantization-aware training at 8 bits more accurate than the best quantization after training? Several seeds.

    python benchmarks/qat.py                                             # 3 seeds of 5 epochs, about half an hour
    python benchmarks/qat.py --teacher resnet56                          # taught by a better network
    python benchmarks/qat.py --images 1000 --epochs 2 --seeds 0          # a trial, nothing recorded

Each seed fine-tunes the committed network with fake quantization in it, converts it to integers, exports it to ONNX and
lets ONNX Runtime answer the test images; so do the three int8 forms that were never trained, in their own runtimes.
Writes data/results/qat-MODEL.json, with the name of the teacher in it if that is another network. A seed that is done
is kept in build/ and not trained again.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.data import Batches, Dataset, load_dataset
from deploykit.distillation import ResponseLoss
from deploykit.export import export_onnx
from deploykit.models import Network, load_pretrained
from deploykit.places import atomic_write
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.openvino import quantize_openvino
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.quantization.qat import convert_qat, freeze_batchnorm, freeze_observers, prepare_qat
from deploykit.recorded import recorded, write_recorded
from deploykit.runtimes import inductor, onnxruntime, openvino
from deploykit.significance import paired_difference
from deploykit.training import evaluate, fit, sgd

CALIBRATION_IMAGES = 256
WARMUP = 0.1


def answers_of_static(model: nn.Module, images: Tensor, test: Batches, folder: Path) -> dict[str, np.ndarray]:
    """Return which test images the float32 network and its three int8 forms without training get right, bool [N]."""
    proto = export_onnx(model, images)
    ort = onnxruntime.save(quantize_onnx(proto, [images]).model, folder / "static.onnx")
    ir = openvino.save(quantize_openvino(proto, [images]).model, folder / "static.xml")
    package = inductor.save(quantize_pt2e(model, [images]).model, folder / "static.pt2", images=images)
    predictors = {
        "float32": model,
        "static, ONNX Runtime": onnxruntime.load(ort),
        "static, OpenVINO": openvino.load(ir),
        "static, Inductor package": inductor.load(package),
    }
    return {name: evaluate(predictor, test).correct.numpy() for name, predictor in predictors.items()}


def trained(
    model: Network, teacher: Network, dataset: Dataset, images: Tensor, given: argparse.Namespace, *, seed: int
) -> nn.Module:
    """Fine-tune with the rounding in place; ranges and statistics of batch norm stand still in the last epoch."""
    part = dataset.train_val if given.images is None else dataset.train_val.take(given.images)
    batches = Batches(part, dataset, batch_size=128, augment=True, shuffle=True, drop_last=True, seed=seed)
    loss = ResponseLoss(teacher, temperature=given.temperature, alpha=given.alpha)
    prepared = prepare_qat(model, images)
    gently = functools.partial(sgd, peak_lr=given.peak_lr, weight_decay=1e-4)
    fit(prepared, batches, epochs=given.epochs - 1, loss=loss, optimizer=gently, warmup=WARMUP)
    freeze_observers(prepared)
    freeze_batchnorm(prepared)
    last = functools.partial(sgd, peak_lr=given.peak_lr / 10, weight_decay=1e-4)
    fit(prepared, batches, epochs=1, loss=loss, optimizer=last)
    return convert_qat(prepared).model


def answers_of_seed(make: Any, images: Tensor, test: Batches, kept: Path) -> np.ndarray:
    """Return which test images a trained network gets right in ONNX Runtime, from ``kept`` where it lies there."""
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as folder:
            file = onnxruntime.save(export_onnx(make(), images), Path(folder) / "qat.onnx")
            correct = evaluate(onnxruntime.load(file), test).correct.numpy()
        with atomic_write(kept) as partial, partial.open("wb") as opened:
            np.save(opened, correct)
    return np.load(kept)


def rows(answers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return accuracy, difference from float32 and from the best static form, in points, with paired intervals."""
    static = {name: correct.mean() for name, correct in answers.items() if name.startswith("static")}
    best = max(static, key=lambda name: static[name])
    found = []
    for name, correct in answers.items():
        row: dict[str, Any] = {"form": name, "accuracy": float(correct.mean())}
        for against, reference in (("float32", "float32"), ("best_static", best)):
            paired = paired_difference(answers[reference], correct)
            row[f"minus_{against}_points"] = round(100 * paired.difference, 2)
            row[f"minus_{against}_low"], row[f"minus_{against}_high"] = (round(100 * end, 2) for end in paired.interval)
        found.append(row)
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--teacher", help="a pretrained network; when not given, the float32 network itself")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5, help="at least 2: the last one with frozen ranges")
    parser.add_argument("--peak-lr", type=float, default=0.01)
    parser.add_argument("--alpha", type=float, default=0.9, help="share of the teacher in the loss")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--images", type=int, help="train on so many only: a trial")
    return parser.parse_args()


def main() -> None:
    """Train one seed after the other; record and print the table."""
    given = arguments()
    dataset = load_dataset("cifar10")
    model = load_pretrained(given.model, dataset.name)
    teacher = load_pretrained(given.teacher or given.model, dataset.name).to(memory_format=torch.channels_last)
    calibration = Batches(dataset.train.take(CALIBRATION_IMAGES), dataset, batch_size=CALIBRATION_IMAGES)
    images = next(iter(calibration))[0].contiguous()
    test = Batches(dataset.test, dataset, batch_size=250)
    with tempfile.TemporaryDirectory() as folder:
        answers = answers_of_static(model, images, test, Path(folder))
    settings = "-".join(str(value) for key, value in sorted(vars(given).items()) if key != "seeds")
    for seed in given.seeds:
        make = functools.partial(trained, model, teacher, dataset, images, given, seed=seed)
        answers[f"QAT, seed {seed}"] = answers_of_seed(make, images, test, Path("build/qat") / f"{settings}-{seed}.npy")
        print(rows(answers)[-1], flush=True)
    table = rows(answers)
    mean = statistics.fmean(row["minus_best_static_points"] for row in table if row["form"].startswith("QAT"))
    print(f"mean over {len(given.seeds)} seeds: {mean:+.2f} points against the best form without training")
    if given.images is not None:
        return
    name = f"qat-{given.model}" + (f"-from-{given.teacher}" if given.teacher else "")
    what = (
        f"{given.model} on CIFAR-10 in 8 bits: quantized after training in three runtimes, and fine-tuned with fake "
        f"quantization ({given.epochs} epochs, taught by {given.teacher or 'its float32 self'}), 10,000 test images"
    )
    write_recorded(name, table, what=what, command=shlex.join(["python", "benchmarks/qat.py", *sys.argv[1:]]))
    print(recorded(name))


if __name__ == "__main__":
    main()
