"""The runtimes: one vocabulary, the model's logits from each, and the same answer to bad input."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_residual import SmallResidual, images
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from deploykit.export import export_onnx
from deploykit.runtimes import inductor, onnxruntime, openvino
from deploykit.runtimes.files import complete_or_absent

RUNTIMES = {"onnxruntime": (onnxruntime, ".onnx"), "openvino": (openvino, ".xml"), "inductor": (inductor, ".pt2")}
SIZES = (1, 3, 64)
IN_A_FRESH_PROCESS = """
import importlib, sys, torch
runtime = importlib.import_module(f"deploykit.runtimes.{sys.argv[1]}")
torch.save(runtime.load(sys.argv[2])(torch.load(sys.argv[3])), sys.argv[4])
"""


@dataclass
class Saved:
    """A model in the form of a runtime, and what it was saved as."""

    runtime: ModuleType
    name: str
    model: Any
    path: Path
    predict: Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small residual network in evaluation mode."""
    torch.manual_seed(0)
    return SmallResidual().eval()


@pytest.fixture(scope="module")
def exported(model) -> Any:
    """It as ONNX."""
    return export_onnx(model, images(2))


@pytest.fixture(scope="module", params=RUNTIMES)
def saved(request, model, exported, tmp_path_factory) -> Saved:
    """It saved for each runtime, and loaded from the file."""
    runtime, suffix = RUNTIMES[request.param]
    path = tmp_path_factory.mktemp(request.param) / f"model{suffix}"
    form, options = exported, {}
    if runtime is openvino:
        form = openvino.import_openvino().convert_model(io.BytesIO(exported.SerializeToString()))
    if runtime is inductor:
        form, options = model, {"images": images(2)}
    assert runtime.save(form, path, **options) == path
    return Saved(runtime, request.param, form, path, runtime.load(path))


class TestPredictors:
    def test_the_logits_are_the_models_for_any_batch_size(self, saved, model):
        """One artifact serves batches of 1, 3 and 64; the logits differ by rounding only."""
        for size in SIZES:
            batch = images(size, seed=size)

            assert_close(saved.predict(batch), model(batch).detach(), rtol=1e-4, atol=1e-4)

    def test_images_may_lie_in_memory_in_any_way(self, saved, model):
        """channels_last, a slice, or images that record gradients."""
        batch = images(8).to(memory_format=torch.channels_last)[::2].requires_grad_()
        logits = saved.predict(batch)

        assert_close(logits, model(batch).detach(), rtol=1e-4, atol=1e-4)
        assert not logits.requires_grad

    def test_the_logits_are_a_copy(self, saved):
        """A later call, of the same size, does not overwrite what an earlier one returned."""
        first = saved.predict(images(3))
        kept = first.clone()
        saved.predict(images(3, seed=9))

        assert torch.equal(first, kept)

    def test_a_fresh_process_gives_the_same_logits(self, saved, tmp_path):
        """What is in the file is all that is needed."""
        torch.save(images(3), tmp_path / "images")
        arguments = [saved.name, str(saved.path), str(tmp_path / "images"), str(tmp_path / "logits")]
        subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments], check=True, timeout=300)

        assert_close(torch.load(tmp_path / "logits"), saved.predict(images(3)), rtol=0, atol=1e-6)

    def test_the_model_itself_may_be_given(self, exported, model):
        """Without a file in between; here in the two runtimes that need no compiler for it."""
        converted = openvino.import_openvino().convert_model(io.BytesIO(exported.SerializeToString()))
        for predict in (onnxruntime.load(exported), openvino.load(converted)):
            assert_close(predict(images(3)), model(images(3)).detach(), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (images(2).double(), "was given images of float64 on cpu; give float32 on cpu"),
            (images(2)[0], r"was given images of shape \[3, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
            (images(2)[:, :1], r"was given images of shape \[2, 1, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
            (images(2)[:0], r"was given images of shape \[0, 3, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
        ],
    )
    def test_other_images_are_refused(self, saved, bad, message):
        """Dtype and shape are checked before the runtime sees them: one would take them in silence."""
        with pytest.raises(ValueError, match=message):
            saved.predict(bad)

    def test_an_array_is_refused(self, saved):
        """What is no tensor is named."""
        with pytest.raises(TypeError, match="was given ndarray; give a torch tensor"):
            saved.predict(images(2).numpy())


class TestFiles:
    def test_a_truncated_file_is_refused(self, saved, tmp_path):
        """Half a file is no model, and the error says which file."""
        half = tmp_path / f"half{saved.path.suffix}"
        half.write_bytes(saved.path.read_bytes()[: saved.path.stat().st_size // 2])
        trust = {"trust": True} if saved.runtime is inductor else {}

        with pytest.raises(ValueError, match=r"cannot load .*half\.\w+; is it whole"):
            saved.runtime.load(half, **trust)

    def test_a_missing_file_is_said(self, saved, tmp_path):
        """In the same words everywhere."""
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing; save\(\) writes one"):
            saved.runtime.load(tmp_path / "nothing")

    def test_another_ending_is_refused(self, saved, tmp_path):
        """Runtimes know a file by its ending; nothing is left behind."""
        options = {"images": images(2)} if saved.runtime is inductor else {}

        with pytest.raises(ValueError, match=rf"model\.bin must end in \{saved.path.suffix}"):
            saved.runtime.save(saved.model, tmp_path / "model.bin", **options)
        assert not list(tmp_path.iterdir())

    def test_another_kind_of_model_is_refused(self, saved, tmp_path):
        """The error names the kind that is needed."""
        options = {"images": images(2)} if saved.runtime is inductor else {}

        with pytest.raises(TypeError, match=r"saves an? [\w.]+, not str"):
            saved.runtime.save("model", tmp_path / f"model{saved.path.suffix}", **options)

    def test_no_machine_path_is_in_an_artifact(self, saved):
        """Neither this checkout nor a source file is named; a .pt2 is machine code and stays where it was made."""
        if saved.runtime is inductor:
            pytest.skip("a package is not for sending")
        for file in saved.path.parent.iterdir():
            content = file.read_bytes()
            assert str(Path.cwd()).encode() not in content
            assert b".py" not in content

    def test_a_failing_write_leaves_the_old_file(self, tmp_path):
        """A file is complete or absent: an error on the way changes nothing and leaves nothing."""
        path = tmp_path / "model.onnx"
        path.write_text("old")
        with pytest.raises(FileNotFoundError), complete_or_absent(path, ".onnx") as partial:
            partial.rename(tmp_path / "none" / "model.onnx")

        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
        assert path.read_text() == "old"


class TestThreads:
    @pytest.mark.parametrize("runtime", [onnxruntime, openvino, inductor])
    def test_none_is_refused(self, runtime):
        """Zero threads would mean something else in each runtime."""
        with pytest.raises(ValueError, match="threads is 0; give at least 1, or None for as many as torch uses"):
            runtime.load("model", threads=0)

    def test_torchs_number_is_the_default(self, saved):
        """A comparison is fair unless told otherwise."""
        assert saved.predict.threads == torch.get_num_threads()

    def test_machine_code_has_that_of_its_build(self):
        """Inductor cannot be told another number afterwards, and says what to do."""
        threads = torch.get_num_threads() + 1
        with pytest.raises(ValueError, match=rf"torch\.set_num_threads\({threads}\) before save and load"):
            inductor.load("model.pt2", threads=threads)


class TestKernels:
    def test_a_float_model_computes_in_float(self, saved):
        """The census finds three convolutions in float32 and no integer."""
        census = saved.runtime.kernels(saved.predict, images(4))
        convolutions = census[census["operator"].str.contains("conv", case=False)]

        assert list(census.columns) == ["operator", "precision", "count", "share_of_time"]
        assert convolutions["count"].sum() == 3
        assert set(convolutions["precision"]) == {"float32"}
        assert not {"int8", "uint8"} & set(census["precision"])

    def test_shares_add_up(self, saved):
        """Times are shares of the whole, where the runtime tells them."""
        shares = saved.runtime.kernels(saved.predict, images(4))["share_of_time"].dropna()

        assert shares.empty or shares.sum() == pytest.approx(1)


class TestGraphOptimization:
    @pytest.mark.parametrize("optimization", ["none", "basic", "extended", "all"])
    def test_the_logits_stay(self, exported, model, optimization):
        """Whatever is fused, folded or laid out anew, the answers differ by rounding."""
        predict = onnxruntime.load(exported, optimization=optimization)

        assert_close(predict(images(5)), model(images(5)).detach(), rtol=1e-4, atol=1e-4)

    def test_fused_operators_are_in_the_graph_that_runs(self, exported):
        """Not optimized, every ReLU is a node; extended, the two after a convolution alone are part of it."""
        plain, fused = (onnxruntime.optimized(exported, level) for level in ("none", "extended"))

        assert [node.op_type for node in plain.graph.node].count("Relu") == 3
        assert [node.op_type for node in fused.graph.node].count("FusedConv") == 2
        assert [node.op_type for node in fused.graph.node].count("Relu") == 1

    def test_the_census_is_of_the_graph_that_was_loaded(self, exported):
        """Loaded without fusion, the three ReLUs are kernels of their own."""
        census = onnxruntime.kernels(onnxruntime.load(exported, optimization="none"), images(4))

        assert census.set_index("operator").loc["Relu", "count"] == 3

    def test_traffic_is_what_the_shapes_say(self, exported):
        """Reference: the bytes of each operator of the unfused graph by hand, for a batch of 16."""
        whole, pooled, weights = 16 * 8 * 64, 16 * 8 * 16, 224 + 584 + 584
        images_in = 16 * 3 * 64
        convs = images_in + whole + 2 * (whole + whole)
        rest = 3 * (whole + whole) + 3 * whole  # three ReLUs; the addition reads two and writes one
        end = (whole + pooled) + (pooled + 16 * 8) + (16 * 8 + 16 * 4)  # pool, mean, classifier
        by_hand = 4 * (convs + weights + rest + end + 36) / 2**20

        found = onnxruntime.memory_traffic(exported, images(16), optimization="none")
        assert found == pytest.approx(by_hand, rel=0.002)  # the axes of the mean are a few bytes more

    def test_a_fused_relu_moves_nothing(self, exported):
        """Two of them are part of a convolution: each need not read and write its tensor of 16 x 8 x 8 x 8 floats."""
        plain, fused = (onnxruntime.memory_traffic(exported, images(16), optimization=o) for o in ("none", "extended"))

        assert plain - fused == pytest.approx(2 * 2 * 4 * 16 * 8 * 64 / 2**20)

    def test_an_unknown_level(self, exported):
        """Those there are are listed."""
        with pytest.raises(ValueError, match="optimization is 'max'; choose one of 'none', 'basic', 'extended', 'all'"):
            onnxruntime.load(exported, optimization="max")


class TestOpenVINO:
    def test_float32_is_the_default(self, exported, model, tmp_path):
        """By itself it takes bf16 where the processor can: asked for bf16, the logits differ far above rounding."""
        path = onnxruntime.save(exported, tmp_path / "model.onnx")
        exact = model(images(16)).detach()
        errors = {p: float((openvino.load(path, precision=p)(images(16)) - exact).abs().max()) for p in ("f32", "bf16")}

        assert errors["f32"] < 1e-4
        if "avx512_bf16" not in cpu_flags():
            pytest.skip("this processor has no AVX512-BF16: OpenVINO computes in float32 whatever the hint")
        assert errors["bf16"] > 10 * errors["f32"]

    def test_weights_are_saved_as_they_are(self, exported, tmp_path):
        """The .bin has four bytes a weight: save_model alone would halve them."""
        converted = openvino.import_openvino().convert_model(io.BytesIO(exported.SerializeToString()))
        openvino.save(converted, tmp_path / "model.xml")

        assert (tmp_path / "model.bin").stat().st_size >= 4 * (216 + 576 + 576 + 32)


class TestTelemetry:
    @pytest.mark.parametrize(
        "use",
        ["from runtimes.openvino import import_openvino as use", "from quantization.openvino import _packages as use"],
    )
    def test_a_copied_folder_contacts_nobody(self, use, network_log, tmp_path, monkeypatch):
        """OpenVINO and NNCF report their import by default; not where the recipe imports them, deploykit or not."""
        monkeypatch.delenv("CI", raising=False)  # it switches the reports off by itself
        monkeypatch.delenv("DEPLOYKIT_TELEMETRY", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))  # a home may hold a refusal
        folder = use.split(".")[0].removeprefix("from ")
        shutil.copytree(Path(openvino.__file__).parents[1] / folder, tmp_path / folder)
        program = f"import sys, time; sys.modules['deploykit'] = None\n{use}\nuse()\ntime.sleep(1)"
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)

        assert network_log.read_text() == ""


class TestInductor:
    def test_training_mode_is_refused(self, tmp_path):
        """Batch norm would be compiled with the statistics of a batch."""
        with pytest.raises(ValueError, match=r"SmallResidual is in training mode; call \.eval\(\) before save"):
            inductor.save(SmallResidual(), tmp_path / "model.pt2", images=images(2))

    def test_a_package_from_elsewhere_is_refused(self, saved, tmp_path):
        """One changed byte makes it another file than the one that was built here; trust=True is the reader's word."""
        if saved.runtime is not inductor:
            pytest.skip("only packages of Inductor are programs")
        other = tmp_path / "other.pt2"
        other.write_bytes(saved.path.read_bytes() + b"\0")

        with pytest.raises(ValueError, match=r"other\.pt2 was not built on this machine, or was changed since"):
            inductor.load(other)

    def test_the_list_of_hashes_is_the_readers_alone(self, saved):
        """Others may not write it, and one that others can write is not believed."""
        if saved.runtime is not inductor:
            pytest.skip("only packages of Inductor are programs")
        manifest = Path(os.environ["DEPLOYKIT_CACHE"]) / "built-here.sha256"

        assert stat.S_IMODE(manifest.stat().st_mode) == 0o600
        manifest.chmod(0o666)
        with pytest.raises(ValueError, match="was not built on this machine"):
            inductor.load(saved.path)
        manifest.chmod(0o600)

    def test_a_batch_beyond_the_largest_is_refused(self, saved):
        """Machine code has the range that it was compiled for."""
        if saved.runtime is not inductor:
            pytest.skip("the others know no largest batch")

        with pytest.raises(ValueError, match=r"give \[N, 3, 8, 8\], a batch of at most 1024"):
            saved.predict(images(1025))


def cpu_flags() -> str:
    """Read what the processor can do, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
