"""Every int8 form of a network beside its float32 ones: accuracy, size, and speed, all speeds interleaved in one run.

$ python benchmarks/quantization.py resnet20

writes ``data/results/quantization-resnet20.json``. A network without a committed checkpoint is measured with random
weights: its speed and size are those of trained ones, and its accuracy is left out.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit import measure
from deploykit.data import Batches, Dataset, load_dataset
from deploykit.evaluation import evaluate
from deploykit.export import export_onnx
from deploykit.models import ARCHITECTURES, build, load_pretrained
from deploykit.quantization.onnx import quantize_onnx
from deploykit.quantization.openvino import quantize_openvino
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.recorded import recorded, write_recorded
from deploykit.runtimes import inductor, onnxruntime, openvino
from deploykit.significance import paired_difference

CALIBRATION_IMAGES = 256

Predictor = Callable[[Tensor], Tensor]


def forms(model: nn.Module, images: Tensor, folder: Path) -> dict[str, tuple[Predictor, Path | None]]:
    """Return every form of the model with the file it was loaded from, the first being the baseline."""
    exported = export_onnx(model, images)
    portable = export_onnx(quantize_pt2e(model, [images], quantizer="portable").model, images)
    onnx_files = {
        "float32": exported,
        "int8 u8s8": quantize_onnx(exported, [images]).model,
        "int8 s8s8": quantize_onnx(exported, [images], target="tensorrt").model,
        "int8 portable": portable,
    }
    saved = {name: onnxruntime.save(proto, folder / f"{name}.onnx") for name, proto in onnx_files.items()}
    as_openvino = openvino.save(openvino.import_openvino().convert_model(saved["float32"]), folder / "float32.xml")
    nncf = openvino.save(quantize_openvino(exported, [images]).model, folder / "int8.xml")
    packages = {
        "float32": inductor.save(model, folder / "float32.pt2", images=images),
        "int8 inductor": inductor.save(quantize_pt2e(model, [images]).model, folder / "int8.pt2", images=images),
    }
    found: dict[str, tuple[Predictor, Path | None]] = {
        "PyTorch eager, float32": (model, None),
        "PyTorch eager, float32, channels_last": (_channels_last(model), None),
    }
    found |= {f"ONNX Runtime, {name}": (onnxruntime.load(file), file) for name, file in saved.items()}
    found |= {
        "OpenVINO, float32": (openvino.load(as_openvino), as_openvino),
        "OpenVINO, bf16": (openvino.load(as_openvino, precision="bf16"), as_openvino),
        "OpenVINO, int8 NNCF": (openvino.load(nncf), nncf),
        "OpenVINO, int8 portable": (openvino.load(saved["int8 portable"]), saved["int8 portable"]),
    }
    return found | {f"Inductor package, {name}": (inductor.load(file), file) for name, file in packages.items()}


def _channels_last(model: nn.Module) -> Predictor:
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda images: copied(images.contiguous(memory_format=torch.channels_last))


def size_kib(file: Path) -> float:
    """Return the size of an artifact: an OpenVINO graph has its weights in a second file."""
    parts = (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,)
    return sum(part.stat().st_size for part in parts) / 1024


def rows(dataset: Dataset, model: nn.Module, *, trained: bool, budget_s: float) -> list[dict[str, Any]]:
    """Measure every form; accuracy only of trained weights."""
    calibration = dataset.train.take(CALIBRATION_IMAGES)
    images = next(iter(Batches(calibration, dataset, batch_size=CALIBRATION_IMAGES)))[0].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        made = forms(model, images, Path(folder))
        predictors = {name: predictor for name, (predictor, _) in made.items()}
        table = {
            name: {"form": name} | ({"size_kib": size_kib(file)} if file else {}) for name, (_, file) in made.items()
        }
        for batch in (1, 64):
            comparison = measure.compare(predictors, images[:batch], budget_s=budget_s)
            for name, row in table.items():
                ratio = comparison.ratio(name)
                row[f"median_ms_batch_{batch}"] = comparison.measurements[name].median_ms
                row[f"speedup_batch_{batch}"] = ratio.value
                row[f"speedup_low_batch_{batch}"], row[f"speedup_high_batch_{batch}"] = ratio.low, ratio.high
        if trained:
            add_accuracies(table, predictors, Batches(dataset.test, dataset, batch_size=250))
    return list(table.values())


def add_accuracies(table: dict[str, dict[str, Any]], predictors: dict[str, Predictor], test: Batches) -> None:
    """Add to each row the accuracy and its difference from the first one's, in points, with the paired interval."""
    found = {name: evaluate(predictor, test) for name, predictor in predictors.items()}
    exact = next(iter(found.values()))
    for name, accuracy in found.items():
        paired = paired_difference(exact.correct, accuracy.correct)
        low, high = paired.interval
        table[name] |= {"accuracy": accuracy.accuracy, "minus_float32_points": 100 * paired.difference}
        table[name] |= {"low_points": 100 * low, "high_points": 100 * high}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=sorted(ARCHITECTURES))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each of the two comparisons of speed")
    chosen = parser.parse_args()
    dataset = load_dataset("cifar10")
    try:
        model, weights = load_pretrained(chosen.network, "cifar10"), "trained"
    except FileNotFoundError:
        torch.manual_seed(0)
        model, weights = build(chosen.network).eval(), "random"
    name = f"quantization-{chosen.network}"
    write_recorded(
        name,
        rows(dataset, model, trained=weights == "trained", budget_s=chosen.seconds),
        what=f"{chosen.network} with {weights} weights in float32 and int8, {CALIBRATION_IMAGES} calibration images; "
        "speed-ups over PyTorch eager, in turns; accuracies on the 10,000 CIFAR-10 test images",
        command=f"python benchmarks/quantization.py {chosen.network} --seconds {chosen.seconds:g}",
    )
    print(recorded(name))


if __name__ == "__main__":
    main()
