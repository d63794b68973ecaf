"""Known noise is kept off stderr, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deploykit.noise import without_profiler_noise

NOISE = b"USDT: pytorch profiler_start\n"
NO_DRIVER = b"ERROR: cudaGetDeviceCount gpuGetDeviceCount failed with code 35\n"


def test_the_profilers_noise_is_dropped_and_the_rest_arrives(capfd):
    """Lines written to the file descriptor, past Python, are told apart by what they say."""
    with without_profiler_noise():
        os.write(2, NOISE + b"out of memory\n" + NO_DRIVER)

    assert capfd.readouterr().err == "out of memory\n"


def test_stderr_is_back_after_an_error(capfd):
    """An error inside goes on, what was said before it arrives, and what is written afterwards is not held."""
    with pytest.raises(TypeError), without_profiler_noise():
        os.write(os.write(2, b"inside\n"), None)
    os.write(2, NOISE)

    assert capfd.readouterr().err == "inside\n" + NOISE.decode()


def test_a_program_without_stderr_goes_on():
    """A process whose stderr is closed, as a service's may be, is not stopped by the attempt to tidy it."""
    lines = (
        "import os",
        "from deploykit.noise import without_profiler_noise",
        "os.close(2)",
        "with without_profiler_noise(): print('done')",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)

    assert done.stdout == "done\n"
