"""A model card says what was trained, how, on what, and what came out."""

import json

import torch

from deploykit.cards import model_card
from deploykit.evaluation import Accuracy

FACTS = {
    "name": "row-lstm",
    "dataset": "cifar10",
    "description": "An LSTM.",
    "accuracy": Accuracy(torch.arange(1000) < 650, split="test"),
    "trained_on": "train+val (50,000 images)",
    "recipe": {"optimizer": "adamw", "peak_lr": 0.002},
    "date": "2026-11-24",
    "minutes": 12.4,
    "command": "deploykit train row-lstm",
    "parameters": 891_402,
    "macs": 28_314_112,
}
MACHINE = {"cpu": "a CPU", "threads": 1, "torch": "2.14.1"}


def test_a_card_says_what_a_reader_asks_first() -> None:
    """Accuracy with its interval and split, size, machine, recipe and the command."""
    card = model_card(**FACTS, machine=MACHINE)

    assert "| accuracy | **65.00%** of 1,000 test images, last epoch (95 % interval 61.99% to 67.89%) |" in card
    assert "| parameters | 891,402 |\n| MACs an image | 28.3 M |" in card
    assert "| trained on | a CPU, 1 thread, torch 2.14.1, 2026-11-24, 12 minutes |" in card
    assert "Recipe: optimizer adamw; peak lr 0.002.\n" in card
    assert "```console\n$ deploykit train row-lstm\n```" in card


def test_a_training_on_a_gpu_names_the_gpu() -> None:
    """Not the processor beside it."""
    card = model_card(**FACTS, machine=MACHINE | {"gpu": "NVIDIA H200"})

    assert "| trained on | NVIDIA H200, torch 2.14.1, 2026-11-24, 12 minutes |" in card


def test_the_head_is_what_model_hubs_read() -> None:
    """A key a line, each value JSON, which is YAML too."""
    _, head, _ = model_card(**FACTS, machine=MACHINE | {"threads": 2}).split("---\n", 2)
    found = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in head.splitlines())}
    result = found["model-index"][0]["results"][0]

    assert (found["license"], found["datasets"], found["pipeline_tag"]) == ("mit", ["cifar10"], "image-classification")
    assert result["dataset"] == {"name": "cifar10", "type": "cifar10", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.65}]
