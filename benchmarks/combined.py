"""What do the techniques bring together? Small distilled networks in int8 against ResNet-56, all in one run.

    python benchmarks/combined.py                                        # 5 minutes on a quiet machine

Baseline is ResNet-56 in float32, in PyTorch eager. Beside it stand the same network in OpenVINO, what a user gets for
it from one call of NNCF, of ONNX Runtime and of torchao (each with its own defaults), and the networks of the course
that were pruned and distilled, in the int8 form that every runtime takes. All are timed in turns and answer the 10,000
test images. Writes data/results/combined.json. Olive joins where it is installed (`pip install olive-ai`, 0.13 was
tried): as the workflow in its documentation, since its command `olive optimize` calibrates with texts from a web
service, whatever the model.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from portable import Made, calibration_images, in_every_runtime
from quantization import size_kib
from torch import Tensor, nn

from deploykit.data import Batches, load_dataset
from deploykit.evaluation import evaluate
from deploykit.export import export_onnx
from deploykit.measure import Comparison, compare
from deploykit.models import load_pretrained
from deploykit.quantization.pt2e import quantize_pt2e
from deploykit.recorded import recorded, write_recorded
from deploykit.runtimes import inductor, onnxruntime, openvino
from deploykit.significance import paired_difference

LARGE = "resnet56"
EAGER, FLOAT32 = f"{LARGE}, PyTorch eager", f"{LARGE}, OpenVINO float32"
SMALL = (
    "resnet56-minus14blocks", "resnet20", "resnet20-minus2blocks", "resnet20-minus3blocks", "resnet20-pruned2x",
    "resnet10-fast", "resnet8",
)  # fmt: skip


def nncf_by_one_call(source: Path, images: Tensor, folder: Path) -> Made:
    """Return what ``nncf.quantize`` makes of an ONNX file, with its defaults."""
    ov = openvino.import_openvino()  # before NNCF, which would report its import
    import nncf

    items = [image[None].numpy() for image in images]
    quantized = nncf.quantize(ov.convert_model(source), nncf.Dataset(items), subset_size=len(items))
    file = openvino.save(quantized, folder / "nncf.xml")
    return openvino.load(file), file


def onnxruntime_by_one_call(source: Path, images: Tensor, folder: Path) -> Made:
    """Return what ``quantize_static`` makes of an ONNX file, with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"images": images.numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    file = folder / "onnxruntime.onnx"
    quantize_static(source, file, Images())
    return onnxruntime.load(file), file


def torchao_by_one_call(model: nn.Module, images: Tensor, folder: Path) -> Made:
    """Return torchao's form for x86, compiled ahead of time."""
    file = inductor.save(quantize_pt2e(model, [images]).model, folder / "torchao.pt2", images=images)
    return inductor.load(file), file


def olive_by_workflow(source: Path, images: Tensor, folder: Path) -> Made:
    """Return what Olive's passes for the CPU make of an ONNX file, with their defaults."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # it reports its use otherwise
    import olive
    from olive.data.registry import Registry

    @Registry.register_dataset()
    def course(**_: object) -> list[tuple[dict[str, Tensor], int]]:
        return [({"images": image}, 0) for image in images]

    calibration = {
        "name": "calibration",
        "type": "DataContainer",
        "load_dataset_config": {"type": course.__name__},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "default_dataloader", "batch_size": len(images)},
    }
    passes = {
        "peephole": {"type": "OnnxPeepholeOptimizer"},
        "static": {"type": "OnnxStaticQuantization", "data_config": calibration["name"]},
    }
    olive.run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(source)},
            "data_configs": [calibration],
            "passes": passes,
            "output_dir": str(folder / "olive"),
            "cache_dir": str(folder / "olive-cache"),
        }
    )
    file = folder / "olive" / "model.onnx"
    return onnxruntime.load(file), file


def forms(images: Tensor, folder: Path) -> dict[str, Made]:
    """Return every contestant with its file, the baseline first."""
    large = load_pretrained(LARGE, "cifar10")
    source = onnxruntime.save(export_onnx(large, images), folder / "float32.onnx")
    made: dict[str, Made] = {EAGER: (large, source), FLOAT32: (openvino.load(source), source)}
    made[f"{LARGE}, NNCF by one call"] = nncf_by_one_call(source, images, folder)
    made[f"{LARGE}, ONNX Runtime by one call"] = onnxruntime_by_one_call(source, images, folder)
    if importlib.util.find_spec("olive"):
        made[f"{LARGE}, Olive's workflow"] = olive_by_workflow(source, images, folder)
    made[f"{LARGE}, torchao, compiled"] = torchao_by_one_call(large, images, folder)
    for name in (LARGE, *SMALL):
        small = in_every_runtime(load_pretrained(name, "cifar10"), images, folder / f"{name}.onnx")
        made[f"{name}, int8 in OpenVINO"] = small
    return made


def speeds(trial: Comparison, name: str) -> dict[str, float]:
    """Return images per second and both ratios, with intervals."""
    over = {"eager": trial.ratio(name), "openvino_float32": trial.ratio(name, over=FLOAT32)}
    found = {"images_per_s": trial.measurements[name].throughput_per_s}
    for what, ratio in over.items():
        found |= {f"x_{what}": ratio.value, f"x_{what}_low": ratio.low, f"x_{what}_high": ratio.high}
    return found


def main() -> None:
    """Measure and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=60.0, help="for each of the two comparisons of speed")
    given = arguments.parse_args()
    dataset = load_dataset("cifar10")
    images = calibration_images(dataset)
    test = Batches(dataset.test, dataset, batch_size=250)
    with tempfile.TemporaryDirectory() as folder:
        made = forms(images, Path(folder))
        predictors = {name: predictor for name, (predictor, _) in made.items()}
        many = compare(predictors, images[:64], budget_s=given.seconds)
        single = compare(predictors, images[:1], budget_s=given.seconds)
        answers = {name: evaluate(predictor, test) for name, predictor in predictors.items()}
        sizes = {name: size_kib(file) for name, (_, file) in made.items()}
    rows: list[dict[str, Any]] = []
    for name, found in answers.items():
        lost = paired_difference(answers[EAGER].correct, found.correct)
        rows.append(
            {
                "form": name,
                "accuracy": found.accuracy,
                "minus_resnet56_points": 100 * lost.difference,
                "low_points": 100 * lost.interval[0],
                "high_points": 100 * lost.interval[1],
                "size_kib": sizes[name],
                "times_smaller": sizes[EAGER] / sizes[name],
                **speeds(many, name),
                "median_ms_batch_1": single.measurements[name].median_ms,
                "x_eager_batch_1": single.ratio(name).value,
            }
        )
    write_recorded(
        "combined",
        rows,
        what="ResNet-56 and what pruning, distillation and int8 make of the task, speeds in turns on batches of 64, "
        "accuracies on the 10,000 CIFAR-10 test images",
        command=shlex.join(["python", "benchmarks/combined.py", *sys.argv[1:]]),
    )
    print(recorded("combined"))


if __name__ == "__main__":
    main()
