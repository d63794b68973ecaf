"""Known noise of third-party imports, silenced by name. Anything new stays visible."""

from __future__ import annotations

import logging
import os
import warnings

# Logger and what it says. Neither is about anything that a reader did or could change.
LOGGERS = {
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated (on import of torchao)",
    "torch.utils.cpp_extension": "No CUDA runtime is found, using CUDA_HOME=… (NNCF, torch.compile)",
}
WARNINGS = ("Sparse CSR tensor support is in beta state",)
# Kineto prints an error from C++ when a CUDA build profiles on a machine without a driver; read when torch is imported.
ENVIRONMENT = {"KINETO_LOG_LEVEL": "5"}


def silence_known_noise() -> None:
    """Silence what is listed in this module, for this process. Call it before the packages are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
