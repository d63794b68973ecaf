"""Building an engine: for real, with TensorRT-RTX on the CPU; kept, reused, rebuilt, and refused in words."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_files as files
from onnx import TensorProto
from tensorrt_standin import Config

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")

from deploykit.runtimes import tensorrt_build, tensorrt_library
from deploykit.runtimes.built_here import record_built_here
from deploykit.runtimes.tensorrt_build import build_engine
from deploykit.runtimes.tensorrt_library import import_pycuda, import_tensorrt
from deploykit.runtimes.tensorrt_manifest import Manifest, is_built_here, sha256
from deploykit.runtimes.tensorrt_session import keep_timing_cache, use_timing_cache

BATCHES = (1, 2, 4)


@pytest.fixture
def source(tmp_path) -> Path:
    """A small float32 classifier as a file."""
    return saved(files.classifier(), tmp_path / "model.onnx")


@pytest.fixture
def target(tmp_path) -> Path:
    """Where its engine goes."""
    return tmp_path / "engines" / "model.plan"


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model and return its path."""
    path.write_bytes(proto.SerializeToString())
    return path


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the import of packages fail as if they were not installed."""
    real = builtins.__import__

    def guarded(name: str, *args: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] in names:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", guarded)


class TestBuild:
    def test_a_plan_and_its_manifest_are_written(self, source, target):
        """The manifest says what the engine was built from, by what, and for which batches."""
        engine = build_engine(source, target, profile=BATCHES, workspace_gib=0.5)
        trt = import_tensorrt()

        assert Manifest.read(target) == engine.manifest
        assert engine.manifest == Manifest(
            onnx_sha256=sha256(source.read_bytes()),
            library="tensorrt_rtx",
            version=trt.__version__,
            gpu=None,
            compute_capability=None,
            profile=BATCHES,
            workspace_gib=0.5,
            plan_sha256=sha256(target.read_bytes()),
        )

    def test_it_is_the_readers_alone(self, source, target):
        """A new folder and the plan: nobody else may read or write them."""
        build_engine(source, target, profile=BATCHES)

        assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert is_built_here(target.read_bytes(), target)

    def test_a_folder_that_others_may_write_is_refused(self, source, target):
        """Who can put another plan there can run what they like."""
        target.parent.mkdir()
        target.parent.chmod(0o777)

        with pytest.raises(
            ValueError, match=r"others may write in the folder .*engines, and an engine runs as a program"
        ):
            build_engine(source, target, profile=BATCHES)

    def test_the_report_is_one_line(self, source, target):
        """What was done, why, by whom, and for which batches."""
        engine = build_engine(source, target, profile=BATCHES)

        size = f"{target.stat().st_size:,}"
        version = f"tensorrt_rtx {import_tensorrt().__version__}"
        assert str(engine) == (
            f"model.plan: built (there was none), {size} bytes, {version}, batches of 1 to 4, best at 2"
        )

    def test_what_is_slow_is_in_the_report(self, tmp_path, target):
        """It is built, and says what stays in float."""
        source = saved(files.residual(on_shortcut=False, on_branch=True), tmp_path / "residual.onnx")
        engine = build_engine(source, target, profile=BATCHES)

        assert [finding.node for finding in engine.findings] == ["logits_node"]
        assert "\n  logits_node: the addition, and the convolution before it, is computed in float" in str(engine)

    @pytest.mark.parametrize("kind", ["int8", "half inside", "bfloat16 inside"])
    def test_the_precision_is_in_the_file(self, tmp_path, target, kind):
        """Strongly typed: int8 by pairs, float16 and bfloat16 by casts; no flag is set."""
        source = saved(files.quantized() if kind == "int8" else files.inside(kind), tmp_path / "typed.onnx")

        assert build_engine(source, target, profile=BATCHES).path.stat().st_size > 1000

    def test_a_fixed_batch_is_built_for_itself(self, tmp_path, target):
        """With a profile of that size alone."""
        source = saved(files.classifier(batch=4), tmp_path / "fixed.onnx")

        assert build_engine(source, target, profile=(4, 4, 4)).manifest.profile == (4, 4, 4)

    def test_progress_is_shown_on_bars(self, source, target, capsys):
        """The builder's phases, to the end."""
        build_engine(source, target, profile=BATCHES, progress=True)

        assert "100%" in capsys.readouterr().err


class TestReuse:
    def test_nothing_changed_nothing_is_built(self, source, target):
        """The second call returns what is there."""
        first = build_engine(source, target, profile=BATCHES)
        written = target.stat().st_mtime_ns
        again = build_engine(source, target, profile=BATCHES)

        assert (first.reused, again.reused, again.why) == (False, True, "nothing changed")
        assert target.stat().st_mtime_ns == written
        assert again.manifest == first.manifest

    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("onnx_sha256", "0", "another ONNX file"),
            ("version", "10.16.1", r"another version of the library, [\d.]+ instead of 10\.16\.1"),
            ("library", "tensorrt", "another library, tensorrt_rtx instead of tensorrt"),
            ("gpu", "NVIDIA L4", "another GPU, None instead of NVIDIA L4"),
            ("compute_capability", "8.9", r"another compute capability, None instead of 8\.9"),
            ("profile", (1, 1, 1), r"another profile, \(1, 2, 4\) instead of \(1, 1, 1\)"),
            ("workspace_gib", 2.0, r"another workspace, 1\.0 instead of 2\.0"),
        ],
    )
    def test_what_changed_is_said_and_it_is_built_again(self, source, target, name, value, why):
        """Whatever an engine depends on is compared."""
        engine = build_engine(source, target, profile=BATCHES)
        dataclasses.replace(engine.manifest, **{name: value}).write(target)
        again = build_engine(source, target, profile=BATCHES)

        assert not again.reused
        assert re.fullmatch(why, again.why)
        assert Manifest.read(target) == engine.manifest

    def test_another_model_is_another_engine(self, source, target):
        """One changed weight is enough."""
        build_engine(source, target, profile=BATCHES)
        proto = onnx.load(source)
        proto.graph.initializer[0].CopyFrom(files.tensor("weights", files.weights() + 1))
        saved(proto, source)

        assert build_engine(source, target, profile=BATCHES).why == "another ONNX file"

    def test_weights_in_another_file_count(self, tmp_path, target):
        """The ONNX file itself is the same; the file beside it is not."""
        source = tmp_path / "outside.onnx"
        onnx.save(files.classifier(), source, save_as_external_data=True, location="weights.data", size_threshold=0)
        build_engine(source, target, profile=BATCHES)
        (tmp_path / "weights.data").write_bytes(np.ones_like(files.weights()).tobytes())

        assert build_engine(source, target, profile=BATCHES).why == "another ONNX file"

    def test_a_flipped_byte_is_never_reused(self, source, target):
        """The plan is built anew, and says why."""
        build_engine(source, target, profile=BATCHES)
        flip(target)

        assert build_engine(source, target, profile=BATCHES).why == "the plan is not what this machine wrote"

    def test_a_manifest_that_agrees_with_a_foreign_plan_is_not_believed(self, source, target):
        """Who can change the plan can change the JSON beside it; the list of hashes lies elsewhere."""
        engine = build_engine(source, target, profile=BATCHES)
        flip(target)
        dataclasses.replace(engine.manifest, plan_sha256=sha256(target.read_bytes())).write(target)

        assert build_engine(source, target, profile=BATCHES).why == "the plan is not what this machine wrote"

    @pytest.mark.parametrize("content", [None, "", "[]", '{"gpu": null}', '{"profile": 3}'])
    def test_a_lost_or_broken_manifest_means_to_build(self, source, target, content):
        """Nothing is assumed of an engine that does not say what it is."""
        build_engine(source, target, profile=BATCHES)
        manifest = target.with_name("model.plan.json")
        manifest.unlink()
        if content is not None:
            manifest.write_text(content)

        assert build_engine(source, target, profile=BATCHES).why == "there was no manifest"

    def test_a_failing_build_leaves_the_old_engine(self, source, target, monkeypatch):
        """Complete or absent: what lies there is the last good one, and nothing else."""
        build_engine(source, target, profile=BATCHES)
        before = target.read_bytes()
        monkeypatch.setattr(tensorrt_build, "record_built_here", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_engine(source, target, profile=(1, 1, 1))

        assert target.read_bytes() == before
        assert sorted(path.name for path in target.parent.iterdir()) == ["model.plan", "model.plan.json"]


class TestRefusals:
    @pytest.mark.parametrize("profile", [(4, 2, 1), (1, 8, 4), (0, 1, 2), (1, 2), (1, 2, 2.5), (1, 2, 3, 4)])
    def test_a_profile_out_of_order_is_refused_before_any_work(self, tmp_path, target, profile):
        """Not even the ONNX file is looked for."""
        with pytest.raises(ValueError, match=r"profile is \(.*\); give the smallest, the usual and the largest batch"):
            build_engine(tmp_path / "nothing.onnx", target, profile=profile)

    def test_no_workspace_is_refused(self, source, target):
        """Zero would be refused much later."""
        with pytest.raises(ValueError, match=r"workspace_gib is 0; give more than 0, 1\.0 is usual"):
            build_engine(source, target, workspace_gib=0)

    def test_another_ending_is_refused(self, source, tmp_path):
        """Before anything is built, and nothing is left behind."""
        with pytest.raises(ValueError, match=r"model\.engine must end in \.plan"):
            build_engine(source, tmp_path / "new" / "model.engine")
        assert not (tmp_path / "new").exists()

    def test_a_missing_file_is_said(self, tmp_path, target):
        """In the words of the other runtimes."""
        with pytest.raises(FileNotFoundError, match="there is no file"):
            build_engine(tmp_path / "nothing.onnx", target)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (
                lambda: files.quantized(zero_point=np.uint8(128)),
                (
                    r"TensorRT refuses bad\.onnx\. integers_node: the zero point of uint8 is 128, not 0 \(refused\)\. "
                    r"Remedy: quantize the float32 network again, with quantize_onnx\(\.\.\., target='tensorrt'\) or "
                    r"prepare_qat\(\.\.\., symmetric=True\)\. "
                    r"It says: Assertion failed: shiftIsAllZeros\(zeroPoint\)"
                ),
            ),
            (
                lambda: files.quantized(bias=np.int32),
                (
                    r"bias_node: the bias is int32 \(refused\)\. Remedy: leave biases in float, QuantizeBias=False: .* "
                    r"It says: Invalid Node - bias_node ITensor::getDimensions: Error Code 4"
                ),
            ),
            (
                lambda: files.integer_operator("QLinearConv"),
                r"features_node: there is no operator QLinearConv \(refused\)\. Remedy: integers are written as pairs",
            ),
            (
                lambda: files.convolution(np.float16),
                r"logits_node: Conv of FLOAT and FLOAT16 \(refused\)\. Remedy: convert the whole file, with casts",
            ),
            (
                lambda: files.quantized(zero_point=np.uint8(0)),
                r"TensorRT takes bad\.onnx for something else than it is\. integers_node: uint8 is read as int8",
            ),
            (
                lambda: files.convolution(np.float64, taken=TensorProto.DOUBLE, given=TensorProto.DOUBLE),
                r"TensorRT takes bad\.onnx for something else than it is\. weights: 3 tensors are float64",
            ),
            (
                lambda: files.convolution(np.float16, taken=TensorProto.FLOAT16, given=TensorProto.FLOAT16),
                r"images of bad\.onnx is HALF; keep input and output in float32 and convert inside",
            ),
            (
                lambda: files.classifier(batch=4),
                (
                    r"the ONNX file takes batches of 4 only, the profile is \(1, 2, 4\); export it with a dynamic "
                    r"batch, or give profile=\(4, 4, 4\)"
                ),
            ),
            (
                files.two_outputs,
                r"bad\.onnx has 1 inputs and 2 outputs; give an ONNX model with one of each: images and logits",
            ),
            (
                files.any_size,
                r"images has shape \[-1, 3, -1, 8\]; export with a fixed size of images, any batch",
            ),
            (
                lambda: files.model(
                    [files.node("NonZero", ["images"], ["places"]), files.node("Relu", ["images"], ["logits"])],
                    shape=files.IMAGE,
                ),
                r"NonZero places_node: is it a whole ONNX model, of standard operators\? It says: Assertion failed",
            ),
        ],
    )
    def test_a_file_that_cannot_be_taken_is_refused_in_words(self, tmp_path, target, make, words):
        """The node, the remedy, and TensorRT's own line; where it says nothing, we do."""
        source = saved(make(), tmp_path / "bad.onnx")

        with pytest.raises(ValueError, match=words):
            build_engine(source, target, profile=BATCHES)
        assert not target.exists()

    def test_a_builder_that_gives_up_is_an_error(self, tmp_path, target):
        """It returns None; the reader gets its words: here a shape that goes with one batch only."""
        reshape = files.node("Reshape", ["images", "shape"], ["logits"])
        source = saved(files.model([reshape], [files.tensor("shape", [3, 192])], shape=(192,)), tmp_path / "fixed.onnx")

        with pytest.raises(
            RuntimeError, match=r"TensorRT gave up on fixed\.onnx; .* export again if it speaks of shapes"
        ):
            build_engine(source, target, profile=BATCHES)

    def test_a_truncated_file_is_refused(self, source, target):
        """Half a file is no model."""
        source.write_bytes(source.read_bytes()[:200])

        with pytest.raises(ValueError, match=r"model\.onnx is no ONNX model, or is truncated"):
            build_engine(source, target)


class TestMissingPackages:
    def test_rtx_stands_in_for_tensorrt(self, monkeypatch):
        """The same names; which of the two it is stands in the manifest."""
        hide(monkeypatch, "tensorrt")

        assert import_tensorrt().__name__ == "tensorrt_rtx"

    def test_without_either_the_extras_are_named(self, monkeypatch):
        """One for GPUs in servers, one that builds anywhere."""
        hide(monkeypatch, "tensorrt", "tensorrt_rtx")

        with pytest.raises(ImportError, match=r"pip install 'deploykit\[gpu\]' .* or 'deploykit\[rtx\]'"):
            import_tensorrt()

    def test_without_pycuda_the_extra_is_named(self, monkeypatch):
        """Without a driver the same error comes, so the cause is in it."""
        hide(monkeypatch, "pycuda")

        with pytest.raises(
            ImportError, match=r"PyCUDA is missing, or finds no CUDA driver: pip install 'deploykit\[gpu\]'"
        ):
            import_pycuda()

    def test_without_onnx_the_extra_is_named(self, source, target, monkeypatch):
        """The file is looked at before TensorRT sees it."""
        hide(monkeypatch, "onnx")

        with pytest.raises(ImportError, match=r"onnx is missing: pip install 'deploykit\[onnx\]'"):
            build_engine(source, target)


class TestTimingCache:
    def test_rtx_has_none_and_says_so(self, source, target, tmp_path):
        """It measures nothing while it builds; the file is not made."""
        with pytest.warns(UserWarning, match=r"TensorRT-RTX keeps no timing cache; .*times\.cache is ignored"):
            build_engine(source, target, profile=BATCHES, timing_cache=tmp_path / "times.cache")

        assert not (tmp_path / "times.cache").exists()

    def test_nothing_is_said_without_one(self, source, target):
        """A plain build is silent."""
        with warnings.catch_warnings(action="error"):
            build_engine(source, target, profile=BATCHES)

    def test_times_are_kept_and_used_again(self, tmp_path):
        """In TensorRT: what one build measured is given to the next."""
        path, first, second = tmp_path / "times.cache", Config(), Config()
        use_timing_cache(first, path)
        first.set_timing_cache(first.create_timing_cache(b"conv: 12 us"), False)  # noqa: FBT003 - as TensorRT has it
        keep_timing_cache(first, path)
        use_timing_cache(second, path)

        assert second.get_timing_cache().serialize() == b"conv: 12 us"

    def test_times_of_another_gpu_are_left_aside(self, tmp_path):
        """set_timing_cache answers False; the build begins with an empty one."""
        path, config = tmp_path / "times.cache", Config()
        path.write_bytes(b"of another GPU")
        use_timing_cache(config, path)

        assert config.get_timing_cache().serialize() == b""


class TestLogger:
    def test_there_is_one_in_a_process(self):
        """TensorRT would ignore a second one while something made with the first is alive."""
        trt = import_tensorrt()

        assert tensorrt_library.logger(trt) is tensorrt_library.logger(trt)

    def test_it_keeps_warnings_and_errors(self):
        """Less than that is not worth keeping, and line breaks are gone."""
        trt = import_tensorrt()
        log = tensorrt_library.logger(trt)
        log.lines.clear()
        log.log(trt.ILogger.INFO, "hello")
        log.log(trt.ILogger.ERROR, "two\n lines")

        assert log.lines == ["two lines"]

    def test_a_build_begins_with_an_empty_log(self, source, target):
        """What was said of another file is no reason for anything here."""
        log = tensorrt_library.logger(import_tensorrt())
        log.lines.append("of yesterday")
        build_engine(source, target, profile=BATCHES)

        assert "of yesterday" not in log.lines


class TestManifest:
    def test_hashes_of_parts_are_not_those_of_their_join(self):
        """A byte that moved from one file to the next is a change."""
        assert sha256(b"ab", b"c") != sha256(b"a", b"bc")

    def test_it_is_readable_json(self, source, target):
        """Whoever looks at an engine can read what it is."""
        build_engine(source, target, profile=BATCHES)
        stored = json.loads(target.with_name("model.plan.json").read_text())

        assert stored["profile"] == list(BATCHES)
        assert set(stored) == {field.name for field in dataclasses.fields(Manifest)}

    def test_what_was_recorded_is_known(self, tmp_path):
        """Only exactly these bytes."""
        record_built_here(b"a plan")

        assert is_built_here(b"a plan", tmp_path)
        assert not is_built_here(b"a plam", tmp_path)


def flip(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
