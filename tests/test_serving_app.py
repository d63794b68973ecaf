"""The service computes what the model computes, says what it is, refuses when it has to, and hides what is inside."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving_service import (
    CLASSES,
    HICCUP,
    INFER,
    MEAN,
    OVERFLOW,
    POISON,
    SHAPE,
    SLOW,
    SLOW_S,
    STD,
    Running,
    images,
    logits,
    running,
)

from deploykit.folders import _decode
from deploykit.serving.app import create_app
from deploykit.serving.batcher import ClosedError
from deploykit.serving.images import decode
from deploykit.serving.model import Served
from deploykit.serving.protocol import encode
from deploykit.serving.service import Limits


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Run a service for all tests of this file."""
    with running(max_batch_size=8, max_queue_size=16, max_queue_delay_us=5000, deadline_ms=5000) as started:
        yield started


def picture(kind: str = "PNG", size: tuple[int, int] = (20, 14)) -> bytes:
    """Return the file of a picture with a gradient."""
    width, height = size
    pixels = np.indices((height, width)).sum(0)[..., None] * np.array([7, 5, 3])
    file = io.BytesIO()
    Image.fromarray((pixels % 256).astype(np.uint8)).save(file, kind)
    return file.getvalue()


class TestTensors:
    @pytest.mark.parametrize("count", [1, 8])
    def test_bytes_in_and_out(self, service, count):
        """The logits of a binary tensor are the model's."""
        given = images(count)

        assert_allclose(service.logits(given), logits(given), rtol=1e-5, atol=1e-5)

    def test_json_in_and_out(self, service):
        """The same in JSON, with the id of the request."""
        given = images(2)
        tensor = {"name": "images", "datatype": "FP32", "shape": given.shape, "data": given.tolist()}
        reply = service.ask("POST", INFER, json.dumps({"id": "a", "inputs": [tensor]}))
        (output,) = reply.json["outputs"]

        assert (reply.status, reply.headers["content-type"], reply.json["id"]) == (200, "application/json", "a")
        assert_allclose(np.reshape(output["data"], output["shape"]), logits(given), rtol=1e-4, atol=1e-4)

    def test_many_clients_get_their_own_answers(self, service):
        """Twelve clients at once: each gets what its images make, and they were computed in fewer batches."""
        before = service.figure("deploykit_batch_images_count")
        given = [images(1, seed=number) for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(service.logits, given))

        assert_allclose(np.concatenate(found), logits(np.concatenate(given)), rtol=1e-4, atol=1e-4)
        assert service.figure("deploykit_batch_images_count") - before < 12

    def test_a_predictor_that_raises_once_is_not_noticed(self, service):
        """The client gets its answer."""
        given = images(1, first=HICCUP)

        assert_allclose(service.logits(given), logits(given), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("first", "words"),
        [
            (POISON, "the model cannot compute these images"),
            (OVERFLOW, "the model has no finite answer to these images"),
        ],
    )
    def test_what_the_model_cannot_do_is_told_without_details(self, service, first, words):
        """422, and not a word of the predictor's own error, which names a path."""
        reply = service.infer(images(1, first=first))

        assert (reply.status, reply.json) == (422, {"error": words})


class TestPictures:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_a_picture_is_classified_as_its_tensor_is(self, service, kind):
        """Decoded, cropped, scaled and normalised as in training; classes with probabilities, the likeliest first."""
        file = picture(kind)
        pixels = decode(file, *SHAPE[1:]).astype(np.float64) / 255
        expected = logits(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])[0]
        found = service.ask("POST", "/classify", file).json["classes"]
        probabilities = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()

        assert [entry["class"] for entry in found] == [CLASSES[index] for index in np.argsort(-expected)]
        assert_allclose([entry["probability"] for entry in found], sorted(probabilities)[::-1], rtol=1e-3, atol=1e-6)

    def test_a_form_with_one_file_is_the_same(self, service):
        """As a browser or `curl -F` sends it."""
        files = {"image": ("a.png", picture(), "image/png")}
        form = httpx.Request("POST", "http://x/", files=files)
        reply = service.ask("POST", "/classify", form.read(), dict(form.headers))

        assert reply.json == service.ask("POST", "/classify", picture()).json

    @pytest.mark.parametrize("files", [{"a": b"x", "b": b"y"}, {}])
    def test_a_form_with_another_number_of_files_is_refused(self, service, files):
        """Two, and none."""
        form = httpx.Request(
            "POST", "http://x/", files={name: (name, body) for name, body in files.items()} or {"c": ""}
        )
        kind = {"content-type": form.headers.get("content-type", "multipart/form-data")}
        reply = service.ask("POST", "/classify", form.read() if files else b"x", kind)

        assert (reply.status, reply.json["error"]) == (400, "the form must hold one file and nothing else")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
    def test_every_kind_of_picture_becomes_what_training_saw(self, tmp_path, mode):
        """The service and `load_dataset` make the same pixels of a file."""
        kind = "JPEG" if mode == "CMYK" else "PNG"
        source = Image.open(io.BytesIO(picture(size=(30, 17))))
        image = (
            Image.fromarray(np.uint16(np.arange(510).reshape(17, 30) * 128)) if mode == "I;16" else source.convert(mode)
        )
        image.save(tmp_path / "a", kind)

        assert (decode((tmp_path / "a").read_bytes(), 8, 8) == _decode(str(tmp_path / "a"), 8)).all()


class TestInformation:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"ready": True}),
            ("/v2/models/net/ready", {"ready": True}),
            ("/v2/models/net", {
                "name": "net", "platform": "python", "versions": ["1"],
                "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
            }),
        ],
    )  # fmt: skip
    def test_what_the_protocol_asks_for(self, service, path, expected):
        """Health and metadata in the protocol's form."""
        reply = service.ask("GET", path)

        assert (reply.status, reply.json) == (200, expected)

    def test_the_server_names_its_extension(self, service):
        """Binary tensors."""
        assert service.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]

    def test_metrics_can_be_read(self, service):
        """Prometheus' own parser finds latency, batch sizes, the queue and refusals."""
        service.logits(images(1))
        text = service.ask("GET", "/metrics").body.decode()
        names = {family.name for family in text_string_to_metric_families(text)}

        assert {
            f"deploykit_{name}" for name in ("request_seconds", "batch_images", "queue_images", "refusals")
        } <= names
        assert service.figure("deploykit_request_seconds_count") > 0

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    def test_another_method_is_refused_in_the_same_form(self, service, method):
        """405, with what is allowed."""
        reply = service.ask(method, INFER)

        assert (reply.status, reply.headers["allow"], reply.json) == (405, "POST", {"error": "method not allowed"})

    @pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/v2/models/other/infer", "/v2/repository/index"])
    def test_there_is_nothing_else(self, service, path):
        """No pages that fetch scripts from elsewhere, no other model, nothing to manage."""
        reply = service.ask("GET", path)

        assert (reply.status, reply.json) == (404, {"error": "not found"})

    def test_no_answer_says_what_software_it_is(self, service):
        """No Server header."""
        assert "server" not in service.ask("GET", "/v2").headers


class TestBusy:
    def test_beyond_the_queue_the_answer_is_to_come_back(self):
        """503 with whole seconds in Retry-After; what was accepted is answered; refusals are counted."""
        with (
            running(max_batch_size=1, max_queue_size=2, max_queue_delay_us=0) as service,
            ThreadPoolExecutor(8) as pool,
        ):
            replies = list(pool.map(lambda _: service.infer(images(1, first=SLOW)), range(8)))
            refused = [reply for reply in replies if reply.status == 503]

            assert 1 <= 8 - len(refused) <= 7
            assert {reply.status for reply in replies} == {200, 503}
            assert {(reply.json["error"], reply.headers["retry-after"]) for reply in refused} <= {
                ("the queue is full", "1"), ("the queue is full", "2"),
            }  # fmt: skip
            assert service.figure("deploykit_refusals_total") == len(refused)

    def test_who_waits_too_long_is_told_so(self):
        """Behind a slow batch the deadline passes: 503, and the next request is computed."""
        with running(max_batch_size=1, max_queue_delay_us=0, deadline_ms=100) as service, ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: service.infer(images(1, first=SLOW)), range(4)))

            assert "there was no time before the deadline" in {reply.json.get("error") for reply in replies}
            time.sleep(2 * SLOW_S)  # of the one that was being computed
            assert service.alive

    def test_a_client_that_leaves_frees_its_place(self):
        """Two wait behind a slow one and leave: the queue is empty before the slow one is done."""
        with running(max_batch_size=1, max_queue_size=2, max_queue_delay_us=0, deadline_ms=60_000) as service:
            first = threading.Thread(target=service.infer, args=[images(1, first=SLOW)])
            first.start()
            asyncio.run(_send_and_leave(service, 2))

            assert service.figure("deploykit_queue_images") == 0
            first.join()
            assert service.alive


async def _send_and_leave(service: Running, clients: int) -> None:
    """Send requests, wait a little, and close without waiting for answers."""
    async with httpx.AsyncClient() as client:
        body, headers = encode(images(1, first=SLOW))
        url = f"http://{service.host}:{service.port}{INFER}"
        tasks = [asyncio.create_task(client.post(url, content=body, headers=headers)) for _ in range(clients)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)


class TestStates:
    def test_it_is_not_ready_before_the_model_is_warm_nor_while_draining(self):
        """Alive all the time, ready in between; requests outside are told when to come back."""
        warm = threading.Event()

        def predict(given: np.ndarray) -> np.ndarray:
            assert warm.wait(10)
            return logits(given)

        async def scenario() -> list[tuple[int, int, int]]:
            app = create_app(Served("net", predict, SHAPE, CLASSES, MEAN, STD), Limits())
            seen = []
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:

                async def look() -> None:
                    paths = ("/v2/health/live", "/v2/health/ready")
                    states = [(await client.get(path)).status_code for path in paths]
                    seen.append((*states, (await client.post("/classify", content=picture())).status_code))

                async with app.router.lifespan_context(app):
                    await look()
                    warm.set()
                    while not app.state.service.ready:  # noqa: ASYNC110 - as a client polls
                        await asyncio.sleep(0.01)
                    await look()
                    app.state.service.drain()
                    await look()
            with pytest.raises(ClosedError):  # and its thread has ended with it
                app.state.service._batcher.submit(images(1))
            return seen

        assert asyncio.run(scenario()) == [(200, 503, 503), (200, 200, 200), (200, 503, 503)]

    def test_a_model_that_fails_is_never_ready(self):
        """The reason is kept for the operator, and clients hear nothing of it."""

        def predict(_: np.ndarray) -> np.ndarray:
            raise ValueError("no such operator")

        async def scenario() -> tuple[int, str]:
            app = create_app(Served("net", predict, SHAPE, CLASSES, MEAN, STD))
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
            ):
                while app.state.service.failure is None:  # noqa: ASYNC110 - as the server polls
                    await asyncio.sleep(0.01)
                return (await client.get("/v2/health/ready")).status_code, str(app.state.service.failure.__cause__)

        assert asyncio.run(scenario()) == (503, "no such operator")

    def test_a_model_that_hangs_does_not_keep_the_service(self):
        """Its thread is left behind, in warm-up or later, and the application ends."""
        for_ever = threading.Event()

        async def scenario() -> None:
            app = create_app(Served("net", lambda _: for_ever.wait(), SHAPE, CLASSES, MEAN, STD))
            async with app.router.lifespan_context(app):
                await asyncio.sleep(0.05)

        asyncio.run(asyncio.wait_for(scenario(), 20))
        for_ever.set()

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            ({"max_queue_size": 4}, "max_queue_size is 4 and max_batch_size is 16; both count images"),
            ({"max_batch_size": 0}, "max_batch_size is 0; give at least 1"),
            ({"deadline_ms": 0}, "deadline_ms is 0; give at least 1"),
        ],
    )
    def test_limits_that_make_no_sense_are_refused(self, limits, words):
        """Before anything is started."""
        with pytest.raises(ValueError, match=words):
            Limits(**limits)

    @pytest.mark.parametrize("name", ["", "a/b", "a b", "ä"])
    def test_a_name_that_is_no_part_of_a_path_is_refused(self, name):
        """It would not be reached."""
        with pytest.raises(ValueError, match="use letters, digits"):
            Served(name, logits, SHAPE, CLASSES, MEAN, STD)
