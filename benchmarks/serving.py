"""What does the service cost, and does it keep its promises? Cost, soak, overload, shutdowns and fuzzing.

    python benchmarks/serving.py --cost              # 4 minutes on a quiet machine
    python benchmarks/serving.py --soak 600          # 11 minutes
    python benchmarks/serving.py --overload 60       # 2 minutes
    python benchmarks/serving.py --shutdowns 20      # 6 minutes
    python benchmarks/serving.py --fuzz 5000         # 8 minutes

The load generator runs on the same machine, in a process of its own, and takes its share of the cores. Each part
replaces its own rows in data/results/serving.json and leaves the others.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import math
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from deploykit.data import Batches, Dataset, load_dataset
from deploykit.load import NO_ANSWER, NOT_SENT, Load, Request, closed_loop, open_loop
from deploykit.models import load_pretrained
from deploykit.recorded import recorded, write_recorded
from deploykit.runtimes.predictor import Predictor
from deploykit.serving.artifacts import open_network
from deploykit.serving.child import Running, started
from deploykit.serving.protocol import encode
from deploykit.serving.service import Limits

NAME = "serving"
LIMITS = Limits()
ROUNDS, ROUND_S = 7, 4.0
CAPACITY_S = 8.0
CLIENTS = {1: 32, 16: 4}  # two full batches under way
OK, FULL = 200, 503
NULL = "--null-server"


def infer(url: str, model: str, images: np.ndarray) -> Request:
    """Return the request for these images, as bytes both ways."""
    body, headers = encode(images)
    return Request(f"{url}/v2/models/{model}/infer", body, headers)


def serve_null() -> None:
    """Serve a model that does nothing; the second process of :func:`cost`."""
    from deploykit.serving.app import create_app
    from deploykit.serving.model import Served
    from deploykit.serving.server import Server, listen, url_of

    logits = np.zeros((LIMITS.max_batch_size, 10), np.float32)
    names = tuple(map(str, range(10)))
    model = Served("null", lambda images: logits[: len(images)], (3, 32, 32), names, (0.5,) * 3, (0.2,) * 3)
    listener = listen()
    Server(create_app(model), announce=lambda: print(url_of(listener), flush=True)).run(sockets=[listener])


@contextlib.contextmanager
def null_server() -> Iterator[tuple[str, psutil.Process]]:
    """Run it; yields where, and the process."""
    with subprocess.Popen([sys.executable, __file__, NULL], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout.readline() if process.stdout else "").strip(), psutil.Process(process.pid)
        finally:
            process.terminate()


def get(url: str, path: str) -> tuple[int, str]:
    """Return status and text of a GET."""
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def figure(url: str, name: str) -> float:
    """Return one of the figures at /metrics."""
    lines = get(url, "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def loaded(request: Request, process: psutil.Process, clients: int) -> tuple[float, float]:
    """Return requests per second of a server under full load, and its processor time per request in microseconds."""
    before = cpu_s(process)
    load = closed_loop(request, clients=clients, seconds=ROUND_S)
    if set(load.counts()) != {OK}:
        raise RuntimeError(f"under full load the service answered {load.counts()}")
    return len(load.status) / load.done.max(), 1e6 * (cpu_s(process) - before) / len(load.status)


def bare(predictor: Predictor, images: torch.Tensor) -> tuple[float, float]:
    """Return images per second of the predictor alone, and its processor time per image in microseconds."""
    predictor(images)
    count, cpu, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < ROUND_S / 2:
        predictor(images)
        count += len(images)
    return count / (time.perf_counter() - began), 1e6 * (time.process_time() - cpu) / count


def spread(values: list[float], name: str) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {name: float(np.median(values)), f"{name}_low": min(values), f"{name}_high": max(values)}


def cost(artifact: str, images: torch.Tensor, predictor: Predictor) -> list[dict[str, Any]]:
    """Compare the service with its parts, in turns: F is the server without a model, P the model without a server."""
    rows = []
    with null_server() as (null_url, null), started(artifact, "--threads", "1") as service:
        for count, clients in CLIENTS.items():
            given = images[:count].numpy()
            empty = infer(null_url, "null", given)
            full = infer(service.url, service.model, given)
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                f, server_us = loaded(empty, null, clients)
                batches = [figure(service.url, f"deploykit_batch_images_{part}") for part in ("sum", "count")]
                both, both_us = loaded(full, psutil.Process(service.process.pid), clients)
                after = [figure(service.url, f"deploykit_batch_images_{part}") for part in ("sum", "count")]
                batch = (after[0] - batches[0]) / (after[1] - batches[1])
                images_per_s, own_us = bare(predictor, images[: round(batch)])
                p = images_per_s / count
                for name, value in {
                    "server_us_per_request": server_us,
                    "over_model_us_per_request": both_us - own_us * count,
                    "null_requests_per_s": f,
                    "bare_requests_per_s": p,
                    "requests_per_s": both,
                    "images_per_batch": batch,
                    "share_of_ideal": both * (1 / f + 1 / p),
                }.items():
                    found.setdefault(name, []).append(value)
            row: dict[str, Any] = {"part": "cost", "images_per_request": count, "clients": clients, "rounds": ROUNDS}
            for name, values in found.items():
                row |= spread(values, name)
            rows.append(row)
    return rows


def full_batch_ms(predictor: Predictor, images: torch.Tensor) -> float:
    """Return the median time of a full batch, of the predictor alone."""
    times = []
    for _ in range(60):
        began = time.perf_counter()
        predictor(images[: LIMITS.max_batch_size])
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[10:]))


def bound_ms(batch_ms: float) -> float:
    """Return what an accepted request may take: the batches before it, the one in progress, and the delay."""
    batches = math.ceil(LIMITS.max_queue_size / LIMITS.max_batch_size) + 1
    return batches * batch_ms + LIMITS.max_queue_delay_us / 1e3


def computed(service: Running) -> np.ndarray:
    """Return the seconds in the predictor, and the batches, that a service has counted."""
    names = ("deploykit_compute_seconds_total", "deploykit_batch_images_count")
    return np.array([figure(service.url, name) for name in names])


def offered(service: Running, images: torch.Tensor, share: float, seconds: float) -> tuple[Load, dict[str, Any]]:
    """Offer a share of the capacity; returns what became of it, and rate, memory and mean time of a batch meanwhile."""
    request = infer(service.url, service.model, images[:1].numpy())
    capacity = closed_loop(request, clients=CLIENTS[1], seconds=CAPACITY_S)
    rate = share * len(capacity.status) / capacity.done.max()
    process, memory, done = psutil.Process(service.process.pid), [], threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            memory.append(process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = computed(service)
    load = open_loop(request, rate_per_s=rate, seconds=seconds, connections=256)
    done.set()
    watcher.join()
    spent_s, batches = computed(service) - before
    settled = memory[len(memory) // 10 :]
    start_mib, end_mib = float(np.median(settled[:10])), float(np.median(settled[-10:]))
    return load, {
        "rate_per_s": rate,
        "batch_under_load_ms": 1e3 * spent_s / batches,
        "images_per_batch_under_load": int(load.ok.sum()) / batches,
        "memory_start_mib": start_mib,
        "memory_growth_percent": 100 * (end_mib / start_mib - 1),
    }


def percentiles_ms(load: Load, status: int) -> dict[str, float]:
    """Return p50 and p99 of the requests with a status: from when they were meant to leave, and from when they left."""
    chosen = load.status == status
    found = {}
    for name, values in {"latency": load.latency_s[chosen], "service": load.service_s[chosen]}.items():
        for percent in (50, 99):
            found[f"{name}_p{percent}_ms"] = 1e3 * float(np.percentile(values, percent)) if len(values) else None
    return found


def under_load(part: str, share: float, seconds: float, *given: Any) -> list[dict[str, Any]]:
    """Measure one steady rate: 0.8 of the capacity for the soak, 3 times it for the overload."""
    artifact, images, predictor = given
    batch_ms = full_batch_ms(predictor, images)
    with started(artifact, "--threads", "1") as service:
        load, meanwhile = offered(service, images, share, seconds)
    facts = {
        "part": part,
        "seconds": seconds,
        "share_of_capacity": share,
        "full_batch_ms": batch_ms,
        "bound_ms": bound_ms(batch_ms),
        "sent_late_p99_ms": 1e3 * float(np.nanpercentile(load.sent - load.intended, 99)),
        **meanwhile,
    }
    statuses = {OK: "answered", FULL: "refused", NO_ANSWER: "no_answer", NOT_SENT: "not_sent"}
    counts = {name: load.counts().get(status, 0) for status, name in statuses.items()}
    counts["other"] = len(load.status) - sum(counts.values())
    rows = [{**facts, **counts, "of": "answered", **percentiles_ms(load, OK)}]
    if counts["refused"]:
        rows.append({**facts, **counts, "of": "refused", **percentiles_ms(load, FULL)})
    return rows


def shutdowns(artifact: str, images: torch.Tensor, times: int) -> list[dict[str, Any]]:
    """Send SIGTERM under load, with slow clients connected, so many times."""
    found: dict[str, list[float]] = {"seconds": [], "exit_status": [], "answered": [], "refused": [], "lost": []}
    for seed in range(times):
        with started(artifact, "--threads", "1") as service, ThreadPoolExecutor(1) as pool:
            request = infer(service.url, service.model, images[:1].numpy())
            host, port = service.url.removeprefix("http://").split(":")
            slow = [socket.create_connection((host, int(port))) for _ in range(10)]
            for client in slow:
                client.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
            load = pool.submit(open_loop, request, rate_per_s=200, seconds=5, seed=seed)
            while figure(service.url, "deploykit_request_seconds_count") < 100:  # noqa: PLR2004 - under way
                time.sleep(0.05)
            began = time.perf_counter()
            service.process.send_signal(signal.SIGTERM)
            status = service.process.wait(30)
            seconds = time.perf_counter() - began
            counts = load.result().counts()
            for client in slow:
                client.close()
        values = (seconds, status, counts.get(OK, 0), counts.get(FULL, 0), counts.get(NO_ANSWER, 0))
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
        print(f"shutdown {seed + 1}: {dict(zip(found, values, strict=True))}")
    return [{
        "part": "shutdowns", "times": times, "lost": sum(found["lost"]), "answered": sum(found["answered"]),
        "refused": sum(found["refused"]), "exit_statuses_not_0": sum(map(bool, found["exit_status"])),
        "seconds_median": float(np.median(found["seconds"])), "seconds_most": max(found["seconds"]),
    }]  # fmt: skip


def fuzz(artifact: str, cases: int) -> list[dict[str, Any]]:
    """Let schemathesis send so many cases by the service's OpenAPI document, seed after seed."""
    tool = Path(sys.executable).with_name("schemathesis")
    sent = failures = seed = 0
    with started(artifact, "--threads", "1") as service, tempfile.TemporaryDirectory() as folder:
        while sent < cases:
            command = [
                str(tool), "run", f"{service.url}/openapi.json", "--max-examples=100", f"--seed={seed}", "--no-color",
                "--phases=examples,coverage,fuzzing", "--exclude-checks=positive_data_acceptance",
                "--suppress-health-check=all",
            ]  # fmt: skip
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            counted = re.search(r"(\d+) generated", done.stdout)
            if counted is None:
                raise RuntimeError(f"schemathesis did not run: {done.stdout[-300:]}{done.stderr[-300:]}")
            sent, seed = sent + int(counted[1]), seed + 1
            if done.returncode:
                failures += 1
                print(done.stdout)
            print(f"{sent} cases, {failures} runs with failures")
        alive = get(service.url, "/v2/health/ready")[0] == OK
    return [{"part": "fuzz", "cases": sent, "runs": seed, "runs_with_failures": failures, "alive": alive}]


def write(rows: list[dict[str, Any]], artifact: str) -> None:
    """Replace the rows of these parts."""
    command = shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]])
    parts = {row["part"] for row in rows}
    try:
        others = [dict(row) for row in recorded(NAME).rows if row["part"] not in parts]
    except ValueError:  # the first
        others = []
    write_recorded(
        NAME,
        [*others, *({**row, "artifact": artifact, "command": command} for row in rows)],
        what="The service: its cost, a soak, an overload, shutdowns and fuzzing; load generator on the same machine",
        command=command,
    )
    print(recorded(NAME))


def some(dataset: Dataset) -> torch.Tensor:
    """Return a full batch of training images, normalised."""
    return next(iter(Batches(dataset.train, dataset, batch_size=LIMITS.max_batch_size)))[0].contiguous()


def main() -> None:
    """Measure what was asked for, and write it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--artifact", default="resnet20", help="a network of the course")
    arguments.add_argument("--cost", action="store_true", help="processor time and throughput against the parts")
    arguments.add_argument("--soak", type=float, metavar="SECONDS", help="at 80 %% of the capacity")
    arguments.add_argument("--overload", type=float, metavar="SECONDS", help="at three times the capacity")
    arguments.add_argument("--shutdowns", type=int, metavar="TIMES", help="SIGTERM under load")
    arguments.add_argument("--fuzz", type=int, metavar="CASES", help="schemathesis")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset("auto")
    images = some(dataset)
    rows = []
    if given.cost or given.soak or given.overload:
        predictor = open_network(load_pretrained(given.artifact, dataset.name), dataset, threads=1)
        what = (given.artifact, images, predictor)
        if given.cost:
            rows += cost(*what)
        if given.soak:
            rows += under_load("soak", 0.8, given.soak, *what)
        if given.overload:
            rows += under_load("overload", 3.0, given.overload, *what)
    if given.shutdowns:
        rows += shutdowns(given.artifact, images, given.shutdowns)
    if given.fuzz:
        rows += fuzz(given.artifact, given.fuzz)
    if not rows:
        arguments.error("say what to measure: --cost, --soak, --overload, --shutdowns or --fuzz")
    write(rows, given.artifact)


if __name__ == "__main__":
    if sys.argv[1:] == [NULL]:
        serve_null()
    else:
        main()
