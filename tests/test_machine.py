"""The description of the machine."""

from __future__ import annotations

import getpass
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deploykit.machine import machine


def test_it_names_no_user_host_or_path():
    """It goes into committed files."""
    words = {word for value in machine().values() for word in str(value).replace(",", " ").split()}

    assert platform.node() not in words
    assert getpass.getuser() not in words
    assert not [word for word in words if word.startswith(("/", "C:"))]


def test_it_says_what_decides_about_speed():
    """CPU, cores, threads, instruction sets and versions are there."""
    found = machine()

    assert found["threads"] >= found["cores"] >= 1
    assert found["torch"] == torch.__version__
    assert {"cpu", "features", "gpu", "os", "python"} <= found.keys()


def test_cores_are_physical_and_threads_logical(monkeypatch):
    """Both come from joblib, which knows affinity and quota; memory is in GiB."""
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores=False: 4 if only_physical_cores else 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=12 * 2**30))
    found = machine()

    assert (found["cores"], found["threads"], found["memory_gib"]) == (4, 8, 12.0)


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "features"),
    [
        ("model name\t: Fast 9000\nflags\t\t: fpu avx2 avx512_vnni\n", "Fast 9000", ["avx2", "avx512_vnni"]),
        ("processor\t: 0\nFeatures\t: fp asimddp bf16\n", platform.machine(), ["asimddp", "bf16"]),
    ],
)
def test_the_cpu_is_what_linux_says(monkeypatch, cpuinfo, cpu, features):
    """x86 and Arm write different names; of the features, those that decide about low precision are kept."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    found = machine()

    assert (found["cpu"], found["features"]) == (cpu, features)
