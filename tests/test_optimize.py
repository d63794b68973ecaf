"""Chosen on val, reported on test, resumed by what is there, and handed back with a script that needs no deploykit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from small_residual import SmallResidual
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("nncf")

from deploykit import ledger
from deploykit.contestants import Row
from deploykit.data import Batches, Dataset, Split
from deploykit.measure import Ratio
from deploykit.optimize import STEPS, choose, optimize, plan_optimization
from deploykit.significance import PairedDifference, paired_difference

INTEGERS = plan_optimization(only=["ONNX Runtime int8", "OpenVINO int8"])


def row(name: str, speedup: float = 1, points_lost: float = 0, *, doubt: float = 0.01, status: str = "ok") -> Row:
    """Make a measured row."""
    difference = PairedDifference(-points_lost / 100, (-1, 1), 0, 0, 1, 100)
    ratio = Ratio(speedup, speedup - doubt, speedup + doubt)
    return Row(name, "int8", status, difference=difference, ratio=ratio)


class TestChoice:
    def test_the_fastest_that_keeps_the_accuracy(self):
        """The faster one loses more than it may, and the limit itself is allowed."""
        rows = [row("base"), row("fast", 5, 1.5), row("good", 3, 1), row("slow", 2, 0)]

        assert choose(rows, max_drop=1).runtime == "good"

    @pytest.mark.parametrize(
        "other", [row("b", 2, 3), row("b", 0.5), row("b", 1.1, doubt=0.2), row("b", 9, status="failed")]
    )
    def test_where_no_step_helps_the_network_stays_as_it_is(self, other):
        """It loses too much, is slower, may be slower, or failed."""
        rows = [row("base"), other]

        assert choose(rows, max_drop=1) is rows[0]


class TestPlan:
    def test_a_plan_is_the_steps_in_order(self):
        """All of them, or those that are asked for, with a reason each."""
        assert plan_optimization() == STEPS
        assert [step.name for step in plan_optimization(skip=["OpenVINO bfloat16"])][2] == "ONNX Runtime int8"
        assert all(step.why for step in STEPS)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"only": ["prune"]}, "there is no step 'prune'; there are 'ONNX Runtime float32'"),
            ({"skip": [step.name for step in STEPS]}, "every step is skipped"),
        ],
    )
    def test_what_cannot_be_tried_is_refused(self, options, words):
        """Before anything is done."""
        with pytest.raises(ValueError, match=words):
            plan_optimization(**options)


def coloured(seed: int) -> Dataset:
    """Draw 8x8 pictures whose four classes a trained network tells apart with some mistakes."""
    draw = torch.Generator().manual_seed(seed)

    def split(name: str, count: int) -> Split:
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 160, (count, 8, 8, 3), dtype=torch.uint8, generator=draw)
        pixels[..., 0] += (30 * (labels % 2)).to(torch.uint8)[:, None, None]
        pixels[..., 1] += (30 * (labels // 2)).to(torch.uint8)[:, None, None]
        return Split(name, pixels, labels)

    parts = {name: split(name, count) for name, count in {"train": 256, "val": 200, "test": 120}.items()}
    names = ("plain", "red", "green", 'it\'s "yellow"')
    return Dataset("colours", names, **parts, mean=(0.3,) * 3, std=(0.2,) * 3, fingerprint="c", source="drawn here")


def trained(dataset: Dataset) -> nn.Module:
    """Train the smallest residual network for a second."""
    torch.manual_seed(0)
    model = SmallResidual().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for images, labels in Batches(dataset.train, dataset, batch_size=64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Optimise a small network in a folder; returns both, the data, and the outcome."""
    dataset, folder = coloured(seed=0), tmp_path_factory.mktemp("optimised")
    model = trained(dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_LEDGER", str(folder.parent / "own-ledger"))
        result = optimize(model, dataset, folder, max_drop=10, budget_s=1, steps=INTEGERS)
        rows = ledger.rows("optimize")
    return model, dataset, folder, result, rows


class TestOptimize:
    def test_the_winner_is_faster_and_seen_on_test_only_then(self, found):
        """Rows are judged on val; the outcome on the same test images for both."""
        _, dataset, _, result, _ = found

        assert {row.accuracy.split for row in result.rows} == {"val"}
        assert (result.before.split, result.after.split, result.after.images) == ("test", "test", len(dataset.test))
        assert result.winner in result.rows[1:]
        assert result.difference == paired_difference(result.before.correct, result.after.correct)

    def test_each_step_leaves_a_row_in_the_ledger(self, found):
        """The baseline, two steps on val, and the chosen one on test."""
        *_, result, rows = found

        assert list(rows["split"]) == ["val", "val", "val", "test"]
        assert list(rows["what"]) == [*(row.name for row in result.rows), f"{result.winner.name}, chosen"]
        assert rows["speedup"][0] == 1

    @pytest.mark.parametrize("step", INTEGERS, ids=["onnxruntime", "openvino"])
    def test_the_script_gives_the_artifacts_answers(self, found, tmp_path, step, monkeypatch):
        """In a process that cannot import deploykit, for pictures in files; class names come out as they are."""
        model, dataset, folder, result, _ = found
        monkeypatch.setattr("deploykit.optimize.choose", lambda rows, _: next(r for r in rows if r.name == step.name))
        result = optimize(model, dataset, folder, budget_s=1, steps=INTEGERS)
        files = [tmp_path / f"{number}.png" for number in range(12)]
        for number, file in enumerate(files):
            Image.fromarray(dataset.test.images[number].numpy()).save(file)
        (tmp_path / "deploykit.py").write_text("raise ImportError")
        done = subprocess.run(
            [sys.executable, folder / "winner" / "run.py", *files], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        images, _ = next(iter(Batches(dataset.test, dataset, batch_size=12)))
        wanted = [dataset.classes[label] for label in result.winner.predictor(images).argmax(1)]

        assert done.stdout.splitlines() == [f"{file} {name}" for file, name in zip(files, wanted, strict=True)]

    def test_the_same_call_makes_nothing_again(self, found, monkeypatch):
        """Artifacts that lie there are taken; the model is as it was."""
        model, dataset, folder, result, _ = found
        monkeypatch.setattr("deploykit.contestants.tried_apart", lambda *_: pytest.fail("made again"))
        again = optimize(model, dataset, folder, max_drop=10, budget_s=1, steps=INTEGERS)

        assert [row.accuracy.accuracy for row in again.rows] == [row.accuracy.accuracy for row in result.rows]

    def test_another_network_is_made_anew(self, found, tmp_path, monkeypatch):
        """One weight is enough."""
        model, dataset, folder, _, _ = found
        made = []
        monkeypatch.setattr(
            "deploykit.optimize.rows_of_file", lambda kinds, _: made.extend(kinds) or map(failed, kinds)
        )

        def failed(kind: tuple[str, str]) -> Row:
            return Row(*kind, status="not made")

        kept = model.fc.bias[0].item()
        with torch.no_grad():
            model.fc.bias[0] += 1e-3
        result = optimize(model, dataset, folder, budget_s=0.1, steps=INTEGERS)
        with torch.no_grad():
            model.fc.bias[0] = kept

        assert made == [(step.runtime, step.precision) for step in INTEGERS]
        assert (result.winner is result.rows[0], result.folder) == (True, None)
        assert str(result).startswith("no step helped: the network stays as it is, ")

    @pytest.mark.parametrize(
        ("options", "words"),
        [({"max_drop": -1}, "max_drop is -1"), ({"batch": 0}, "batch is 0"), ({}, r"holds something else \(thesis\)")],
    )
    def test_mistakes_are_refused_before_any_work(self, tmp_path, options, words):
        """A folder with something else in it is not written to."""
        (tmp_path / "thesis").touch()
        with pytest.raises(ValueError, match=words):
            optimize(SmallResidual().eval(), coloured(seed=0), tmp_path, **options)
