"""What every notebook starts with: threads, seeds, device, dataset, and a banner that says which of them are in use."""

from __future__ import annotations

import platform
import random
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import deploykit
from deploykit import ledger
from deploykit.noise import silence_known_noise
from deploykit.text import escape_markdown

if TYPE_CHECKING:
    from deploykit.data import Dataset

BUDGETS = ("smoke", "quick", "full")
DEVICES = ("auto", "cpu", "cuda")
EMBEDDED = "shapes32"

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """The settings of a notebook; shown as its banner.

    Attributes:
        dataset: the dataset in use (``data.Dataset``).
        device: ``"cpu"`` or ``"cuda"``.
        seed: the seed that was set.
        budget: ``"smoke"``, ``"quick"`` or ``"full"``.
        threads: CPU threads that torch uses.
        facts: the banner's lines, name to text.
    """

    dataset: Dataset
    device: str
    seed: int
    budget: str
    threads: int
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def choose(self, *, smoke: T, quick: T, full: T) -> T:
        """Return the value for the notebook's budget."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.budget]

    @property
    def note(self) -> str:
        """A warning where the numbers are not about real photographs, else empty."""
        if self.dataset.name != EMBEDDED:
            return ""
        return f"Embedded data in use: every figure below was computed on {EMBEDDED} (drawn shapes), not on CIFAR-10."

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {text}" for name, text in self.facts.items()]
        return "\n".join([*([self.note] if self.note else []), *lines])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        note = f"> **{escape_markdown(self.note)}**\n\n" if self.note else ""
        rows = "".join(f"| {name} | {escape_markdown(text)} |\n" for name, text in self.facts.items())
        return f"{note}| this run | |\n|:--|:--|\n{rows}"


def start(
    *, budget: str = "quick", data: str = "auto", device: str = "auto", seed: int = 0, title: str = ""
) -> Session:
    """Set a notebook up and return its ``Session``, which shows itself as the banner.

    Known import noise is silenced by name, Python, NumPy and torch are seeded, torch gets as many threads as this
    process may use (affinity and container quotas respected, ``OMP_NUM_THREADS`` too), the dataset is loaded, and
    later ledger rows carry its name, the budget and the title.

    Args:
        budget: ``"smoke"`` (seconds), ``"quick"`` (about a minute) or ``"full"`` (reproduces the literature).
        data: for ``data.load_dataset``: ``"auto"``, ``"cifar10"``, ``"shapes32"`` or a folder.
        device: ``"auto"`` takes the GPU if there is one.
        seed: for Python, NumPy and torch.
        title: the notebook's name in the ledger.

    Raises:
        ValueError: an unknown budget or device, or ``"cuda"`` without a GPU. Nothing has been loaded then.
    """
    if budget not in BUDGETS:
        raise ValueError(f"BUDGET is {budget!r}; choose one of {', '.join(map(repr, BUDGETS))}")
    if device not in DEVICES:
        raise ValueError(f"DEVICE is {device!r}; choose one of {', '.join(map(repr, DEVICES))}")
    silence_known_noise()
    chosen = _device(device)
    threads = _set_threads()
    _set_seeds(seed)
    from deploykit.data import load_dataset

    dataset = load_dataset(data)
    ledger.set_context(dataset=dataset.name, budget=budget, notebook=title or None)
    return Session(dataset, chosen, seed, budget, threads, title, _facts(dataset, chosen, seed, budget, threads))


def sentence(template: str, /, **values: Any) -> str:
    """Fill measured values into a sentence of Markdown: ``"Accuracy is **{accuracy:.1%}**."``.

    The template is the author's Markdown; values are shown as text.

    Raises:
        ValueError: a placeholder without value, a value without placeholder, or a value that is None or NaN: a number
            that was not measured is not printed.
    """
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    used = {name.split(".")[0].split("[")[0] for name in names}
    if used != values.keys():
        raise ValueError(
            f"the sentence has placeholders {sorted(used)} and got values {sorted(values)}; give each one its own"
        )
    return _Escaping().format(template, **values)


def say(template: str, /, **values: Any) -> None:
    """Display a ``sentence`` of Markdown with measured values in it."""
    from IPython.display import display

    text = sentence(template, **values)
    display({"text/markdown": text, "text/plain": text}, raw=True)


class _Escaping(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        # Only NaN differs from itself: true of Python's, NumPy's and torch's alike.
        if value is None or value != value:  # noqa: PLR0124
            raise ValueError(f"a value in the sentence is {value}: nothing was measured, so there is nothing to say")
        return escape_markdown(super().format_field(value, format_spec))


def _device(device: str) -> str:
    import torch

    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPU only"
        raise ValueError(
            f"DEVICE is 'cuda', but torch (built {build}) finds no usable GPU; set DEVICE = 'auto' to use the CPU, "
            "or check the driver with nvidia-smi"
        )
    return "cpu"


def _set_threads() -> int:
    import torch

    from deploykit.machine import usable_threads

    threads = usable_threads()
    torch.set_num_threads(threads)
    return threads


def _set_seeds(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (other libraries draw from the global state)
    torch.manual_seed(seed)


def _facts(dataset: Dataset, device: str, seed: int, budget: str, threads: int) -> dict[str, str]:
    import torch

    from deploykit.machine import machine

    here = machine()
    height, width = dataset.train.images.shape[1:3]
    splits = ", ".join(f"{len(split):,} {split.name}" for split in (dataset.train, dataset.val, dataset.test))
    return {
        "machine": f"{here['cpu']}, {threads} of {here['threads']} threads in use",
        "device": f"GPU: {here['gpu']}" if device == "cuda" else "CPU",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, deploykit {deploykit.__version__}",
        "dataset": f"{dataset.name}: {splits} images, {height}x{width}, {len(dataset.classes)} classes",
        "from": dataset.source,
        "budget": f"{budget}, seed {seed}",
    }
