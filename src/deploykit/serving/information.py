"""What a client may ask without sending images: is it alive, is it ready, what is served, and how it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Response

import deploykit
from deploykit.serving.protocol import DATATYPE
from deploykit.serving.service import Service

NAME = "deploykit"


@dataclass(frozen=True)
class Live:
    """The process answers."""

    live: bool


@dataclass(frozen=True)
class Ready:
    """Whether requests are computed."""

    ready: bool


@dataclass(frozen=True)
class Server:
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True)
class Tensor:
    """A tensor that the model takes or gives; -1 is a size that is free."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True)
class Model:
    """What is served."""

    name: str
    platform: str
    versions: list[str]
    inputs: list[Tensor]
    outputs: list[Tensor]


def add_information(app: FastAPI, service: Service) -> None:
    """Add the routes that tell of the service."""
    model, tensors = service.model, service.tensors
    path = f"/v2/models/{model.name}"
    unready: dict[int | str, dict[str, Any]] = {503: {"description": "It warms up or drains.", "model": Ready}}

    @app.get("/v2/health/live")
    async def live() -> Live:
        """Say that the process answers."""
        return Live(live=True)

    @app.get(f"{path}/ready", responses=unready, operation_id="model_ready")
    @app.get("/v2/health/ready", responses=unready, operation_id="ready")
    async def ready(response: Response) -> Ready:
        """Say whether requests are computed: neither while the model warms up nor while the service drains."""
        if not service.ready:
            response.status_code = 503
            response.headers["retry-after"] = "1"
        return Ready(service.ready)

    @app.get("/v2")
    async def server() -> Server:
        """Say who answers, and what beyond the protocol it understands."""
        return Server(NAME, deploykit.__version__, ["binary_tensor_data"])

    @app.get(path)
    async def metadata() -> Model:
        """Say what the model takes and gives."""
        taken = Tensor(tensors.input, DATATYPE, [-1, *model.shape])
        given = Tensor(tensors.output, DATATYPE, [-1, len(model.classes)])
        return Model(model.name, model.platform, ["1"], [taken], [given])

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return the figures that Prometheus reads."""
        return Response(service.metrics.text(), headers={"content-type": service.metrics.content_type})
