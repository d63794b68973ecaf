"""The service on Ray Serve: one Ray on this machine for the whole file, two replicas of a model that says its pid."""

from __future__ import annotations

import asyncio
import functools
import importlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from deploykit.load import Request, closed_loop
from deploykit.serving import ray_app, ray_local
from deploykit.serving.answers import RefusedError
from deploykit.serving.app import create_app
from deploykit.serving.model import Served
from deploykit.serving.protocol import decode, encode
from deploykit.serving.ray_actors import Entrance, Replicated
from deploykit.serving.service import Limits

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray's

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (3, 4, 4)
BATCH, QUEUE = 4, 16
START_S = 300.0  # Ray is a dozen processes, and the machine may have other work
ATTEMPTS = 3  # Ray gives itself half a minute, and no option changes that
PROGRAM = f"""
import sys
from deploykit.serving.ray_local import local_ray, run


def load():
    import os, time
    import numpy as np

    def predict(images):  # the first number of an image is how long it takes; below 0 it cannot be computed
        seconds = float(images[:, 0, 0, 0].max())
        if images.min() < 0:
            raise ValueError("a negative number")
        time.sleep(seconds)
        return np.tile(np.float32([os.getpid(), len(images)]), (len(images), 1))

    return predict


with local_ray(cpus=2):
    from deploykit.serving.model import Served
    from deploykit.serving.ray_app import application
    from deploykit.serving.service import Limits

    model = Served("stub", lambda images: images, {SHAPE}, ("pid", "batch"), (0.0,) * 3, (1.0,) * 3)
    limits = Limits(max_batch_size={BATCH}, max_queue_size={QUEUE}, max_queue_delay_us=20000, deadline_ms=20000)
    print(run(application(model, load, limits, replicas=2)), flush=True)
    sys.stdin.read()
"""


class Answer(SimpleNamespace):
    """What came back: ``status``, ``body``, ``headers``; of logits also ``pid`` and ``batch``."""


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """The service, with its ``url``, its ``process``, and the ``log`` of attempts to leave this machine."""
    folder = tmp_path_factory.mktemp("ray")
    log = folder / "network.log"
    log.touch()
    watch = {"DEPLOYKIT_TEST_NETWORK_LOG": str(log), "PYTHONPATH": str(ROOT / "tests" / "no_network")}
    for _ in range(ATTEMPTS):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **watch, "HOME": str(folder)}, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        giving_up = threading.Timer(START_S, process.kill)
        giving_up.start()
        url = process.stdout.readline().strip()
        giving_up.cancel()
        if url:
            break
        process.communicate("")
    assert url, "Ray did not start"
    yield SimpleNamespace(url=url, process=process, log=log, home=folder)
    process.communicate("", timeout=START_S)


@pytest.fixture
def ask(ray):
    """Return a function that sends images whose first number is given, and returns the answer."""

    def asked(first: float = 0.0, shape: tuple[int, ...] = (1, *SHAPE)) -> Answer:
        images = np.zeros(shape, np.float32)
        images[:, 0, 0, 0] = first
        body, headers = encode(images)
        request = urllib.request.Request(f"{ray.url}/v2/models/stub/infer", body, headers)  # noqa: S310 - its own
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                whole, back = answer.read(), {key.lower(): value for key, value in answer.headers.items()}
                pid, batch = decode(whole, back)[0]
                return Answer(status=answer.status, pid=int(pid), batch=int(batch))
        except urllib.error.HTTPError as error:
            return Answer(status=error.code, body=json.loads(error.read()), headers=error.headers)

    return asked


def together(ask, firsts):
    """Ask for all at once."""
    with ThreadPoolExecutor(len(firsts)) as clients:
        return list(clients.map(ask, firsts))


class TestTheSameService:
    def test_both_replicas_compute(self, ask):
        """Requests are spread over two processes."""
        assert len({answer.pid for answer in together(ask, [0.1] * 8)}) == 2

    def test_what_waits_together_is_computed_together(self, ask):
        """Batches fill up to max_batch_size and no further."""
        answers = together(ask, [0.2] * 14)

        assert {answer.status for answer in answers} == {200}
        assert max(answer.batch for answer in answers) == BATCH

    def test_a_wrong_shape_is_refused_in_the_services_words(self, ask):
        """The entrance parses as the single process does."""
        answer = ask(shape=(1, 3, 5, 5))

        assert (answer.status, answer.body) == (400, {"error": f"shape must be [n, 3, 4, 4] with n from 1 to {BATCH}"})

    def test_one_poisonous_request_harms_no_other(self, ask):
        """What fails in a batch is told so; its neighbours get their logits."""
        answers = together(ask, [-1.0, 0.0, 0.0, 0.0])

        assert [answer.status for answer in answers] == [422, 200, 200, 200]
        assert answers[0].body == {"error": "the model cannot compute these images"}

    def test_beyond_the_queue_it_says_when_to_come_back(self, ask):
        """What replicas and queue cannot hold is refused with 503 and Retry-After; what was accepted is answered."""
        answers = together(ask, [0.5] * 60)

        refused = [answer for answer in answers if answer.status != 200]
        assert {answer.status for answer in refused} == {503}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert len(answers) - len(refused) >= 2 * BATCH + QUEUE

    def test_the_entrance_has_every_route(self):
        """Its description and its paths are those of the single process."""
        alone, entrance = create_app(stub(), Limits()), Entrance(None, stub(), Limits()).__serve_build_asgi_app__()

        assert [route.path for route in entrance.routes] == [route.path for route in alone.routes]
        assert entrance.openapi() == alone.openapi()


class TestAReplicaDies:
    def test_no_accepted_request_is_lost(self, ray, ask):
        """A replica is killed in the middle of its batches: each request is answered, by the other one if need be."""
        victim = ask().pid
        body, headers = encode(np.full((1, *SHAPE), 0.02, np.float32))
        request = Request(f"{ray.url}/v2/models/stub/infer", body, headers)
        threading.Timer(2.0, os.kill, (victim, signal.SIGKILL)).start()

        load = closed_loop(request, clients=12, seconds=6.0)

        assert not psutil.pid_exists(victim)
        assert load.counts() == {200: len(load.status)}
        assert load.sent.max() > 4.0  # and it went on

    def test_it_is_replaced(self, ask):
        """Ray starts another one: two processes compute again."""
        end = time.monotonic() + START_S
        while len({answer.pid for answer in together(ask, [0.1] * 8)}) < 2:
            assert time.monotonic() < end
            time.sleep(0.5)


class TestTheSecondTry:
    def test_what_was_accepted_waits_for_room(self):
        """A request whose replica died is not refused because the others are full just then."""
        logits = np.zeros((1, 2), np.float32)

        found = computed_after(errors().ActorDiedError(), full(), full(), logits)

        assert found is logits

    def test_there_is_no_third(self):
        """What kills each replica that computes it is given up."""
        with pytest.raises(RefusedError, match="the replicas of the model are failing") as refused:
            computed_after(errors().ActorDiedError(), errors().ActorUnavailableError("gone", None))
        assert refused.value.status == 503

    def test_a_new_request_does_not_wait(self):
        """One that was not accepted is refused at once."""
        with pytest.raises(RefusedError, match="the queue is full"):
            computed_after(full())


class TestThisMachineOnly:
    def test_nobody_is_contacted(self, ray, ask):
        """Neither to report the use of Ray, nor that it is not reported, nor to find out in which cloud it runs."""
        ask()

        assert ray.log.read_text(encoding="utf-8") == ""

    def test_it_listens_at_the_loopback_address(self, ray, ask):
        """All processes do, with one exception of Serve's: each replica listens to all for calls from others."""
        ask()

        exceptions = [(name, ip) for name, ip, _ in listening(ray.process.pid) if not is_loopback(ip)]
        assert {ip for _, ip in exceptions} <= {"::"}
        assert all(name.startswith("ray::ServeReplica") for name, _ in exceptions)

    def test_calls_from_elsewhere_need_the_token(self, ray, ask):
        """Where a replica listens to all it takes no call without the token, which it would unpickle."""
        ask()
        port = next(port for _, ip, port in listening(ray.process.pid) if ip == "::")

        with grpc.insecure_channel(f"[::1]:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    def test_the_home_stays_empty(self, ray, ask):
        """Ray's token, which it keeps in ~/.ray by itself, is not written there."""
        ask()

        assert [path.name for path in ray.home.iterdir()] == ["network.log"]

    def test_it_refuses_a_ray_that_would_listen_to_the_network(self, monkeypatch):
        """Whether it does is settled when Ray is imported."""
        constants = SimpleNamespace(ENABLE_RAY_CLUSTER=True)
        early = SimpleNamespace(serve=None, _private=SimpleNamespace(ray_constants=constants))
        monkeypatch.setitem(sys.modules, "ray", early)

        with (
            pytest.raises(RuntimeError, match=r"imported before and would listen to the network; enter local_ray\(\)"),
            ray_local.local_ray(),
        ):
            pass
        assert os.environ.get("http_proxy") != ray_local.NOBODY


class TestArguments:
    def test_without_ray_the_extra_is_named(self, monkeypatch):
        """ImportError says what to install."""
        monkeypatch.setitem(sys.modules, "ray", None)

        with pytest.raises(ImportError, match=r"pip install 'deploykit\[serving,scale\]'"):
            ray_app.application(stub(), lambda: None)

    @pytest.mark.parametrize("wrong", [{"replicas": 0}, {"cpus": 0.0}])
    def test_no_replica_and_no_cpu_are_refused(self, wrong):
        """Before Ray is looked at."""
        with pytest.raises(ValueError, match="give at least 1, and more than 0"):
            ray_app.application(stub(), lambda: None, **wrong)

    def test_an_argument_that_is_none_is_refused(self):
        """A misspelt one does not pass silently; text becomes a number."""
        assert ray_app.Arguments.model_validate({"artifact": "m.onnx", "replicas": "3"}).replicas == 3

        with pytest.raises(ValueError, match="replica\n"):
            ray_app.build({"artifact": "m.onnx", "replica": "3"})

    def test_an_artifact_becomes_a_model_that_each_replica_opens(self, monkeypatch, tmp_path):
        """What is handed to Ray opens the file again and computes the same."""
        split = SimpleNamespace(images=np.zeros((1, 4, 4, 3), np.uint8))
        dataset = SimpleNamespace(name="tiny", train=split, classes=("r", "g", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
        monkeypatch.setattr("deploykit.data.load_dataset", lambda _: dataset)
        monkeypatch.setattr(ray_app, "application", lambda *given, **options: (given, options))
        images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)

        (model, load, limits), options = ray_app.build(
            {"artifact": str(channel_means(tmp_path)), "max_batch_size": "2"}
        )

        assert (model.name, model.classes, limits.max_batch_size) == ("means", ("r", "g", "b"), 2)
        assert options == {"replicas": 2, "cpus": 1}
        assert isinstance(load, functools.partial)
        assert load()(images) == pytest.approx(images.mean((2, 3)), abs=1e-6)


def errors():
    """Return Ray's errors."""
    return importlib.import_module("ray.exceptions")


def full():
    """Return what Serve raises when its queue is full."""
    return importlib.import_module("ray.serve.exceptions").BackPressureError(1, 1)


def computed_after(*answers):
    """Return what a service computes whose replicas answer so, one after the other."""
    waiting = iter(answers)

    async def answer(_):
        found = next(waiting)
        if isinstance(found, Exception):
            raise found
        return found

    service = Replicated(stub(), Limits(), SimpleNamespace(remote=answer))
    service.state = "ready"
    return asyncio.run(service.compute(np.zeros((1, *SHAPE), np.float32), None))


def listening(pid):
    """Return name, address and port of every socket that a process below this one listens at."""
    return [
        (process.cmdline()[0], connection.laddr.ip, connection.laddr.port)
        for process in psutil.Process(pid).children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def is_loopback(ip):
    """Say whether only this machine reaches an address; IPv4 may be written as IPv6."""
    return ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback


def stub():
    """Return a model that does nothing."""
    return Served("stub", lambda images: images, SHAPE, ("a",), (0.0,) * 3, (1.0,) * 3)


def channel_means(folder):
    """Write a network whose logits are the means of the channels; return the file."""
    taken = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *SHAPE])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "means", [taken], [given], [axes])
    path = folder / "means.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
