"""What does Ray Serve cost beside one process, on one machine, where it cannot gain much?

    python benchmarks/serving_scale.py                        # on a quiet machine, 5 minutes
    python benchmarks/serving_scale.py --seconds 1 --rounds 1 --trial   # does it run? nothing recorded

The same ONNX file, one thread to compute a batch, the same limits, the same load generator, on the same machine. The
servers run one after the other, in turns, since an idle Ray is not idle. Cores and memory are those of a server and of
all processes that it has started. Writes data/results/serving-scale.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploykit.load import Load, Request, closed_loop
from deploykit.measurement import SAMPLES_FOR_PERCENTILE

MODEL, THREADS, CLIENTS = "resnet20", 1, 32
START_S, IDLE_S = 300.0, 3.0
ONE_PROCESS = "one process"


def contestants(file: Path, data: str) -> dict[str, list[str]]:
    """Return the commands that start the servers; each prints a line of JSON with its URL when it is ready."""
    alone = [sys.executable, "-m", "deploykit.cli", "serve", str(file), "--data", data, "--port", "0", "--json"]
    ray = [sys.executable, __file__, "--data", data, "--serve", str(file)]
    return {
        ONE_PROCESS: [*alone, "--name", MODEL, "--threads", str(THREADS)],
        "Ray Serve, 1 replica": [*ray, "--replicas", "1"],
        "Ray Serve, 2 replicas": [*ray, "--replicas", "2"],
    }


def serve_on_ray(file: Path, data: str, replicas: int) -> None:
    """Serve a file on a Ray of this machine until SIGTERM."""
    from deploykit.serving.ray_local import local_ray, run

    stop: list[int] = []
    with local_ray(cpus=replicas * THREADS):
        from deploykit.serving.ray_app import build

        arguments = {"artifact": file, "data": data, "name": MODEL, "replicas": replicas, "threads": THREADS}
        url = run(build(arguments))
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        print(json.dumps({"url": url}), flush=True)
        while not stop:
            signal.pause()


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[tuple[str, psutil.Process, float]]:
    """Start a server; yields its URL, its process, and the seconds until it was ready."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield announced(process)["url"], psutil.Process(process.pid), time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(START_S)


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the JSON document, of one line or several, that a server prints when it is ready."""
    text = ""
    for line in process.stdout or ():
        text += line
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    raise ChildProcessError(f"a server ended before it was ready: {process.args}")


def cores(server: psutil.Process) -> float:
    """Return the seconds of CPU time that a server and what it started have taken so far."""
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mib(server: psutil.Process) -> float:
    """Return what a server and what it started hold in memory; what they share is counted once."""
    total = 0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += getattr(process.memory_full_info(), "pss", 0)
    return total / 2**20


def measured(command: list[str], request: tuple[bytes, Mapping[str, str]], seconds: float) -> dict[str, float]:
    """Start a server, load it, and return its figures."""
    with started(command) as (url, server, start_s):
        body, headers = request
        wanted = Request(f"{url}/v2/models/{MODEL}/infer", body, headers)
        closed_loop(wanted, clients=CLIENTS, seconds=1.0)  # warm-up
        before, began = cores(server), time.perf_counter()
        time.sleep(IDLE_S)
        idle = (cores(server) - before) / (time.perf_counter() - began)
        figures = {"start_s": start_s, "idle_cores": idle}
        for clients in (1, CLIENTS):
            before = cores(server)
            load = closed_loop(wanted, clients=clients, seconds=seconds)
            figures |= {f"{name}_{clients}": value for name, value in of(load, cores(server) - before).items()}
        return figures | {"memory_mib": memory_mib(server)}


def of(load: Load, core_s: float) -> dict[str, float]:
    """Return the figures of one load.

    Raises:
        ChildProcessError: a request was not answered as it should be: the figures would be of something else.
    """
    if not load.ok.all():
        raise ChildProcessError(f"some requests failed, by status: {load.counts()}")
    latency_ms = 1000 * load.latency_s
    figures = {
        "requests_per_s": len(latency_ms) / float(load.done.max()),
        "p50_ms": float(np.median(latency_ms)),
        "core_us_per_request": 1e6 * core_s / len(latency_ms),
    }
    if len(latency_ms) >= SAMPLES_FOR_PERCENTILE[99]:
        figures["p99_ms"] = float(np.percentile(latency_ms, 99))
    return figures


def row(server: str, rounds: list[dict[str, float]], baseline: list[dict[str, float]]) -> dict[str, Any]:
    """Return one server's figures: medians over the rounds, and ratios to the single process of the same round."""
    names = [name for name in rounds[0] if all(name in one for one in rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in names}

    def ratio(name: str) -> float:
        return statistics.median(one[name] / other[name] for one, other in zip(rounds, baseline, strict=True))

    return {
        "server": server,
        "p50_ms_with_1_client": round(medians["p50_ms_1"], 2),
        "p50_ratio": round(ratio("p50_ms_1"), 2),
        **({"p99_ms_with_1_client": round(medians["p99_ms_1"], 2)} if "p99_ms_1" in medians else {}),
        f"requests_per_s_with_{CLIENTS}_clients": round(medians[f"requests_per_s_{CLIENTS}"]),
        "requests_ratio": round(ratio(f"requests_per_s_{CLIENTS}"), 2),
        f"core_us_per_request_with_{CLIENTS}_clients": round(medians[f"core_us_per_request_{CLIENTS}"]),
        "core_ratio": round(ratio(f"core_us_per_request_{CLIENTS}"), 2),
        "idle_cores": round(medians["idle_cores"], 3),
        "memory_mib": round(medians["memory_mib"]),
        "start_s": round(medians["start_s"], 1),
        "rounds": len(rounds),
    }


def compare(data: str, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Run every server once a round, and return the rows."""
    import torch

    from deploykit.export import export_onnx
    from deploykit.models import load_pretrained
    from deploykit.runtimes import onnxruntime
    from deploykit.serving.protocol import encode

    images = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    figures: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="serving-scale-") as folder:
        file = Path(folder) / f"{MODEL}.onnx"
        onnxruntime.save(export_onnx(load_pretrained(MODEL, "cifar10"), torch.zeros(2, 3, 32, 32)), file)
        for _ in range(rounds):
            for name, command in contestants(file, data).items():
                figures.setdefault(name, []).append(measured(command, encode(images), seconds))
                print(name, {key: round(value, 3) for key, value in figures[name][-1].items()}, flush=True)
    return [row(name, found, figures[ONE_PROCESS]) for name, found in figures.items()]


def main() -> None:
    """Compare, write, print; or be one of the servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", default="auto", help="for the names of the classes")
    parser.add_argument("--trial", action="store_true", help="record nothing")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replicas", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_on_ray(given.serve, given.data, given.replicas)
        return
    rows = compare(given.data, given.seconds, given.rounds)
    if given.trial:
        print(*rows, sep="\n")
        return
    from deploykit.recorded import recorded, write_recorded

    write_recorded(
        "serving-scale",
        rows,
        what=f"deploykit serve and Ray Serve {importlib.metadata.version('ray')}, the same {MODEL} in ONNX "
        f"Runtime, {THREADS} thread per batch, 1 image per request, load generator on the same machine, {given.rounds} "
        f"rounds in turns, {given.seconds:g} s per load; ratios are over one process in the same round",
        command="python benchmarks/serving_scale.py",
    )
    print(recorded("serving-scale"))


if __name__ == "__main__":
    main()
