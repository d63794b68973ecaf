"""Running an engine, on stand-ins for the GPU that compute with ONNX Runtime: copies, buffers, errors, and the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tensorrt_files as files
import tensorrt_standin as standin
import torch
from torch import Tensor
from torch.testing import assert_close

from deploykit.runtimes import tensorrt
from deploykit.runtimes.built_here import record_built_here
from deploykit.runtimes.tensorrt_manifest import Manifest, sha256

PROFILE = (2, 4, 8)
GPU = ("NVIDIA L4", (8, 9))


@pytest.fixture
def gpu(monkeypatch) -> standin.Gpu:
    """A GPU with TensorRT, PyCUDA and torch's side, none of them real."""
    gpu = standin.Gpu()
    driver = standin.Driver(gpu)
    use_library(monkeypatch, standin.Library(gpu))
    monkeypatch.setattr(tensorrt, "import_pycuda", lambda: driver)
    answers = {"is_available": True, "init": None, "current_device": 0}
    answers |= {"get_device_name": GPU[0], "get_device_capability": GPU[1]}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", standin.Graph)
    monkeypatch.setattr(torch.cuda, "graph", standin.recording)
    monkeypatch.setattr(torch.cuda, "stream", standin.on_stream)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: gpu.streams[handle])
    return gpu


@pytest.fixture
def plan(tmp_path) -> Path:
    """An engine that was built here for this GPU: to the stand-in, an ONNX file."""
    return write_plan(tmp_path / "model.plan", files.classifier().SerializeToString())


def use_library(monkeypatch: pytest.MonkeyPatch, library: standin.Library) -> None:
    """Let the recipe import this one."""
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: library)


def write_plan(path: Path, content: bytes) -> Path:
    """Write a plan as build_engine would, its manifest beside it."""
    path.write_bytes(content)
    manifest = Manifest(sha256(content), "tensorrt", "11.4.0", "NVIDIA L4", "8.9", PROFILE, 1.0, sha256(content))
    manifest.write(path)
    record_built_here(content)
    return path


def images(number: int, *, seed: int = 0) -> Tensor:
    """Draw images, float32 [number, 3, 8, 8]."""
    return torch.randn(number, *files.IMAGE, generator=torch.Generator().manual_seed(seed))


def expected(batch: Tensor) -> Tensor:
    """Return the logits of the model, by ONNX Runtime on its own."""
    session = onnxruntime.InferenceSession(files.classifier().SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": batch.contiguous().detach().numpy()})[0])


class TestLogits:
    @pytest.mark.parametrize("size", [2, 3, 8])
    def test_they_are_the_models(self, gpu, plan, size):
        """For each size of batch in the profile."""
        with tensorrt.load(plan) as predict:
            assert_close(predict(images(size)), expected(images(size)))

    def test_they_are_a_copy(self, gpu, plan):
        """A later call, in the same buffers, does not overwrite what an earlier one returned."""
        with tensorrt.load(plan) as predict:
            first = predict(images(3))
            kept = first.clone()
            predict(images(3, seed=1))

        assert torch.equal(first, kept)

    def test_images_may_lie_in_memory_in_any_way(self, gpu, plan):
        """channels_last, a slice, or images that record gradients."""
        batch = images(8).to(memory_format=torch.channels_last)[::2].requires_grad_()
        with tensorrt.load(plan) as predict:
            logits = predict(batch)

        assert_close(logits, expected(batch))
        assert not logits.requires_grad

    def test_a_smaller_batch_after_a_larger_one(self, gpu, plan):
        """What is left of the larger one in the buffers does not show."""
        with tensorrt.load(plan) as predict:
            predict(images(8))
            assert_close(predict(images(3, seed=2)), expected(images(3, seed=2)))


class TestBuffers:
    def test_they_are_used_again(self, gpu, plan):
        """Two for a network with one input and one output, however many calls."""
        with tensorrt.load(plan) as predict:
            for size in (8, 4, 8, 2):
                predict(images(size))

        assert gpu.allocations == 2

    def test_they_grow_for_a_larger_batch(self, gpu, plan):
        """The smaller ones are given back: there are never more than two."""
        with tensorrt.load(plan) as predict:
            for size in (2, 4, 8):
                predict(images(size))
                assert len(gpu.memory) == gpu.pinned == 2
            assert {values.size for values in gpu.memory.values()} == {8 * 3 * 8 * 8, 8 * 4}

    def test_nothing_is_left_at_the_end(self, gpu, plan):
        """Neither memory, nor a hold on the context, nor the context on the stack."""
        with tensorrt.load(plan) as predict:
            predict(images(4))
            assert gpu.retained == 1
            assert gpu.context == []

        assert (gpu.memory, gpu.pinned, gpu.context, gpu.retained) == ({}, 0, [], 0)

    def test_nothing_is_left_after_an_error(self, gpu, plan):
        """Also when an exception ends the block."""
        with pytest.raises(ZeroDivisionError), tensorrt.load(plan) as predict:  # noqa: PT012 - the block is what ends
            predict(images(4))
            raise ZeroDivisionError

        assert (gpu.memory, gpu.pinned, gpu.context, gpu.retained) == ({}, 0, [], 0)

    def test_closing_twice_is_allowed_and_calling_afterwards_is_not(self, gpu, plan):
        """The memory is somebody else's by then."""
        predict = tensorrt.load(plan)
        predict.close()
        predict.close()

        with pytest.raises(RuntimeError, match=r"the predictor of .*model\.plan is closed; load it again"):
            predict(images(4))


class TestCudaGraph:
    def test_the_second_call_replays_the_first(self, gpu, plan):
        """One ordinary call, one that is recorded, and no more work for the processor after that."""
        with tensorrt.load(plan, cuda_graph=True) as predict:
            for seed in range(3):
                assert_close(predict(images(4, seed=seed)), expected(images(4, seed=seed)))

        assert gpu.log.count("execute") == 2
        assert gpu.log.count("replay") == 2

    def test_another_batch_is_recorded_anew(self, gpu, plan):
        """Shapes and addresses are frozen in a recording."""
        with tensorrt.load(plan, cuda_graph=True) as predict:
            for size in (2, 4, 4, 2, 2):
                assert_close(predict(images(size, seed=size)), expected(images(size, seed=size)))

        assert gpu.log.count("replay") == 2
        assert gpu.log.count("reset") == 3, "each recording is given back"


class TestBadInput:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (images(2).double(), "TensorRT was given images of float64 on cpu; give float32 on cpu"),
            (images(2)[0], r"was given images of shape \[3, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
            (images(2)[:, :1], r"was given images of shape \[2, 1, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
            (images(2)[:0], r"was given images of shape \[0, 3, 8, 8\]; give \[N, 3, 8, 8\], a batch"),
        ],
    )
    def test_other_images_are_refused(self, gpu, plan, bad, message):
        """In the words of the other runtimes, before anything is copied."""
        with tensorrt.load(plan) as predict, pytest.raises(ValueError, match=message):
            predict(bad)
        assert gpu.allocations == 0

    @pytest.mark.parametrize("size", [1, 9])
    def test_a_batch_outside_the_profile_is_refused(self, gpu, plan, size):
        """Smaller than the smallest or larger than the largest; the profile is in the message."""
        with (
            tensorrt.load(plan) as predict,
            pytest.raises(
                ValueError,
                match=rf"TensorRT was given a batch of {size}; the profile of this engine is \(2, 4, 8\): give batches "
                r"of 2 to 8, or build it again with another profile",
            ),
        ):
            predict(images(size))
        assert gpu.allocations == 0

    def test_an_array_is_refused(self, gpu, plan):
        """What is no tensor is named."""
        with tensorrt.load(plan) as predict, pytest.raises(TypeError, match="TensorRT was given ndarray; give a torch"):
            predict(images(2).numpy())


class TestFailures:
    @pytest.mark.parametrize(
        ("sign", "message"),
        [
            ("refuse shape", r"TensorRT refuses images of shape \[2, 3, 8, 8\]\. It says: nothing"),
            ("no shapes", "TensorRT cannot tell shapes without images"),
            ("refuse work", "TensorRT refuses to compute this batch. It says: nothing"),
        ],
    )
    def test_where_tensorrt_answers_with_false_there_is_an_error(self, gpu, plan, sign, message):
        """It raises nothing; and what was allocated is given back."""
        with pytest.raises(RuntimeError, match=message), tensorrt.load(plan) as predict:  # noqa: PT012
            gpu.log.append(sign)
            predict(images(2))

        assert (gpu.memory, gpu.pinned, gpu.context, gpu.retained) == ({}, 0, [], 0)
        assert not any(stream.waiting for stream in gpu.streams.values()), "freed while a copy was under way"

    def test_no_room_for_a_batch(self, gpu, plan):
        """The message says how much was wanted; a smaller batch goes on."""
        with tensorrt.load(plan) as predict:
            gpu.room = 4000
            with pytest.raises(MemoryError, match=r"no room on the GPU for 6,144 bytes; give smaller batches"):
                predict(images(8))
            assert_close(predict(images(2)), expected(images(2)))

    def test_no_room_for_the_engine(self, gpu, plan):
        """TensorRT answers with None; nothing is kept."""
        gpu.log.append("no room for a context")

        with pytest.raises(
            MemoryError, match=r"no room on the GPU to run .*model\.plan, which takes 123,456"
        ) as refused:
            tensorrt.load(plan)
        assert (gpu.context, gpu.retained) == ([], 0), refused  # also while somebody still looks at the error

    def test_a_plan_that_cannot_be_read(self, gpu, tmp_path):
        """TensorRT answers with None; the reader gets its words."""
        path = write_plan(tmp_path / "model.plan", b"no plan at all")

        with pytest.raises(RuntimeError, match=r"cannot load .*model\.plan\. It says: Serialization assertion failed"):
            tensorrt.load(path)
        assert (gpu.context, gpu.retained) == ([], 0)


class TestOrigin:
    def test_a_flipped_byte_is_never_loaded(self, gpu, plan):
        """A plan is a program; TensorRT does not see this one."""
        content = bytearray(plan.read_bytes())
        content[-1] ^= 1
        plan.write_bytes(content)

        with pytest.raises(ValueError, match=r"model\.plan is not what build_engine wrote here, or was changed since"):
            tensorrt.load(plan)
        assert "deserialize" not in gpu.log

    def test_a_manifest_that_agrees_with_it_does_not_help(self, gpu, plan):
        """What counts is the list of hashes in the reader's cache folder."""
        plan.write_bytes(plan.read_bytes() + b"\0")
        dataclasses.replace(Manifest.read(plan), plan_sha256=sha256(plan.read_bytes())).write(plan)

        with pytest.raises(ValueError, match="is not what build_engine wrote here"):
            tensorrt.load(plan)
        assert "deserialize" not in gpu.log

    def test_without_its_manifest_it_is_refused(self, gpu, plan):
        """Nobody knows then what it was built for."""
        plan.with_name("model.plan.json").unlink()

        with pytest.raises(
            ValueError, match=r"has no manifest beside it .* \(model\.plan\.json\); build_engine writes"
        ):
            tensorrt.load(plan)

    @pytest.mark.parametrize(
        ("library", "message"),
        [
            (
                ("tensorrt", "10.16.1"),
                r"was built by tensorrt 11\.4\.0, and here is tensorrt 10\.16\.1: an engine fits",
            ),
            (("tensorrt_rtx", "11.4.0"), r"was built by tensorrt 11\.4\.0, and here is tensorrt_rtx 11\.4\.0"),
        ],
    )
    def test_an_engine_of_another_version_is_refused(self, gpu, plan, monkeypatch, library, message):
        """The manifest says by which it was built."""
        use_library(monkeypatch, standin.Library(gpu, *library))

        with pytest.raises(ValueError, match=message):
            tensorrt.load(plan)

    def test_an_engine_of_another_gpu_is_refused(self, gpu, plan, monkeypatch):
        """Its kernels were chosen for that one."""
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))

        with pytest.raises(
            ValueError, match=r"was built for NVIDIA L4 \(compute capability 8\.9\), and here is NVIDIA L4 \(9\.0\)"
        ):
            tensorrt.load(plan)

    def test_an_engine_of_rtx_fits_any_gpu(self, gpu, plan, monkeypatch):
        """It is compiled for a GPU where it runs first."""
        use_library(monkeypatch, standin.Library(gpu, "tensorrt_rtx", "1.7.1"))
        of_rtx = {"library": "tensorrt_rtx", "version": "1.7.1", "gpu": None, "compute_capability": None}
        dataclasses.replace(Manifest.read(plan), **of_rtx).write(plan)

        with tensorrt.load(plan) as predict:
            assert_close(predict(images(2)), expected(images(2)))

    def test_an_engine_of_another_model_is_refused(self, gpu, plan, tmp_path):
        """For whoever says which model it should be."""
        (tmp_path / "model.onnx").write_bytes(files.classifier().SerializeToString())
        (tmp_path / "other.onnx").write_bytes(files.convolution().SerializeToString())
        tensorrt.load(plan, onnx_path=tmp_path / "model.onnx").close()

        with pytest.raises(ValueError, match=r"model\.plan was built from another model than .*other\.onnx"):
            tensorrt.load(plan, onnx_path=tmp_path / "other.onnx")

    def test_a_missing_plan_is_said(self, gpu, tmp_path):
        """In the words of the other runtimes."""
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.plan"):
            tensorrt.load(tmp_path / "nothing.plan")

    def test_without_a_gpu_there_is_a_way_out(self, gpu, plan, monkeypatch):
        """The message says what to look at, and what runs anywhere."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

        with pytest.raises(RuntimeError, match=r"there is no CUDA device: torch .* ONNX Runtime runs the ONNX file"):
            tensorrt.load(plan)


class TestStandIn:
    @pytest.mark.parametrize("name", ["num_bindings", "get_binding_index", "device_memory_size"])
    def test_a_name_that_is_gone_fails(self, gpu, name):
        """A recipe that used it would fail here as it would there."""
        session = onnxruntime.InferenceSession(files.classifier().SerializeToString())
        engine: Any = standin.Engine(gpu, session, standin.enumeration("TensorIOMode"))

        with pytest.raises(AttributeError, match=f"ICudaEngine of TensorRT 10 or 11 has no {name}"):
            getattr(engine, name)

    def test_nothing_is_computed_before_the_stream_is_waited_for(self, gpu):
        """Who reads too early reads NaN, as memory of a GPU may hold anything."""
        driver, context = standin.Driver(gpu), standin.Context(gpu)
        context.push()
        stream, host, device = driver.Stream(), driver.pagelocked_empty(1, np.float32), driver.mem_alloc(4)
        host[...] = 1
        driver.memcpy_htod_async(device, host, stream)

        assert gpu.memory[int(device)] != gpu.memory[int(device)]
        stream.synchronize()
        assert gpu.memory[int(device)] == 1
