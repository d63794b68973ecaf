"""Chosen on val, reported on test, resumed by what is there, and handed back with a script that needs no deploykit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_residual import Branching, SmallResidual
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("nncf")

from deploykit import ledger, models
from deploykit.contestants import Setting
from deploykit.data import Batches, Dataset, Split, load_dataset
from deploykit.evaluation import evaluate
from deploykit.measure import Ratio
from deploykit.optimize import FORMS, SMALLER, choose, optimize, parse_budget, plan_optimization, run, shrink, teach
from deploykit.optimize.bottleneck import Bottleneck, find_bottleneck
from deploykit.optimize.choice import verdict
from deploykit.optimize.folder import origin
from deploykit.optimize.plan import duration
from deploykit.optimize.shrink import SHRINK
from deploykit.rows import Row
from deploykit.significance import PairedDifference, paired_difference

INTEGERS = plan_optimization(only=["ONNX Runtime int8", "OpenVINO int8"], budget_s=5)


def row(name: str, speedup: float = 1, points_lost: float = 0, *, doubt: float = 0.01, status: str = "ok") -> Row:
    """Make a measured row."""
    difference = PairedDifference(-points_lost / 100, (-1, 1), 0, 0, 1, 100)
    ratio = Ratio(speedup, speedup - doubt, speedup + doubt)
    return Row(name, "int8", status, difference=difference, ratio=ratio)


@pytest.mark.parametrize("way", SHRINK)
def test_what_is_cut_is_refitted(way, monkeypatch):
    """Its answers are nearer to those of the network that it was than without."""
    dataset = load_dataset("shapes32")
    model = models.load_pretrained("resnet20", "shapes32").eval()
    images, _ = next(iter(Batches(dataset.train.take(64), dataset, batch_size=64)))
    others, _ = next(iter(Batches(dataset.val.take(64), dataset, batch_size=64)))
    refitted, gone = SHRINK[way](model, images)
    monkeypatch.setattr(shrink, "refit_layers", lambda pruned, *_, **__: pruned)
    plain, _ = SHRINK[way](model, images)
    with torch.no_grad():
        far, near = ((network.eval()(others) - model(others)).square().mean() for network in (plain, refitted))

    assert near < far / 2
    assert gone.startswith("without ")


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

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (row("b", 2, 3), "loses too much"),
            (row("b", 0.5), "slower"),
            (row("b", 1.1, doubt=0.2), "not surely faster"),
            (row("b", 9, status="no kernel"), "no kernel"),
            (row("b", 1.5), "not the fastest"),
            (row("b", 3), "chosen"),
        ],
    )
    def test_each_row_is_told_why(self, other, words):
        """Beside one that is twice as fast."""
        rows = [row("base"), row("twice", 2), other]

        assert verdict(other, rows, choose(rows, 1), 1) == words


class TestPlan:
    def test_a_plan_is_the_steps_in_order(self):
        """The profile, forms, smaller networks, then the choice and the timing; each with its reason."""
        names = [step.name for step in plan_optimization(skip=["OpenVINO bfloat16"]).steps()]

        assert names == [
            "profile", *(form.name for form in FORMS if form.precision != "bfloat16"),
            "fewer blocks", "fewer channels", "choose", "time",
        ]  # fmt: skip
        assert all(step.why for step in plan_optimization().steps())

    @pytest.mark.parametrize("options", [{}, {"only": ["OpenVINO int8"]}, {"skip": ["fewer blocks"]}])
    @pytest.mark.parametrize("budget_s", [5, 600, 36_000])
    def test_the_shares_are_the_budget(self, options, budget_s):
        """Whatever is tried, and timing takes no more than a minute."""
        plan = plan_optimization(budget_s=budget_s, **options)

        assert sum(step.seconds for step in plan.steps()) == pytest.approx(budget_s)
        assert plan.timing_s <= 60

    def test_a_smaller_network_alone_is_tried_in_all_forms(self):
        """And together with a form in that one, as the network itself is."""
        alone = plan_optimization(only=["fewer blocks"])
        both = plan_optimization(only=["fewer blocks", "OpenVINO int8"])

        assert (alone.forms, alone.smaller, alone.as_given) == (FORMS, SMALLER[:1], False)
        assert ([form.name for form in both.forms], both.as_given) == (["OpenVINO int8"], True)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"only": ["prune"]}, "there is no step 'prune'; there are 'ONNX Runtime float32'"),
            ({"skip": [form.name for form in FORMS]}, "every form is skipped"),
            ({"only": ["fewer blocks"], "skip": ["fewer blocks"]}, "every form is skipped"),
            ({"only": ["OpenVINO int8"], "runtimes": ["ONNX Runtime"]}, "there is no step 'OpenVINO int8'"),
            ({"budget_s": 0}, "the budget is 0 seconds"),
            ({"budget_s": float("nan")}, "the budget is nan seconds"),
        ],
    )
    def test_what_cannot_be_tried_is_refused(self, options, words):
        """Before anything is done."""
        with pytest.raises(ValueError, match=words):
            plan_optimization(**options)

    @pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 MIN ", 120)])
    def test_a_budget_is_a_time(self, text, seconds):
        """With its unit."""
        assert parse_budget(text) == seconds

    @pytest.mark.parametrize("text", ["", "10", "min", "-5min", "0s", "1e3s", "10 parsecs", "5min 3s", "nans"])
    def test_what_is_no_time_is_refused(self, text):
        """With what was written, and how times are written."""
        with pytest.raises(ValueError, match=r"write a time above 0 with its unit: 90s, 10min or 1\.5h") as caught:
            parse_budget(text)

        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.25, "0.25 s"), (45, "45 s"), (120, "2 min"), (5400, "1.5 h"), (0, "0 s")]
    )
    def test_a_time_is_written_as_people_say_it(self, seconds, text):
        """Two digits."""
        assert duration(seconds) == text


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
        result = optimize(model, dataset, folder, max_drop=10, plan=INTEGERS)
        rows = ledger.rows("optimize")
    return model, dataset, folder, result, rows


class TestBottleneck:
    def test_it_is_found_in_the_layers(self, found):
        """Shares of what binds add up to all of the time; the slowest layers are the network's, slowest first."""
        model, *_, result, _ = found
        told = result.bottleneck
        layers = {"(model)"} | {name for name, _ in model.named_modules()}

        assert (told.status, sum(told.shares.values())) == ("ok", pytest.approx(1))
        assert list(told.slowest.values()) == sorted(told.slowest.values(), reverse=True)
        assert layers.issuperset(told.slowest)

    def test_it_is_said_in_a_sentence(self):
        """What binds, for how much of the time, and where."""
        told = Bottleneck("ok", {"overhead": 0.7, "compute": 0.3}, {"stem": 0.25, "head": 0.125})

        assert str(told) == (
            "As it was given, overhead binds, so fewer calls help and less arithmetic alone does not (70% of the "
            "time). The slowest layers, with their share of the time: stem 25%, head 12%."
        )

    def test_what_cannot_be_measured_says_why(self):
        """A module that fails under hooks stops nothing."""

        class Odd(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                raise RuntimeError("not today")

        told = find_bottleneck(Odd().eval(), torch.randn(2, 3, 8, 8), budget_s=0.05)

        assert str(told) == "What the network waits for was not measured: not today."


class TestOptimize:
    def test_the_winner_is_faster_and_seen_on_test_only_then(self, found):
        """Rows are judged on val; the outcome on the same test images for both."""
        _, dataset, _, result, _ = found

        assert {row.accuracy.split for row in result.rows} == {"val"}
        assert (result.before.split, result.after.split, result.after.images) == ("test", "test", len(dataset.test))
        assert result.winner in result.rows[1:]
        assert result.difference == paired_difference(result.before.correct, result.after.correct)

    def test_no_test_image_is_seen_before_the_choice(self, found, monkeypatch):
        """The split of whatever is judged, in order, with the choice between."""
        model, dataset, folder, *_ = found
        seen = []

        def judge(predictor, batches):
            seen.append(batches.split)
            return evaluate(predictor, batches)

        monkeypatch.setattr("deploykit.benchmarking.evaluate", judge)
        monkeypatch.setattr(run, "evaluate", judge)
        monkeypatch.setattr(run, "choose", lambda rows, _: seen.append("choice") or rows[0])
        optimize(model, dataset, folder, plan=INTEGERS)

        assert seen == ["val", "val", "val", "choice", "test"]

    def test_each_step_leaves_a_row_in_the_ledger(self, found):
        """The baseline, two steps on val, and the chosen one on test."""
        *_, result, rows = found

        assert list(rows["split"]) == ["val", "val", "val", "test"]
        assert list(rows["what"]) == [*(row.name for row in result.rows), f"{result.winner.name}, chosen"]
        assert rows["speedup"][0] == 1

    @pytest.mark.parametrize("form", INTEGERS.forms, ids=["onnxruntime", "openvino"])
    def test_the_script_gives_the_artifacts_answers(self, found, tmp_path, form, monkeypatch):
        """In a process that cannot import deploykit, for pictures in files; class names come out as they are."""
        model, dataset, folder, result, _ = found
        monkeypatch.setattr(
            "deploykit.optimize.run.choose", lambda rows, _: next(r for r in rows if r.name == form.name)
        )
        result = optimize(model, dataset, folder, plan=INTEGERS)
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
        again = optimize(model, dataset, folder, max_drop=10, plan=INTEGERS)

        assert [row.accuracy.accuracy for row in again.rows] == [row.accuracy.accuracy for row in result.rows]

    def test_another_network_is_made_anew(self, found, tmp_path, monkeypatch):
        """One weight is enough."""
        model, dataset, folder, _, _ = found
        made = []
        monkeypatch.setattr(
            "deploykit.optimize.forms.rows_of_file", lambda kinds, _: made.extend(kinds) or map(failed, kinds)
        )

        def failed(kind: tuple[str, str]) -> Row:
            return Row(*kind, status="not made")

        kept = model.fc.bias[0].item()
        with torch.no_grad():
            model.fc.bias[0] += 1e-3
        result = optimize(model, dataset, folder, plan=INTEGERS)
        with torch.no_grad():
            model.fc.bias[0] = kept

        assert made == [(form.runtime, form.precision) for form in INTEGERS.forms]
        assert (result.winner is result.rows[0], result.folder) == (True, None)
        assert not (folder / "winner").exists()  # that of the call before
        assert str(result).startswith("no step helped: the network stays as it is, ")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_drop": -1}, "max_drop is -1"),
            ({"max_drop": float("nan")}, "max_drop is nan"),
            ({"batch": 0}, "batch is 0"),
            ({}, r"holds something else \(thesis\)"),
        ],
    )
    def test_mistakes_are_refused_before_any_work(self, tmp_path, options, words):
        """A folder with something else in it is not written to."""
        (tmp_path / "thesis").touch()
        with pytest.raises(ValueError, match=words):
            optimize(SmallResidual().eval(), coloured(seed=0), tmp_path, **options)


SHORTER = plan_optimization(only=["fewer blocks", "fewer channels", "ONNX Runtime float32"], budget_s=900)


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Let a lesson be as short as it can, and the timing too, however slow this machine is."""
    monkeypatch.setattr("deploykit.optimize.plan.MOST_TIMING_S", 1)
    monkeypatch.setattr(teach, "MOST_EPOCHS", 2)
    monkeypatch.setattr(teach, "ENOUGH_STEPS", 2)
    monkeypatch.setattr(teach, "LEAST_STEPS", 1)


def setting(folder: Path) -> Setting:
    """Return what a smaller network is made in."""
    images, _ = next(iter(Batches(coloured(seed=0).train, coloured(seed=0), batch_size=32)))
    return Setting(folder, images.contiguous(), (1,), 4, lambda _: None)


def smaller(model: nn.Module, where: Setting, *, seconds: float = 900.0, share_s: float = 900.0) -> nn.Module:
    """Take blocks out of a model and teach it."""
    data = coloured(seed=0)
    return teach.make_smaller(SMALLER[0], model, where, data, seconds=seconds, share_s=share_s, progress=False)[0]


def stop(*_: object) -> None:
    """Be where the reader presses Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def resnet8():
    """Return a network with a block that can go and channels that can; untrained."""
    torch.manual_seed(0)
    return models.build("resnet8", classes=4).eval()


class TestOrigin:
    """What a kept result belongs to; a mistake here hands back another network's."""

    @staticmethod
    def written(folder: Path, body: str) -> nn.Module:
        """Build a network from a file whose forward is ``body``; always of the same weights, and printed alike."""
        folder.mkdir()
        text = f"from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        return {body}\n"
        (folder / "net.py").write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("net", folder / "net.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["net"] = module
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        return module.Net(4, 2).eval()

    def test_another_forward_is_another_network(self, tmp_path, monkeypatch):
        """The weights, names and printed structure of both are the same."""
        monkeypatch.setitem(sys.modules, "net", None)
        data, calibration = coloured(seed=0), torch.zeros(2, 4)
        hashes = []
        for folder, body in (("a", "super().forward(x)"), ("b", "super().forward(x)"), ("c", "-super().forward(x)")):
            hashes.append(origin(self.written(tmp_path / folder, body), calibration, data))

        assert hashes[0] == hashes[1] != hashes[2]

    def test_a_buffer_that_is_not_saved_counts(self):
        """A mean that is subtracted, for one."""
        data, calibration = coloured(seed=0), torch.zeros(2, 4)
        hashes = []
        for mean in (0.0, 0.0, 1.0):
            network = nn.Identity()
            network.register_buffer("mean", torch.tensor(mean), persistent=False)
            hashes.append(origin(network, calibration, data))

        assert hashes[0] == hashes[1] != hashes[2]


class TestSmaller:
    def test_what_was_taught_is_not_taught_again(self, in_a_hurry, resnet8, tmp_path, monkeypatch):
        """Stopped when both were taught, the same call goes on with their weights, and changes nothing of the model."""
        dataset, before = coloured(seed=0), {name: value.clone() for name, value in resnet8.state_dict().items()}
        with monkeypatch.context() as patch:
            patch.setattr(run, "judge_rows", stop)
            with pytest.raises(KeyboardInterrupt):
                optimize(resnet8, dataset, tmp_path, plan=SHORTER)
        monkeypatch.setattr(teach, "fit", lambda *_, **__: pytest.fail("taught again"))
        monkeypatch.setattr("deploykit.contestants.tried_apart", lambda *_: pytest.fail("made again"))
        monkeypatch.setattr(run, "choose", lambda rows, _: rows[-1])
        found = optimize(resnet8, dataset, tmp_path, plan=SHORTER)
        artifact = (tmp_path / "fewer-channels" / "onnx-runtime-float32" / "model.onnx").read_bytes()

        assert [row.name for row in found.rows if row.ok][2:] == [
            "fewer blocks, ONNX Runtime float32", "fewer channels, ONNX Runtime float32",
        ]  # fmt: skip
        assert found.done["fewer blocks"].startswith("without blocks.0, ")
        assert (tmp_path / "winner" / "model.onnx").read_bytes() == artifact
        assert all(value.equal(before[name]) for name, value in resnet8.state_dict().items())

    def test_another_lesson_is_another_network(self, in_a_hurry, resnet8, tmp_path, monkeypatch):
        """With more time, what an earlier call taught is thrown away, and so is the state of a training in between."""
        lesson, options = setting(tmp_path), []
        smaller(resnet8, lesson, share_s=300)
        (tmp_path / teach.STATE).write_text("of another training")
        real = teach.fit
        monkeypatch.setattr(teach, "fit", lambda *given, **how: options.append(how) or real(*given, **how))
        smaller(resnet8, lesson, share_s=330)

        assert [how["epochs"] for how in options] == [2, 2]  # the trial, and the lesson
        assert options[1]["checkpoint"] == tmp_path / teach.STATE

    def test_a_lesson_is_as_long_as_there_is_time(self, resnet8, tmp_path, monkeypatch):
        """Epochs of as many images as fit into it, up to 600 steps where images are few, and none below 40 steps."""
        lengths = {}
        monkeypatch.setattr(teach, "seconds_of_a_step", lambda *_: 1.0)
        monkeypatch.setattr(teach, "_teach", lambda *given, **_: lengths.update({seconds: given[4]}))
        for seconds in (50.0, 2000.0):
            with pytest.raises(FileNotFoundError, match=teach.WEIGHTS):
                smaller(resnet8, setting(tmp_path), seconds=seconds, share_s=seconds)
        with pytest.raises(ValueError, match="leaves 39 s for its fine-tuning, 39 steps of 1 s, and it takes 40 at"):
            smaller(resnet8, setting(tmp_path), seconds=39.0)

        assert [(found.epochs, found.images, found.batch_size) for found in lengths.values()] == [
            (7, 224, 32), (75, 256, 32),
        ]  # fmt: skip

    def test_a_network_that_cannot_be_pruned_says_why(self, in_a_hurry, tmp_path):
        """No block, no channel beyond a block of eight: each row names it, the forms go on."""
        found = optimize(SmallResidual().eval(), coloured(seed=0), tmp_path, plan=SHORTER)
        blocks, channels = found.rows[2:]

        assert (blocks.network, channels.network) == ("fewer blocks", "fewer channels")
        assert "SmallResidual has no residual block without a projection" in blocks.status
        assert "every group keeps at least 8 of its channels" in channels.status
        assert found.rows[1].ok

    def test_what_cannot_be_exported_stays_as_it_is(self, in_a_hurry, tmp_path):
        """Every row names the module; nothing is taught for a form that there will not be."""
        found = optimize(Branching().eval(), coloured(seed=0), tmp_path, plan=SHORTER)

        assert [row.ok for row in found.rows] == [True, False, False, False]
        assert "gate" in found.rows[1].status
        assert found.rows[2].status.startswith("left out: no form of the network works (")
        assert (found.helped, found.folder, (tmp_path / "winner").exists()) == (False, None, False)
