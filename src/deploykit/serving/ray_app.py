"""The same service on Ray Serve: one entrance that speaks HTTP, and as many replicas of the model as machines can take.

Replicas, the queue before them, health checks and restarts are Ray's; paths, limits and words those of ``create_app``.
What Ray does not do is to answer for a replica that dies: the requests that it was computing fail with an error of the
caller. The entrance therefore sends each of them once more, and waits for room if need be. That does no harm, since to
compute logits twice changes nothing. It cannot answer for its own death, after which its clients have to ask again.

    RAY_USAGE_STATS_ENABLED=0 serve run deploykit.serving.ray_app:build artifact=model.onnx data=cifar10 replicas=2
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from deploykit.serving.model import Served
from deploykit.serving.ray_actors import Entrance, Images, Model, Predict
from deploykit.serving.service import Limits

if TYPE_CHECKING:
    from ray.serve import Application

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use, unless told not to before it starts

BATCHES_AHEAD = 2  # at a replica: one that is computed and one that fills meanwhile
MOST_ENTERED = 1000  # requests in the entrance; it refuses sooner than these become many
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 30.0


def application(
    model: Served, load: Callable[[], Predict], limits: Limits | None = None, *, replicas: int = 2, cpus: float = 1.0
) -> Application:
    """Return the service as Ray Serve deploys it.

    Args:
        model: what is served; its own ``predict`` is not used.
        load: called in each replica, with pickling in between; returns what predicts there.
        limits: how much of everything; ``max_queue_size`` is that of each replica, in images, and of what waits for a
            replica, in requests.
        replicas: of the model, on whatever machines Ray has.
        cpus: that Ray reserves for each, and that its OpenMP uses.

    Raises:
        ValueError: fewer than one replica, or no CPU.
        ImportError: Ray is missing.
    """
    if replicas < 1 or not cpus > 0:
        raise ValueError(f"replicas is {replicas} and cpus is {cpus:g}; give at least 1, and more than 0")
    serve = import_serve()
    limits = limits or Limits()
    quiet = serve.schema.LoggingConfig(enable_access_log=False, log_level="WARNING")
    behind = serve.deployment(
        Model,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=BATCHES_AHEAD * limits.max_batch_size,
        max_queued_requests=limits.max_queue_size,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        logging_config=quiet,
    )
    entrance = serve.deployment(
        serve.ingress()(Entrance),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MOST_ENTERED,
        logging_config=quiet,
    )
    described = dataclasses.replace(model, predict=_elsewhere)
    return entrance.bind(behind.bind(load, model.shape, limits), described, limits)


class Arguments(BaseModel):
    """What :func:`build` takes, from a command line or a file of Ray's.

    Attributes:
        artifact: an .onnx file, an .xml of OpenVINO, or a folder that ``optimize`` wrote, where each machine finds it.
        data: what it was trained on, for classes and normalisation.
        name: of the model, in the paths; the artifact's if None.
        replicas: of the model.
        threads: that compute one batch; as many CPUs are reserved.
        max_batch_size: as for :class:`Limits`.
        max_queue_delay_us: likewise.
        max_queue_size: likewise.
        deadline_ms: likewise.
    """

    model_config = ConfigDict(extra="forbid")

    artifact: Path
    data: str = "auto"
    name: str | None = None
    replicas: int = 2
    threads: int = 1
    max_batch_size: int = 16
    max_queue_delay_us: int = 1000
    max_queue_size: int = 64
    deadline_ms: float = 2000.0


def build(arguments: Mapping[str, Any]) -> Application:
    """Return the service for an artifact; ``serve run`` and the files of ``serve deploy`` call this.

    Args:
        arguments: those of :class:`Arguments`, as text or as numbers.

    Raises:
        ValueError: an argument that is none or has no such value, or an artifact that cannot be served.
        FileNotFoundError: no such file.
        ImportError: Ray or the runtime is missing.
    """
    from deploykit.data import load_dataset
    from deploykit.serving.artifacts import artifact_in, open_artifact
    from deploykit.serving.model import served

    given = Arguments.model_validate(arguments)
    path = (artifact_in(given.artifact) or given.artifact).resolve()
    limits = Limits(given.max_batch_size, given.max_queue_delay_us, given.max_queue_size, given.deadline_ms)
    predictor = open_artifact(path, batch=limits.max_batch_size, threads=given.threads)
    model = served(predictor, load_dataset(given.data), given.name or given.artifact.resolve().stem)
    load = functools.partial(_opened, path, limits.max_batch_size, given.threads)
    return application(model, load, limits, replicas=given.replicas, cpus=given.threads)


def import_serve() -> Any:
    """Return Ray Serve.

    Raises:
        ImportError: it is missing; the message names the extra.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("Ray Serve is missing: pip install 'deploykit[serving,scale]'") from error
    return serve


def _opened(path: Path, batch: int, threads: int) -> Predict:
    import torch

    from deploykit.serving.artifacts import open_artifact

    predictor = open_artifact(path, batch=batch, threads=threads)
    return lambda images: predictor(torch.from_numpy(images)).numpy()


def _elsewhere(_: Images) -> NDArray[np.float32]:
    raise NotImplementedError("this model computes in the replicas")
