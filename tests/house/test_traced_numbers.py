"""Every number that the pages and the model cards state comes from a run, or from the thing that it is said about."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from deploykit.cost import macs, parameters
from deploykit.data import Batches, load_dataset
from deploykit.models import load_checkpoint, load_pretrained
from deploykit.quantization.low_bit_files import load_low_bits
from deploykit.recorded import recorded
from deploykit.significance import wilson_interval
from deploykit.training import evaluate

from .test_typed_numbers import measured_numbers

ROOT = Path(__file__).resolve().parents[2]
# Held in step with what they are made from by tests/test_readme.py, test_faults.py, test_cli_reference.py and
# test_workshop.py.
GENERATED = re.compile(r"<!-- results:begin.*?results:end -->", re.DOTALL)
GENERATED_PAGES = ("docs/faults.md", "docs/cli.md", "docs/workshop/exercises.md")
SET = {  # sizes of downloads and folders, thresholds of `deploykit doctor`, and questions that people ask
    "README.md": ["8 GB"],
    "README.zh-CN.md": ["8 GB"],
    "data/README.md": ["170 MB"],
    "docs/doctor.md": ["25 seconds", "1.5 GiB", "170 MB", "1 GiB", "1.5 GiB", "1 GiB", "0.5 GiB", "7 GB"],
    "docs/workshop/index.md": ["3 GB", "8 GB", "170 MB", "8 GB"],
    "docs/workshop/index.zh-CN.md": ["3 GB", "8 GB", "170 MB", "8 GB", "5.5 GB"],
    "docs/workshop/questions.md": ["0.3 points", "90 %"],
    "docs/workshop/server.md": ["1.5 GiB"],
}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "data/README.md", "docs/*.md", "docs/workshop/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
SOME = 1_000
CARDS = sorted(path.parent.name for path in ROOT.glob("data/checkpoints/*/README.md"))


def typed(page: str) -> list[str]:
    """Return the measurements that somebody typed into a page."""
    return measured_numbers(GENERATED.sub("", (ROOT / page).read_text(encoding="utf-8")))


class TestPages:
    @pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED_PAGES])
    def test_no_measurement_is_typed(self, page):
        """What was measured is put in from data/results when the page is made."""
        assert typed(page) == SET.get(page, [])

    def test_one_that_is_would_be_seen(self, monkeypatch, tmp_path):
        """A speed-up in a sentence is found, one in a generated table is not."""
        monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
        (tmp_path / "page.md").write_text("It is 3.2x faster.\n<!-- results:begin -->26 ms<!-- results:end -->\n")

        assert typed("page.md") == ["3.2x"]


class Card:
    """What a model card says, and the folder that it stands in."""

    def __init__(self, name: str) -> None:
        """Read the card of the checkpoint ``name``."""
        self.folder = ROOT / "data" / "checkpoints" / name
        self.text = (self.folder / "README.md").read_text(encoding="utf-8")
        self.name = re.search(r"^# ([^,]+), (\S+)$", self.text, re.MULTILINE)[1]
        self.dataset = re.search(r"^# ([^,]+), (\S+)$", self.text, re.MULTILINE)[2]

    def said(self, pattern: str) -> list[str]:
        """Return the groups of a pattern that the card has to hold once."""
        [found] = re.findall(pattern, self.text, re.MULTILINE)
        return [found] if isinstance(found, str) else list(found)

    def network(self) -> nn.Module:
        """Load what the folder holds."""
        if (self.folder / "low-bits.json").is_file():
            whole, _, _ = self.name.rpartition("-")
            return load_low_bits(load_pretrained(whole, self.dataset), self.folder)
        return load_checkpoint(self.folder)

    @property
    def accuracy(self) -> tuple[float, int]:
        """The accuracy (0 to 1) and of how many images."""
        percent, images = self.said(r"^\| accuracy \| \*\*([\d.]+)%\*\* of ([\d,]+) test images")
        return float(percent) / 100, int(images.replace(",", ""))

    @property
    def command(self) -> str:
        """What reproduces it."""
        return self.said(r"^\$ (.+)$")[0]


@pytest.mark.parametrize("name", CARDS)
class TestCards:
    def test_it_counts_what_is_in_the_file(self, name):
        """Parameters and multiply-accumulates are the network's."""
        card = Card(name)
        network = card.network()

        work = macs(network, torch.zeros(1, 3, 32, 32)) / 1e6

        assert card.said(r"^\| parameters \| ([\d,]+) \|") == [f"{parameters(network):,}"]
        assert card.said(r"^\| MACs an image \| ([\d.]+) M \|") == [f"{work:.1f}"]

    def test_its_accuracy_is_said_once(self, name):
        """The head that hubs read has the table's figure, and the interval is that of as many images."""
        card = Card(name)
        accuracy, images = card.accuracy
        low, high = wilson_interval(round(accuracy * images), images)

        [metric] = json.loads(card.said(r"^model-index: (.+)$")[0])[0]["results"][0]["metrics"]
        assert metric["value"] == pytest.approx(accuracy, abs=1e-9)
        assert card.said(r"\(95 % interval ([\d.]+)% to ([\d.]+)%\)") == [f"{100 * low:.2f}", f"{100 * high:.2f}"]

    def test_its_training_is_the_logged_one(self, name):
        """Epochs and minutes are those of training-log.csv."""
        card = Card(name)
        with (card.folder / "training-log.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))

        assert card.said(r"(?<!-)\bepochs (\d+)") == [str(len(rows))]
        assert card.said(r"(\d+) minutes? \|$") == [f"{float(rows[-1]['seconds']) / 60:.0f}"]

    def test_its_accuracy_was_measured(self, name):
        """It stands in a recorded run: its own, or the one of all pretrained networks."""
        card = Card(name)
        if card.dataset == "shapes32":  # nothing is recorded on the stand-in, so it is asked again, on a part of it
            dataset = load_dataset("shapes32")
            some = Batches(dataset.test.take(SOME), dataset, batch_size=250)
            low, high = evaluate(card.network(), some).interval
            assert low <= card.accuracy[0] <= high
            return
        runs = [recorded(path.stem) for path in sorted((ROOT / "data" / "results").glob("*.json"))]
        own = [row for run in runs if run.command == card.command for row in run.rows]
        among_all = [row for row in recorded("baseline").rows if row["model"] == card.name]
        found = [row[key] for row in (own or among_all) for key in ("accuracy", "accuracy_qat") if key in row]

        assert card.accuracy[0] in [pytest.approx(one, abs=1e-9) for one in found]
