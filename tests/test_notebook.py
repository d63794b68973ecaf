"""A notebook starts with its settings checked and shown, and prints no number that was not measured."""

import logging
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deploykit import ledger, notebook
from deploykit.notebook import sentence, start

EVIL = "<img src=x onerror=alert(1)>"


class Images:
    """A split of which only the size matters."""

    def __init__(self, name, count):
        self.name, self.count, self.images = name, count, torch.empty(0, 32, 32, 3)

    def __len__(self):
        return self.count


@pytest.fixture(autouse=True)
def dataset(monkeypatch, tmp_path):
    """A small dataset in place of a real one, and an empty ledger."""
    parts = {name: Images(name, count) for name, count in (("train", 45000), ("val", 5000), ("test", 100))}
    made = SimpleNamespace(name="cifar10", classes=tuple("abcdefghij"), source=f"a folder {EVIL}", **parts)
    monkeypatch.setattr("deploykit.data.load_dataset", lambda name: made)
    monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr(ledger, "_context", {})
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)


def test_the_banner_says_what_is_in_use():
    """Machine, versions, dataset with its splits, budget and seed are there, as text."""
    session = start(budget="smoke", device="cpu", seed=3)

    assert "cifar10: 45,000 train, 5,000 val, 100 test images, 32x32, 10 classes" in str(session)
    assert f"torch {torch.__version__}" in str(session)
    assert "smoke, seed 3" in str(session)
    assert f"{session.threads} of " in str(session)
    assert "<img" not in session._repr_markdown_()
    assert "&lt;img src=x" in session._repr_markdown_()
    assert not session.note


def test_embedded_data_is_said_first(dataset):
    """Where the numbers are about drawn shapes, the banner begins with that."""
    dataset.name = "shapes32"

    assert str(start(device="cpu")).startswith("Embedded data in use: every figure below was computed on shapes32")
    assert start(device="cpu")._repr_markdown_().startswith("> **Embedded data in use")


def test_a_budget_chooses():
    """Each budget has its own value, and an unknown one lists the three."""
    chosen = [start(budget=b, device="cpu").choose(smoke=1, quick=2, full=3) for b in ("smoke", "quick", "full")]

    assert chosen == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^BUDGET is 'fast'; choose one of 'smoke', 'quick', 'full'$"):
        start(budget="fast")


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch):
    """Asked for, a missing GPU stops; on "auto" the CPU is used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert start(device="auto").device == "cpu"
    with pytest.raises(ValueError, match=r"^DEVICE is 'cuda', but torch .* finds no usable GPU; set DEVICE = 'auto'"):
        start(device="cuda")
    with pytest.raises(ValueError, match=r"^DEVICE is 'gpu'; choose one of 'auto', 'cpu', 'cuda'$"):
        start(device="gpu")


def test_the_same_seed_gives_the_same_numbers():
    """Python, NumPy and torch start from the seed."""
    draws = []
    for _ in range(2):
        start(device="cpu", seed=7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002, S311

    assert draws[0] == draws[1]


def test_threads_respect_what_the_process_may_use(monkeypatch):
    """A quota and OMP_NUM_THREADS both bound torch's threads."""
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores=False: 3)
    monkeypatch.setattr("deploykit.machine.cpu_quota", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert start(device="cpu").threads == 3
    monkeypatch.setattr("deploykit.machine.cpu_quota", lambda: 1.5)
    assert start(device="cpu").threads == torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert start(device="cpu").threads == torch.get_num_threads() == 1


def test_later_ledger_rows_know_the_notebook():
    """Dataset, budget and title go into every row."""
    start(budget="smoke", device="cpu", title="01 Baseline")
    ledger.record("a", kind="k")

    assert ledger.rows().loc[0, ["dataset", "budget", "notebook"]].tolist() == ["cifar10", "smoke", "01 Baseline"]


def test_a_sentence_has_measured_numbers_and_text_as_text():
    """The template is Markdown, the values are not."""
    assert sentence("**{accuracy:.1%}** of {name}", accuracy=0.923, name=EVIL) == (
        "**92.3%** of &lt;img src=x onerror=alert(1)&gt;"
    )


@pytest.mark.parametrize("nothing", [None, math.nan, np.float32("nan"), torch.tensor(math.nan)])
def test_what_was_not_measured_is_not_said(nothing):
    """None and NaN in a sentence are errors."""
    with pytest.raises(ValueError, match=r"nothing was measured, so there is nothing to say$"):
        sentence("It takes {latency_ms} ms.", latency_ms=nothing)


def test_placeholders_and_values_must_match():
    """A misspelt or forgotten name is told."""
    with pytest.raises(ValueError, match=r"^the sentence has placeholders \['a'\] and got values \['b'\]"):
        sentence("{a}", b=1)


def test_known_noise_is_silenced_by_name_only():
    """The listed loggers are quiet, the root logger and other loggers are as they were."""
    before = logging.getLogger().level
    start(device="cpu")
    assert logging.getLogger("torch.utils.cpp_extension").level == logging.ERROR
    assert (logging.getLogger().level, logging.getLogger("torch").isEnabledFor(logging.ERROR)) == (before, True)
    assert notebook.BUDGETS == ("smoke", "quick", "full")
