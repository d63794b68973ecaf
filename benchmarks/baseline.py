"""Accuracy, size and speed of the committed checkpoints, all speeds interleaved in one run.

$ python benchmarks/baseline.py

writes ``data/results/baseline.json``, from which README's first table is made (``python make.py readme``).
"""

from __future__ import annotations

import torch

from deploykit import measure
from deploykit.data import Batches, load_dataset
from deploykit.models import load_pretrained
from deploykit.places import data_folder
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate

MODELS = ("resnet20x4", "resnet56", "resnet20", "resnet8", "row-lstm", "mlp-mixer")
SECONDS = 30.0


def main() -> None:
    """Measure and write."""
    dataset = load_dataset("cifar10")
    test = Batches(dataset.test, dataset, batch_size=500)
    images, _ = next(iter(Batches(dataset.test, dataset, batch_size=64)))
    models = {name: load_pretrained(name, "cifar10").to(memory_format=torch.channels_last) for name in MODELS}
    single = measure.compare(models, images[:1], budget_s=SECONDS).measurements
    many = measure.compare(models, images, budget_s=SECONDS).measurements
    rows = []
    for name, model in models.items():
        accuracy = evaluate(model, test)
        low, high = accuracy.interval
        rows.append(
            {
                "model": name,
                "accuracy": accuracy.accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "parameters": measure.parameters(model),
                "macs": measure.macs(model, images[:1]),
                "size_mib": measure.size_mib(data_folder() / "checkpoints" / f"{name}-cifar10" / "model.safetensors"),
                "latency_ms_batch_1": single[name].median_ms,
                "throughput_per_s_batch_64": many[name].throughput_per_s,
            }
        )
    write_recorded(
        "baseline",
        rows,
        what="The pretrained networks on the 10,000 CIFAR-10 test images: fp32, PyTorch eager, channels_last",
        command="python benchmarks/baseline.py",
    )
    print(recorded("baseline"))


if __name__ == "__main__":
    main()
