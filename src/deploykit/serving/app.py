"""The service as a FastAPI application: Open Inference Protocol, pictures, health and metrics; nothing to manage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

try:
    import python_multipart  # noqa: F401 - Starlette asks for it only when a form comes
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.routing import Route
except ImportError as missing:
    raise ImportError("FastAPI or python-multipart is missing: pip install 'deploykit[serving]'") from missing

from deploykit.serving.endpoints import Classify, Infer, error_answer
from deploykit.serving.information import add_information
from deploykit.serving.model import Served
from deploykit.serving.openapi import described
from deploykit.serving.service import Limits, Service

# FastAPI can report traces and figures to whoever the environment names; here figures are fetched, from /metrics.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}

CLOSE_S = 2.0  # for what is still being computed when all requests are over


def create_app(model: Served, limits: Limits | None = None) -> FastAPI:
    """Return the application; its ``state.service`` is the :class:`Service`.

    Once started it warms the model up, is ready, and drains its queue in the end. It has no way to load, change or
    stop a model.

    Args:
        model: what to serve.
        limits: how much of everything.

    Raises:
        ValueError: a limit out of its range.
        ImportError: FastAPI, prometheus-client or python-multipart is missing.
    """
    return application(Service(model, limits or Limits()))


def application(service: Service) -> FastAPI:
    """Return the application over a service, which may compute elsewhere than here."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        started = asyncio.create_task(service.start())  # meanwhile it says that it is not ready
        yield
        with contextlib.suppress(TimeoutError):  # a predictor that hangs does not keep the process
            await asyncio.wait_for(_end(started, service), CLOSE_S)

    app = FastAPI(
        title="deploykit", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        telemetry=NO_TELEMETRY, exception_handlers={HTTPException: error_answer, Exception: error_answer},
    )  # fmt: skip
    app.state.service = service
    # FastAPI's own routes take twice the time of a request that a small network is done with at once.
    app.router.routes += [
        Route(f"/v2/models/{service.model.name}/infer", Infer(service), methods=["POST"]),
        Route("/classify", Classify(service), methods=["POST"]),
    ]
    add_information(app, service)  # behind them: routes are tried in turn
    app.openapi = lambda: described(app, service)  # type: ignore[method-assign]
    return app


async def _end(started: asyncio.Task[None], service: Service) -> None:
    await started
    await service.close()
