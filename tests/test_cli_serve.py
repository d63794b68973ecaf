"""`deploykit serve` says where it is when the model is warm, computes what the file says, and ends when told to."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper, save
from pictures import write_folder
from PIL import Image
from typer.testing import CliRunner, Result

from deploykit.cli import app
from deploykit.cli.contract import Status
from deploykit.data import load_dataset
from deploykit.runtimes import openvino
from deploykit.serving.artifacts import artifact_in, open_artifact
from deploykit.serving.child import started
from deploykit.serving.model import served
from deploykit.serving.protocol import decode, encode
from deploykit.untrusted import tried_apart

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "serve.json").read_text(encoding="utf-8"))


def deploykit(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["serve", *map(str, arguments)], catch_exceptions=False)


def write_model(path: Path, *, batch: int | str = "n", classes: int = 2) -> Path:
    """Write a linear model of 32 x 32 images, without what training would take."""
    weights = np.random.default_rng(0).normal(size=(3072, classes)).astype(np.float32)
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [takes], [gives], [numpy_helper.from_array(weights, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of cats and dogs."""
    return write_folder(tmp_path_factory.mktemp("data") / "pets")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model that tells the two apart, badly."""
    return write_model(tmp_path_factory.mktemp("model") / "pet-net.onnx")


class TestRunning:
    def test_it_serves_the_file_until_it_is_told_to_stop(self, model, pets):
        """The document fits its schema, the logits are the file's, the classes the folder's; SIGTERM is status 0."""
        images = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
        body, headers = encode(images)
        picture = io.BytesIO()
        Image.new("RGB", (50, 40), (200, 30, 30)).save(picture, "PNG")
        with started(str(model), "--data", str(pets), "--threads", "1", "--max-batch-size", "4") as service:
            jsonschema.validate(service.facts, SCHEMA, cls=jsonschema.Draft202012Validator)
            connection = http.client.HTTPConnection(service.url.removeprefix("http://"))
            connection.request("POST", f"/v2/models/{service.model}/infer", body, headers)
            answer = connection.getresponse()
            found = decode(answer.read(), {name.lower(): value for name, value in answer.getheaders()})
            connection.request("POST", "/classify", picture.getvalue())
            classified = json.loads(connection.getresponse().read())
            status = service.stop()

        (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": images})
        assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert {entry["class"] for entry in classified["classes"]} == {"cat", "dog"}
        assert (service.model, service.facts["threads"], status) == ("pet-net", 1, Status.DONE)

    def test_ctrl_c_ends_it_in_order(self, model, pets):
        """The address on one line of stdout; then status 130 and one word."""
        command = [sys.executable, "-m", "deploykit.cli", "serve", str(model), "--data", str(pets), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, talk = process.communicate(timeout=60)

        assert line.startswith("pet-net in ONNX Runtime at http://127.0.0.1:")
        assert (process.returncode, rest, talk.splitlines()[-1:]) == (Status.STOPPED, "", ["deploykit: stopped"])

    def test_what_cannot_be_started_is_told_to_who_started_it(self, tmp_path):
        """The command's own words."""
        words = r"the service did not start: deploykit: there is no file .*no.onnx"
        with pytest.raises(ChildProcessError, match=words), started(str(tmp_path / "no.onnx")):
            raise AssertionError("it started")


class TestMistakes:
    def test_a_file_that_is_missing(self, tmp_path):
        """Before data are loaded."""
        done = deploykit(tmp_path / "a.xml", "--port", 0)

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert done.stderr == f"deploykit: there is no file {tmp_path / 'a.xml'}; check the path\n"

    @pytest.mark.parametrize("name", ["net.py:build", "net.py", "net.py:", "net.safetensors"])
    def test_what_is_no_artifact_is_refused_and_not_executed(self, tmp_path, monkeypatch, name):
        """It is said what serve takes."""
        monkeypatch.chdir(tmp_path)
        for file in ("net.py", "net.safetensors"):
            (tmp_path / file).write_text("open('executed', 'w')")
        done = deploykit(name, "--data", "shapes32", "--port", 0)

        assert (done.exit_code, done.stdout, (tmp_path / "executed").exists()) == (Status.USAGE, "", False)
        assert done.stderr.startswith(f"deploykit: {name} is not served; serve takes an ONNX file, an .xml of OpenVINO")

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("resnet21", "no checkpoint 'resnet21-cifar10' in "),
            ("my/resnet8", "there is no checkpoint folder my/resnet8; check the path"),
            ("net.pth", "net.pth is a file of torch.save, and deploykit loads no pickle; weights are read from safete"),
        ],
    )
    def test_a_mistyped_network_is_refused_before_data_are_fetched(self, monkeypatch, name, words):
        """As by the other commands."""
        monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
        monkeypatch.setattr("deploykit.data.load_dataset", lambda *_, **__: pytest.fail("data were loaded"))
        done = deploykit(name, "--port", 0)

        assert (done.exit_code, done.stdout) == (Status.USAGE, "")
        assert words in done.stderr

    def test_a_port_that_is_taken(self, model):
        """Status 3, before the model is opened."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            done = deploykit(model, "--port", port)

        assert done.exit_code == Status.UNABLE
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use; choose another" in done.stderr

    def test_limits_that_make_no_sense(self, model):
        """A queue that does not hold a batch."""
        done = deploykit(model, "--max-batch-size", 8, "--max-queue-size", 4)

        assert done.exit_code == Status.USAGE
        assert "max_queue_size is 4 and max_batch_size is 8; both count images" in done.stderr

    def test_a_model_for_other_images(self, model, pets):
        """The model takes 32 pixels a side, the data are brought to 16."""
        done = deploykit(model, "--data", pets, "--size", 16, "--port", 0)

        assert done.exit_code == Status.USAGE
        assert "the model takes images [3, 32, 32], and pets has [3, 16, 16]; give other data" in done.stderr

    def test_a_file_with_a_fixed_batch(self, tmp_path, pets):
        """The service would make batches of other sizes."""
        done = deploykit(write_model(tmp_path / "m.onnx", batch=8), "--data", pets, "--port", 0)

        assert done.exit_code == Status.USAGE
        assert "m.onnx takes batches of 8 only, and the service makes them of 1 to 16" in done.stderr


class TestArtifacts:
    def test_a_model_of_openvino_computes_the_same(self, tmp_path, model):
        """Its .xml is opened as well, and a folder with one is what `optimize` leaves."""
        path = openvino.save(openvino.import_openvino().convert_model(model), tmp_path / "model.xml")
        images = np.random.default_rng(2).normal(size=(4, 3, 32, 32)).astype(np.float32)
        found = served(open_artifact(path, batch=4), load_dataset("shapes32"), "m").predict(images)
        (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": images})

        assert artifact_in(tmp_path) == path
        assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_text("<net"),
            lambda path: path.with_suffix(".bin").write_bytes(b""),
            lambda path: path.write_bytes(path.read_bytes()[:200]),
        ],
    )
    def test_a_damaged_model_of_openvino_is_refused_before_this_process_opens_it(
        self, tmp_path, model, monkeypatch, damage
    ):
        """What is wrong is told by the child."""
        path = openvino.save(openvino.import_openvino().convert_model(model), tmp_path / "m.xml")
        damage(path)
        monkeypatch.setattr("deploykit.serving.artifacts.openvino.load", lambda *_, **__: pytest.fail("opened here"))
        with pytest.raises(ValueError, match=r"m.xml"):
            open_artifact(path, batch=4)

    def test_one_that_ends_the_process_that_opens_it_is_refused(self, tmp_path, monkeypatch):
        """A parser that crashes crashes in the child; this process tells so."""
        path = tmp_path / "m.xml"
        path.write_text("<net/>")
        monkeypatch.setattr("deploykit.benchmarking.tried_apart", lambda *_, **__: tried_apart(os.abort, [{}]))
        with pytest.raises(ValueError, match=r"m\.xml is not safe to open: it ended the process that tried it"):
            open_artifact(path, batch=4)

    def test_one_that_is_not_there_is_named(self, tmp_path):
        """Before any process is started."""
        with pytest.raises(FileNotFoundError, match=r"there is no file .*m\.xml"):
            open_artifact(tmp_path / "m.xml", batch=4)

    def test_a_folder_without_one_is_something_else(self, tmp_path):
        """A checkpoint, say."""
        assert artifact_in(tmp_path) is None

    def test_another_ending_is_refused(self, tmp_path):
        """A pickle is none of ours."""
        with pytest.raises(ValueError, match=r"m\.pt ends in neither \.onnx nor \.xml"):
            open_artifact(tmp_path / "m.pt", batch=1)
