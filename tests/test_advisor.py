"""The advisor: its rules, its order, its refusals, and its advice held against what was measured."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from deploykit import ledger
from deploykit.advisor import Constraints, NetworkProfile, advise, case, profile_network, situation
from deploykit.advisor.avoid import OBJECTIONS
from deploykit.advisor.effects import claim_effect, recorded_batching, recorded_speed
from deploykit.advisor.numbers import choose_numbers
from deploykit.advisor.plan import STAGES, Plan
from deploykit.advisor.situation import DATA, KINDS, RUNTIMES, TARGETS, reduce_roofline, target_of
from deploykit.claims import claims, judge
from deploykit.machine import machine
from deploykit.peaks import MemoryLevel, Peaks
from deploykit.recorded import recorded, results_folder

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks" / "solutions"
CNN = NetworkProfile("cnn", {"compute": 0.7, "overhead": 0.3}, batch=64, accuracy=0.92)
RICH = Constraints("x86-vnni", data="labelled", training_minutes=60)


def every_plan() -> list[tuple[NetworkProfile, Constraints, Plan]]:
    """Return the advice for each kind of network, target, runtime, data, budget, training time and loss of int8."""
    means = ((0.0, 0), (0.0, 60), (1.0, 0), (1.0, 60), (2.0, 240))  # points that may be lost, minutes of training
    found = []
    for kind, target, data, (budget, minutes), lost in itertools.product(KINDS, TARGETS, DATA, means, (None, 2.0)):
        if minutes and data == "none":
            continue
        profile = NetworkProfile(kind, {"overhead": 1.0}, int8_loss_points=lost)
        for runtime in (None, *RUNTIMES[target]):
            wanted = Constraints(target, budget, data, minutes, bf16=True, runtime=runtime)
            found.append((profile, wanted, advise(profile, wanted)))
    return found


@pytest.fixture(scope="module", autouse=True)
def on_x86() -> Iterator[None]:
    """Let every test run on the same kind of machine: x86 with VNNI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case, "target_here", lambda: "x86-vnni")
        yield


@pytest.fixture(scope="module")
def plans(on_x86) -> list[tuple[NetworkProfile, Constraints, Plan]]:
    """All of them, once."""
    return every_plan()


class TestOrder:
    def test_damage_comes_first_then_learning_and_numbers_last(self):
        """With everything allowed, the plan is the chain of notebook 13."""
        plan = advise(CNN, RICH)

        assert [step.stage for step in plan.steps] == ["measure", "damage", "learn", "runtime", "numbers"]
        assert plan.form == "OpenVINO, int8 NNCF"

    def test_no_plan_leaves_the_order(self, plans):
        """Whatever is given, no step comes after one that it must not follow."""
        assert len(plans) > 500
        for _, _, plan in plans:
            stages = [STAGES.index(step.stage) for step in plan.steps]
            assert stages == sorted(stages)

    def test_every_plan_ends_in_the_form_that_it_names(self, plans):
        """Integers are promised exactly where a step makes them."""
        for _, _, plan in plans:
            assert ("int8" in plan.form) == any("int8" in s.what or "dynamically" in s.what for s in plan.steps)

    def test_advice_is_the_same_every_time(self):
        """Nothing is drawn at random."""
        assert str(advise(CNN, RICH)) == str(advise(CNN, RICH))


class TestSteps:
    def test_every_step_names_a_notebook_and_a_call_that_exist(self, plans):
        """The function can be imported, and takes what the plan hands it."""
        numbers = {path.name[:2] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}
        steps = {(s.notebook, s.function, s.arguments) for _, _, plan in plans for s in plan.steps}
        for notebook, function, arguments in steps:
            module, name = function.rsplit(".", 1)
            signature = inspect.signature(getattr(importlib.import_module(module), name))
            parts = [part.split("=")[0].strip() for part in arguments.split(", ") if "=" in part and "{" not in part]
            assert notebook in numbers
            assert set(parts) <= signature.parameters.keys(), function

    def test_every_effect_has_a_source(self, plans):
        """A recorded run that is there, or a claim that is under test."""
        sources = {effect.source for _, _, plan in plans for step in plan.steps for effect in step.effects}
        for source in sources:
            kind, _, rest = source.partition(" ")
            if kind == "claim":
                assert rest.split(",")[0] in claims()
            elif kind == "recorded:":
                assert [recorded(name) for name in rest.split(", ")]
            else:
                trained = ("recorded run block-pruning-resnet20:", "recorded run resnet10-fast:")
                assert source.startswith((*trained, "no recorded run"))

    def test_every_objection_names_a_claim_or_a_document(self):
        """And a notebook that shows it."""
        for objection in OBJECTIONS:
            assert objection.source.removeprefix("claim ") in claims() or "ONNX Runtime" in objection.source
            assert list(NOTEBOOKS.glob(f"{objection.notebook}_*.ipynb"))

    @pytest.mark.parametrize(("batch", "like"), [(1, 1), (8, 1), (9, 64), (256, 64)])
    def test_a_recorded_effect_is_the_range_of_the_recorded_runs(self, batch, like):
        """Computed here from the files, once more, at the recorded batch that is like the given one."""
        effect = recorded_speed("OpenVINO, int8 NNCF", over="OpenVINO, float32", batch=batch)
        ratios = []
        for name in ("resnet20", "resnet56", "resnet20x4"):
            rows = recorded(f"quantization-{name}").table().set_index("form")[f"speedup_batch_{like}"]
            ratios.append(rows["OpenVINO, int8 NNCF"] / rows["OpenVINO, float32"])

        assert (effect.low, effect.high) == pytest.approx((min(ratios), max(ratios)))
        assert str(effect).startswith(f"speed over OpenVINO, float32, batch {like}: {min(ratios):.1f} to")

    def test_a_claims_effect_is_this_machines_verdict_and_no_other_machines(self, tmp_path, monkeypatch):
        """The newest verdict of the ledger for a plan made for here, no number for a plan made for elsewhere."""
        monkeypatch.setenv("DEPLOYKIT_LEDGER", str(tmp_path))
        assert claim_effect("static-is-fast").low is None
        judge("static-is-fast", 2.5, low=2.25, high=3.0, evidence="made up")

        assert claim_effect("static-is-fast").low == 2.25
        assert claim_effect("static-is-fast", here=False).low is None
        assert len(ledger.rows(kind="verdict")) == 1


class TestRules:
    def test_a_cnn_is_not_quantized_dynamically(self, plans):
        """There is nothing that it would reach."""
        for profile, _, plan in plans:
            assert profile.kind != "cnn" or "dynamic" not in plan.form

    def test_recurrent_layers_are_quantized_where_there_are_kernels(self):
        """In PyTorch, without images; elsewhere they stay in float."""
        network = NetworkProfile("recurrent")

        assert advise(network, Constraints("x86-vnni")).form == "PyTorch, int8 dynamic"
        assert advise(network, Constraints("x86-vnni", data="images", runtime="openvino")).form == "OpenVINO, float32"

    def test_matrices_are_calibrated_where_there_are_images(self):
        """The kind of network alone does not decide between dynamic and static."""
        network = NetworkProfile("attention")

        assert advise(network, Constraints("x86-vnni")).form == "PyTorch, int8 dynamic"
        assert advise(network, Constraints("x86-vnni", data="images")).form == "OpenVINO, int8 NNCF"

    def test_no_accuracy_to_lose_means_float32(self, plans):
        """Then no number is touched and nothing is trained."""
        for _, wanted, plan in plans:
            if wanted.budget_points == 0:
                assert plan.form.endswith("float32")
                assert {step.stage for step in plan.steps} <= {"measure", "runtime"}

    def test_without_vnni_weights_get_seven_bits(self):
        """And the reason is told."""
        plan = advise(CNN, Constraints("x86", data="images"))

        assert plan.steps[-1].arguments == "path, calibration, reduce_range=True"
        assert any("overflow" in item.why for item in plan.avoided)

    def test_other_processors_get_their_own_form(self):
        """Arm its signed int8, NVIDIA float16; that nothing was measured there is said."""
        arm, gpu = (advise(CNN, Constraints(target, data="images")) for target in ("arm", "nvidia"))

        assert (arm.form, gpu.form) == ("ONNX Runtime, int8 for arm", "TensorRT, float16")
        assert "has measured nothing on arm" in arm.remark
        assert all(effect.low is None for step in gpu.steps for effect in step.effects)

    def test_training_through_the_rounding_only_after_int8_lost_too_much(self):
        """It takes a measured loss, and the means to train; without these the next best is bfloat16."""
        lossy = NetworkProfile("cnn", int8_loss_points=2.0)
        trained = advise(lossy, RICH)

        assert trained.form == "OpenVINO, int8 portable"
        assert "deploykit.quantization.qat.prepare_qat" in [step.function for step in trained.steps]
        assert advise(lossy, Constraints("x86-vnni", data="images", bf16=True)).form == "OpenVINO, bf16"
        assert "training through the rounding first" in [item.what for item in advise(CNN, RICH).avoided]
        assert "training through the rounding first" not in [item.what for item in trained.avoided]
        exact = advise(CNN, Constraints("x86-vnni", budget_points=0, data="images"))
        assert "training through the rounding first" not in [item.what for item in exact.avoided]

    def test_with_time_and_points_for_it_a_network_is_drawn_and_not_pruned(self):
        """For networks of convolutions, of which there is a record; then it is trained and not fine-tuned."""
        patient = Constraints("x86-vnni", budget_points=1.0, data="labelled", training_minutes=120)
        _, drawn, taught, *_ = advise(CNN, patient).steps

        assert drawn.what == "Draw a small network for the processor"
        assert drawn.effects[0].source.startswith("recorded run resnet10-fast: ")
        assert taught.what == "Train it with the original as teacher"
        assert "claim distillation-beats-labels" in taught.effects[0].source
        _, pruned, mended, *_ = advise(CNN, dataclasses.replace(patient, budget_points=0.5)).steps
        assert pruned.what == "Take out the blocks that are missed least"
        assert "claim original-mends-what-pruning-broke" in mended.effects[0].source
        smaller, anew = (step.what for step in advise(NetworkProfile("linear"), patient).steps[1:3])
        assert (smaller, anew) == ("Take a smaller network as student", taught.what)

    def test_unlabelled_images_are_taught_by_the_teacher_alone(self):
        """The labels' share of the loss is 0 where there are none."""
        plan = advise(CNN, Constraints("x86-vnni", data="images", training_minutes=60))

        assert plan.steps[2].arguments == "teacher=model, alpha=1.0"

    def test_nothing_is_done_where_the_demand_is_met(self):
        """The best step is the one that is not needed."""
        fast = NetworkProfile("cnn", {"compute": 1.0}, latency_ms=1.0)
        plan = advise(fast, Constraints("x86-vnni", data="images", latency_ms=2.0))

        assert [step.stage for step in plan.steps] == ["measure"]
        assert plan.remark == "What is demanded is met already: deploy what there is, and keep measuring."

    def test_what_binds_is_the_reason(self):
        """The first step names it, and where overhead binds narrower layers are advised against."""
        slow = NetworkProfile("cnn", {"overhead": 0.8, "compute": 0.2})
        plan = advise(slow, RICH)

        assert plan.steps[0].why.startswith("Here overhead binds, so fewer calls help")
        assert "narrower layers where overhead binds" in [item.what for item in plan.avoided]
        assert "narrower layers where overhead binds" not in [item.what for item in advise(CNN, RICH).avoided]
        assert "find the bottleneck" in advise(NetworkProfile("cnn"), RICH).steps[0].what

    @pytest.mark.parametrize(
        ("bound", "batch", "latency_ms", "advised"),
        [
            ("overhead", 1, None, True),
            ("overhead", 64, None, False),
            ("overhead", 1, 2.0, False),
            ("compute", 1, None, False),
        ],
    )
    def test_larger_batches_where_overhead_binds_and_nobody_waits(self, bound, batch, latency_ms, advised):
        """The same demand, another bottleneck: another plan."""
        plan = advise(NetworkProfile("cnn", {bound: 1.0}, batch=batch), Constraints("x86-vnni", latency_ms=latency_ms))

        assert ("Hand over more images per call" in [step.what for step in plan.steps]) == advised

    def test_what_batches_bring_is_computed_from_the_recorded_times(self):
        """64 single images take that many times as long as one batch of 64; by hand for one of the networks."""
        rows = recorded("quantization-resnet20").table().set_index("form").loc["OpenVINO, float32"]
        effect = recorded_batching("OpenVINO, float32")

        assert effect.low <= 64 * rows["median_ms_batch_1"] / rows["median_ms_batch_64"] <= effect.high
        assert effect.what == "throughput of OpenVINO, float32, batch 64 over batch 1"


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"target": "x87"}, "there is no target 'x87'; choose one of 'x86-vnni', 'x86', 'arm', 'nvidia'"),
            ({"data": "few"}, "there is no choice of data 'few'"),
            ({"runtime": "tensorrt"}, "there is no recipe for 'tensorrt' on x86-vnni; choose 'openvino' or"),
            ({"training_minutes": 5}, "5 minutes of training are allowed, but data is 'none'"),
            ({"budget_points": -1}, "budget_points is -1 and training_minutes is 0"),
            ({"latency_ms": 0}, "latency_ms is 0; give a number above 0"),
        ],
    )
    def test_contradictions_are_refused(self, given, message):
        """With what was given and what to do."""
        with pytest.raises(ValueError, match=message):
            Constraints(**{"target": "x86-vnni", **given})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"kind": "tree"}, "there is no kind of network 'tree'"),
            ({"shares": {"disk": 1.0}}, "there is no bottleneck 'disk'"),
            ({"shares": {"memory": -1.0}}, "a share of the time lies between 0 and 1"),
            ({"batch": 0}, "batch is 0; give the images per call, at least 1"),
            ({"accuracy": 92.0}, "accuracy is 92; give a share of the images between 0 and 1"),
        ],
    )
    def test_profiles_that_cannot_be_are_refused(self, given, message):
        """Before any advice is built on them."""
        with pytest.raises(ValueError, match=message):
            NetworkProfile(**{"kind": "cnn", **given})

    def test_nobody_may_lose_more_than_there_is(self):
        """A budget that eats the whole accuracy is a slip of the unit."""
        with pytest.raises(ValueError, match=r"budget_points is 95, and the network has 92\.0 points to lose in all"):
            advise(CNN, Constraints("x86-vnni", budget_points=95))


class TestSituation:
    @pytest.mark.parametrize(
        ("gpu", "system", "features", "target"),
        [
            ("H100", "Debian, x86_64", ["avx512_vnni"], "nvidia"),
            (None, "Debian, x86_64", ["avx2", "avx_vnni"], "x86-vnni"),
            (None, "Windows 11, AMD64", ["avx512"], "x86"),
            (None, "Darwin 24, arm64", ["asimddp"], "arm"),
        ],
    )
    def test_a_target_is_told_from_the_machine(self, gpu, system, features, target):
        """By its GPU, its architecture, and its instructions."""
        assert target_of({"gpu": gpu, "os": system, "features": features}) == target

    def test_another_processor_is_not_guessed(self):
        """The reader names the nearest."""
        with pytest.raises(ValueError, match="this processor is riscv64; name the target that is nearest"):
            target_of({"gpu": None, "os": "Debian, riscv64", "features": []})

    def test_here_fills_in_what_this_machine_is(self, monkeypatch):
        """Target and bfloat16, and what is given wins."""
        told = {**machine(), "gpu": None, "os": "Debian, x86_64", "features": ["avx512_vnni", "avx512_bf16"]}
        monkeypatch.setattr(situation, "machine", lambda: told)

        assert Constraints.here(data="images") == Constraints("x86-vnni", data="images", bf16=True)
        assert Constraints.here(target="arm", bf16=False).target == "arm"

    def test_a_roofline_is_reduced_to_shares_and_a_kind(self):
        """By time, not by number of layers."""
        table = pd.DataFrame(
            {
                "layer_type": ["Conv2d", "Linear", "Conv2d", "GELU"],  # more convolutions, less time in them
                "bound": ["memory", "compute", "memory", "overhead"],
                "ms": [1.0, 6.0, 1.0, 2.0],
            }
        )
        profile = reduce_roofline(table, batch=8, accuracy=0.9)

        assert (profile.kind, profile.batch, profile.accuracy, profile.latency_ms) == ("linear", 8, 0.9, 10.0)
        assert profile.shares == pytest.approx({"compute": 0.6, "memory": 0.2, "overhead": 0.2})
        with pytest.raises(ValueError, match=r"the layers \(GELU\) are no convolutions"):
            reduce_roofline(table[3:], batch=8)

    @pytest.mark.parametrize(("name", "kind"), [("resnet8", "cnn"), ("mlp-mixer", "linear"), ("row-lstm", "recurrent")])
    def test_the_networks_of_the_course_are_told_apart(self, name, kind):
        """Measured, under the roof of a machine whose peaks are given."""
        from deploykit.models import build

        peaks = Peaks({"fp32": 100.0}, (MemoryLevel("DRAM", float("inf"), 20.0),), 5.0, {}, 1, 1.0)
        profile = profile_network(build(name).eval(), torch.randn(2, 3, 32, 32), peaks, calls=2)

        assert profile.kind == kind
        assert sum(profile.shares.values()) == pytest.approx(1)

    def test_the_decision_that_is_copied_knows_every_case(self):
        """It answers for whatever it is asked, with one of six."""
        grid = itertools.product(KINDS, TARGETS, DATA, (0, 1), (False, True))
        answers = {choose_numbers(k, t, data=d, budget_points=b, bf16=f) for k, t, d, b, f in grid}

        assert answers == {"float32", "bf16", "float16", "dynamic int8", "static int8"}


NETWORKS = ("resnet20", "resnet56", "resnet20x4")
IMAGES = Constraints("x86-vnni", data="images", bf16=True)
EXACT = Constraints("x86-vnni", budget_points=0, data="images", bf16=True)
SCENARIOS = {
    **{f"{name}, one image at a time": (name, 1, IMAGES) for name in NETWORKS},
    **{f"{name}, in batches": (name, 64, IMAGES) for name in NETWORKS},
    "nothing may change": ("resnet20", 64, EXACT),
    "nothing may change, deep and single": ("resnet56", 1, EXACT),
    "no images at all": ("resnet56", 64, Constraints("x86-vnni", bf16=True)),
    "a small file": ("resnet20", 64, Constraints("x86-vnni", data="images", size_kib=300)),
    "ONNX Runtime is set": ("resnet20x4", 64, Constraints("x86-vnni", data="images", runtime="onnxruntime")),
    "it has to stay in PyTorch": ("resnet56", 64, Constraints("x86-vnni", data="images", runtime="torch")),
}
# Networks that the whole chain can end with, and the recorded runs of their training.
TRAINED = {
    "resnet20-minus2blocks": "block-pruning-resnet20-minus2",
    "resnet20-minus3blocks": "block-pruning-resnet20",
    "resnet20-pruned2x": "structured-pruning-resnet20-2x",
    "resnet10-fast": "resnet10-fast",
}
IN_RUNTIME = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch": "PyTorch|Inductor"}


def allowed(table: pd.DataFrame, wanted: Constraints) -> pd.DataFrame:
    """Return the measured variants that meet the demands: means, runtime, accuracy and size."""
    table = table[table["minus_float32_points"] >= -wanted.budget_points]
    if wanted.budget_points == 0:
        table = table[table.index.str.contains("float32")]  # a rounded number may change an answer
    if wanted.data == "none":
        table = table[~table.index.str.contains("int8")]
    if wanted.runtime:
        table = table[table.index.str.contains(IN_RUNTIME[wanted.runtime])]
    return table if wanted.size_kib is None else table[table["size_kib"] <= wanted.size_kib]


def behind_the_fastest(table: pd.DataFrame, form: str, time: str) -> float:
    """Return the time of a variant over that of the fastest in the table.

    Whoever is within a tenth of the fastest of all that are accurate enough is within a tenth of the Pareto front; the
    front itself would be too easy a test, since one lucky answer in 10,000 puts a slow variant on it.
    """
    return float(table.loc[form, time] / table[time].min())


class TestAgainstWhatWasMeasured:
    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_the_advice_is_on_the_front_or_near_it(self, scenario):
        """Of all recorded variants that meet the demand, none is more than a tenth faster."""
        name, batch, wanted = SCENARIOS[scenario]
        measured = allowed(recorded(f"quantization-{name}").table().set_index("form"), wanted)
        form = advise(NetworkProfile("cnn", batch=batch), wanted).form

        assert len(measured) > 1
        assert behind_the_fastest(measured, form, f"median_ms_batch_{batch}") <= 1.1

    @pytest.mark.parametrize(
        ("minutes", "points", "network"),
        [
            (60, 1.0, "resnet20-minus3blocks"),
            (60, 2.0, "resnet20-minus3blocks"),
            (120, 1.0, "resnet10-fast"),
            (120, 2.0, "resnet10-fast"),
        ],
    )
    def test_the_whole_chain_is_on_the_front_or_near_it(self, minutes, points, network):
        """ResNet-56 with everything allowed: of what can be trained in the time, the plan's network, in int8."""
        if not (results_folder() / "combined.json").is_file():
            pytest.skip("data/results/combined.json is not recorded yet: run benchmarks/combined.py")
        table = recorded("combined").table().set_index("form")
        table["ms"] = 1000 / table["images_per_s"]
        wanted = dataclasses.replace(RICH, training_minutes=minutes, budget_points=points)
        plan = advise(NetworkProfile("cnn", batch=64), wanted)
        assert plan.steps[1].effects[-1].source.startswith(f"recorded run {TRAINED[network]}:")

        # The minutes of resnet10-fast are a GPU's for more than half of its epochs, and the advice is for a processor.
        took = {name: recorded(run).rows[0]["minutes"] for name, run in TRAINED.items()} | {"resnet10-fast": 120}
        too_long = [name for name in TRAINED if took[name] > minutes]
        table = table[~table.index.str.split(",").str[0].isin(too_long)]
        measured = table[table["minus_resnet56_points"] >= -wanted.budget_points]
        assert behind_the_fastest(measured, f"{network}, int8 in OpenVINO", "ms") <= 1.1

    def test_bad_advice_would_be_found(self):
        """The yardstick tells good from bad: signed activations and bare float32 are far behind."""
        table = allowed(recorded("quantization-resnet20").table().set_index("form"), IMAGES)

        for form in ("ONNX Runtime, int8 s8s8", "OpenVINO, float32", "PyTorch eager, float32"):
            assert behind_the_fastest(table, form, "median_ms_batch_64") > 2
