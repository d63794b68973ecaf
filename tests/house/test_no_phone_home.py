"""Importing deploykit, or after it the runtimes that report usage by default, contacts nobody.

The notebooks are watched in the same way while they are run (``tests/notebooks``).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_EVERYTHING = """
import importlib, pkgutil, deploykit
names = [module.name for module in pkgutil.walk_packages(deploykit.__path__, "deploykit.")]
for name in names:
    importlib.import_module(name)
print(*names)
"""


@pytest.fixture
def run(network_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a program with an empty home and return (what it printed, hosts it tried to reach)."""
    # `CI` switches the reporting off by itself, and a home may hold a refusal: either would hide a failure.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("DEPLOYKIT_TELEMETRY", raising=False)
    home = tmp_path / "home"
    home.mkdir()  # without one the reporting gives up before it tries
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))

    def run_program(program: str, **environment: str) -> tuple[str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, network_log.read_text(encoding="utf-8").splitlines()

    return run_program


def needs(*modules: str) -> None:
    """Skip where a package is not installed, naming it."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is missing: pip install 'deploykit[onnx,openvino,compression]'")


class TestTheWatch:
    @pytest.mark.parametrize(
        ("program", "seen"),
        [
            ("import socket\nsocket.getaddrinfo('example.org', 80)", "socket.getaddrinfo example.org"),
            ("import socket\nsocket.create_connection(('192.0.2.1', 9))", "socket.getaddrinfo 192.0.2.1"),
            ("import urllib.request as r\nr.urlopen('http://example.org')", "urllib.Request http://example.org"),
        ],
    )
    def test_an_attempt_is_seen_and_refused(self, run, program, seen):
        """Whatever way a program tries, the attempt is in the log and does not leave the machine."""
        caught = f"try:\n    exec({program!r})\nexcept ConnectionRefusedError:\n    print('refused')"

        assert run(caught) == ("refused\n", [seen])

    def test_the_machine_itself_may_be_reached(self, run):
        """Kernels and servers on the loopback are no network."""
        program = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname())"

        assert run(program) == ("", [])

    def test_telemetry_would_be_seen(self, run):
        """With the reader's consent OpenVINO reports its import, and the watch sees that it does."""
        needs("openvino")

        _, attempts = run("import deploykit, openvino, time\ntime.sleep(1)", DEPLOYKIT_TELEMETRY="1")

        assert any("google-analytics" in attempt for attempt in attempts)


ONNX_RUNTIME_RUNS = """
import onnx.helper as h, onnxruntime
x, y = (h.make_tensor_value_info(name, 1, [1]) for name in "xy")
graph = h.make_graph([h.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = h.make_model(graph, ir_version=10, opset_imports=[h.make_opsetid("", 18)])
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


class TestOnnxRuntime:
    """It reports from C++, where no watch in Python sees it; what it would send lies in the home first."""

    def test_its_use_is_not_recorded_without_consent(self, run, tmp_path, monkeypatch):
        """No identifier is written; with consent it is, unless ONNX Runtime takes this for somebody's CI."""
        needs("onnxruntime", "onnx")
        for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"):
            monkeypatch.delenv(name, raising=False)
        program = f"import deploykit\n{ONNX_RUNTIME_RUNS}"
        run(program)

        assert not list((tmp_path / "home").rglob("deviceid"))
        run(program, DEPLOYKIT_TELEMETRY="1")
        if not list((tmp_path / "home").rglob("deviceid")):
            pytest.skip("ONNX Runtime records nothing in this surrounding, with or without deploykit")


class TestNobodyIsContacted:
    def test_importing_every_module_contacts_nobody(self, run):
        """No module of deploykit looks anything up when it is imported."""
        names, attempts = run(IMPORT_EVERYTHING)

        assert "deploykit.places" in names.split()
        assert attempts == []

    def test_importing_the_runtimes_contacts_nobody(self, run):
        """After deploykit, the packages that report usage by default do not."""
        needs("openvino", "nncf", "torchao", "onnxruntime")

        _, attempts = run("import deploykit, openvino, nncf, torchao, onnxruntime, time\ntime.sleep(1)")

        assert attempts == []
