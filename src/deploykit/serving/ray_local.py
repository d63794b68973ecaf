"""Ray on this machine alone: at the loopback address, reporting to nobody, and gone without a trace in the end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from deploykit.serving.ray_app import import_serve
from deploykit.serving.server import listen, url_of

if TYPE_CHECKING:
    from ray.serve import Application

NOBODY = "http://127.0.0.1:9"  # the port that discards
# Each name is one that Ray looks up, in this process or in those that it starts.
ENVIRONMENT = {
    # Without the first it reports its use; without the second, that it does not.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": NOBODY,
    # It asks the metadata services of three clouds whether it runs there, for the report that it does not send.
    "http_proxy": NOBODY,
    "no_proxy": "127.0.0.1,localhost",
    # By its name, for other systems; on Linux as well it decides whether Ray listens at this machine's own address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",  # by default its workers get the processor when nobody else wants it
    # A proxy that starts late on a busy machine is by default given up after 5 seconds.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "100",
    "RAY_AUTH_MODE": "token",  # without the token, which is not kept in your home, nobody else here can hand it work
}
OBJECT_STORE_BYTES = 80 * 2**20  # near the least it takes; requests are too small to go there


@contextlib.contextmanager
def local_ray(*, cpus: int = 2) -> Iterator[None]:
    """Start Ray on this machine, and stop it in the end; meanwhile SIGTERM is handled by Ray.

    Args:
        cpus: that it may reserve, whatever the machine has.

    Raises:
        RuntimeError: Ray was imported before, and would listen to the network.
        ImportError: it is missing.
    """
    with _environment({**ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        serve = import_serve()
        import ray

        if ray._private.ray_constants.ENABLE_RAY_CLUSTER:  # noqa: SLF001 - it is read once, on import
            raise RuntimeError("Ray was imported before and would listen to the network; enter local_ray() first")
        folder = tempfile.mkdtemp(prefix="ray-")  # short, since the paths of sockets may have 107 characters
        try:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder,
            )  # fmt: skip
            yield
        finally:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def run(application: Application, *, host: str = "127.0.0.1", port: int = 0) -> str:
    """Run an application until Ray ends, and return its URL when it is ready.

    Args:
        application: from ``ray_app.application`` or ``ray_app.build``.
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
        RuntimeError: the application cannot be started; its logs say more.
    """
    serve = import_serve()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with listen(host, port) as free:
        url = url_of(free)
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    serve.run(application, name="deploykit")
    return url


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
