"""``deploykit serve``: a model behind HTTP, until it is told to stop."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploykit.cli import models, output
from deploykit.cli.contract import Status, StopError
from deploykit.cli.data import DATASETS

if TYPE_CHECKING:
    import socket

FILES = (".onnx", ".xml")


def serve(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT",
            help="An ONNX file, an .xml of OpenVINO, the winner folder of optimize; or a network of the course "
            "(resnet20) or a checkpoint folder, which ONNX Runtime computes.",
        ),
    ],
    *,
    data: Annotated[
        str, typer.Option(help=f"What it was trained on, for classes and normalisation: {DATASETS}")
    ] = "auto",
    size: Annotated[int, typer.Option(min=1, help=models.SIZE)] = models.PIXELS,
    name: Annotated[str | None, typer.Option(show_default="the artifact's", help="Of the model, in the paths.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; this machine only unless you say so.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Images computed together, and in one request.")] = 16,
    max_queue_delay_us: Annotated[
        int, typer.Option(min=0, help="Microseconds for which a request may wait for company.")
    ] = 1000,
    max_queue_size: Annotated[int, typer.Option(min=1, help="Images that may wait; beyond, the answer is 503.")] = 64,
    deadline_ms: Annotated[float, typer.Option(min=1, help="After which a request is refused instead.")] = 2000.0,
    threads: Annotated[int | None, typer.Option(min=1, show_default="as torch", help="That compute one batch.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="In OpenVINO, of what is not quantized.")
    ] = "float32",
    as_json: output.Json = False,
) -> None:
    """Serve a model over HTTP until it is told to stop.

    Open Inference Protocol at /v2, pictures at /classify, figures for Prometheus at /metrics, all of it described at
    /openapi.json. The address is printed when the model is warm. SIGTERM and Ctrl-C answer what was accepted and end
    it. A file is opened in a child process first, with limits on its memory and time.
    """
    from deploykit.noise import silence_known_noise

    silence_known_noise()
    from deploykit.serving.service import Limits

    limits = Limits(
        max_batch_size=max_batch_size,
        max_queue_delay_us=max_queue_delay_us,
        max_queue_size=max_queue_size,
        deadline_ms=deadline_ms,
    )
    _refuse_mistakes(artifact, data)
    listener = _listening(host, port)

    from deploykit.serving.app import create_app
    from deploykit.serving.artifacts import artifact_in, open_artifact, open_network
    from deploykit.serving.model import served
    from deploykit.serving.server import Server, url_of

    path = Path(artifact)
    file = artifact_in(path) if path.is_dir() else path if path.is_file() else None
    dataset = models.sized_dataset(data, size)
    if file is None:
        predictor = open_network(models.module_of(artifact, None, dataset), dataset, threads=threads)
    else:
        predictor = open_artifact(file, batch=max_batch_size, threads=threads, precision=precision)
    model = served(predictor, dataset, name or Path(artifact).resolve().stem)
    dataset_name = dataset.name
    del dataset  # its images are many times the model
    app = create_app(model, limits)

    def announce() -> None:
        url = url_of(listener)
        if as_json:
            output.document({
                "url": url, "model": model.name, "runtime": predictor.runtime, "threads": predictor.threads,
                "dataset": dataset_name, "classes": list(model.classes), "shape": list(model.shape),
            })  # fmt: skip
        else:
            output.show(f"{model.name} in {predictor.runtime} at {url}, infer at {url}/v2/models/{model.name}/infer")

    # The server raises the signal that ended it once more: SIGTERM is status 0 then, Ctrl-C 130.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What is there now stays: to look through it again and again would hold up requests, and the exit for seconds.
    gc.collect()
    gc.freeze()
    Server(app, announce=announce).run(sockets=[listener])
    if (failure := app.state.service.failure) is not None:
        raise StopError(f"{artifact} cannot be served: {failure.__cause__}", Status.USAGE)


def _refuse_mistakes(artifact: str, data: str) -> None:
    """Refuse what cannot be served, before data are fetched; no file of the reader's is executed for a service.

    Raises:
        StopError: a Python file, or another one that holds no model.
        FileNotFoundError: no such file, checkpoint or folder of data.
        ValueError: the checkpoint is damaged.
    """
    is_code = models.of_code(artifact)[0].removesuffix(":").endswith(".py")
    if is_code or (Path(artifact).is_file() and not artifact.endswith((*FILES, *models.OF_TORCH_SAVE))):
        raise StopError(
            f"{artifact} is not served; serve takes an ONNX file, an .xml of OpenVINO, a network of the course "
            "(resnet20), a checkpoint folder, or the winner folder that deploykit optimize FILE.py:FUNCTION writes",
            Status.USAGE,
        )
    if artifact.endswith(FILES):
        if not Path(artifact).is_file():
            raise FileNotFoundError(f"there is no file {artifact}; check the path")
    elif not any(Path(artifact, f"model{kind}").is_file() for kind in FILES):
        models.refuse_mistakes(artifact, None, data)


def _listening(host: str, port: int) -> socket.socket:
    """Take the port before minutes are spent on the model.

    Raises:
        StopError: it is taken, or the address is none of this machine.
    """
    from deploykit.serving.server import listen

    try:
        return listen(host, port)
    except OSError as error:
        raise StopError(
            f"cannot listen at {host}, port {port}: {_reason(error)}; choose another --port or --host",
            Status.UNABLE,
        ) from error


def _reason(error: OSError) -> str:
    """Return what the system says, without what Python adds; a name that cannot be resolved has a number of its own."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)
