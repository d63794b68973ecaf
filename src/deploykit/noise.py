"""Known noise of third-party imports, silenced by name. Anything new stays visible."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

# Logger and what it says. Neither is about anything that a reader did or could change.
LOGGERS = {
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated (on import of torchao)",
    "torch.utils.cpp_extension": "No CUDA runtime is found, using CUDA_HOME=… (NNCF, torch.compile)",
}
WARNINGS = ("Sparse CSR tensor support is in beta state",)
# Kineto prints an error from C++ when a CUDA build profiles on a machine without a driver; read when torch is imported.
ENVIRONMENT = {"KINETO_LOG_LEVEL": "5"}

# What a CUDA build of torch writes to stderr, past Python, when its profiler starts and stops: two marks for tracing
# tools, and that there is no driver (35) or no GPU (100). Everything else is passed on.
PROFILER_NOISE = re.compile(rb"USDT:.*profiler_(start|stop)|gpuGetDeviceCount failed with code (35|100)\b")


def silence_known_noise() -> None:
    """Silence what is listed in this module, for this process. Call it before the packages are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def without_profiler_noise() -> Iterator[None]:
    """Keep the known noise of torch's profiler off stderr inside the block; everything else arrives when it ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a program without stderr
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not PROFILER_NOISE.search(line):
                    os.write(2, line)
