"""Model cards: what was trained, how, on what, and what came out, in the form that model hubs read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.training import Accuracy

DATASETS = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)",
    "shapes32": "shapes32, the drawn stand-in data of this project (`deploykit.shapes`)",
}


def model_card(
    *,
    name: str,
    dataset: str,
    description: str,
    accuracy: Accuracy,
    trained_on: str,
    recipe: Mapping[str, Any],
    machine: Mapping[str, Any],
    date: str,
    minutes: float,
    command: str,
    parameters: int,
    macs: int,
) -> str:
    """Return a model card as Markdown with a YAML head.

    Args:
        name: of the network, "resnet20".
        dataset: "cifar10", "shapes32" or the name of a folder.
        description: one sentence.
        accuracy: measured on the split it names, once, after the last epoch.
        trained_on: the split and how many images it has.
        recipe: hyperparameters, in the order to show them.
        machine: what :func:`deploykit.machine.machine` returned where it was trained; a training on a machine with a
            GPU is one on the GPU, or ``gpu`` is to be None.
        date: ISO date of the end of the training.
        minutes: of training.
        command: reproduces it.
        parameters: of the network.
        macs: multiply-accumulates for one image.
    """
    low, high = accuracy.interval
    head = {
        "license": "mit",
        "library_name": "deploykit",
        "pipeline_tag": "image-classification",
        "datasets": [dataset],
        "metrics": ["accuracy"],
        "model-index": [{
            "name": f"{name}-{dataset}",
            "results": [{
                "task": {"type": "image-classification"},
                "dataset": {"name": dataset, "type": dataset, "split": accuracy.split},
                "metrics": [{"type": "accuracy", "value": round(accuracy.accuracy, 4)}],
            }],
        }],
    }  # fmt: skip
    # JSON is YAML, so no YAML writer is needed for the head; one key a line keeps it readable.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {name}, {dataset}", "", description, ""]
    lines += ["| | |", "|---|---|"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    trained_with = f"{machine['cpu']}, {threads}" if machine.get("gpu") is None else machine["gpu"]
    rows = {
        "accuracy": f"**{accuracy.accuracy:.2%}** of {accuracy.images:,} {accuracy.split} images, last epoch "
        f"(95 % interval {low:.2%} to {high:.2%})",
        "data": f"{DATASETS.get(dataset, dataset)}; trained on {trained_on}",
        "parameters": f"{parameters:,}",
        "MACs an image": f"{macs / 1e6:.1f} M",
        "trained on": f"{trained_with}, torch {machine['torch']}, {date}, {minutes:.0f} minutes",
    }
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    recipe_text = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in recipe.items())
    lines += ["", f"Recipe: {recipe_text}.", ""]
    lines += ["Reproduce it:", "", "```console", f"$ {command}", "```", ""]
    lines += [
        "`training-log.csv` has a row for each epoch. Minutes and accuracy are those of the run that wrote it;",
        "the minutes of a machine that was doing other work at the time are longer than its own.",
        "",
    ]
    return "\n".join(lines)
