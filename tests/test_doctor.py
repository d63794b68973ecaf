"""What the examination finds on machines of every kind, each given by its facts, and that it never hangs or fails."""

from __future__ import annotations

import errno
import getpass
import io
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploykit.doctor import (
    PROBES,
    STATUSES,
    WORKSHOP,
    Finding,
    compiler,
    examine,
    gpu,
    hardware,
    healthy,
    network,
    software,
    storage,
    workshop,
)
from deploykit.doctor.finding import Doubt, Probe, judged, last_words, look_at

GIB = 2**30
needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no shell scripts and no permission bits")


class TestFinding:
    def test_its_json_form_is_stable(self):
        """Five texts under fixed names, whatever the status; programs read them."""
        finding = Finding("disk", "limited", "1 GiB", "little fits", "make room")

        assert finding.to_dict() == {
            "name": "disk", "status": "limited", "found": "1 GiB", "cost": "little fits", "mend": "make room",
        }  # fmt: skip
        assert list(Finding("disk", "ok", "9 GiB").to_dict()) == ["name", "status", "found", "cost", "mend"]

    def test_there_are_three_statuses(self):
        """No other can be made."""
        assert STATUSES == ("ok", "limited", "missing")
        with pytest.raises(ValueError, match=r"^status is 'bad'; choose one of 'ok', 'limited', 'missing'$"):
            Finding("disk", "bad", "1 GiB")

    def test_it_is_printed_with_its_cost_and_its_remedy(self):
        """What is ok takes one line, the rest three."""
        assert str(Finding("disk", "ok", "9 GiB")) == "ok       disk: 9 GiB"
        assert str(Finding("disk", "missing", "0 GiB", "nothing fits", "make room")) == (
            "missing  disk: 0 GiB\n         cost: nothing fits\n         mend: make room"
        )

    def test_what_others_say_stays_one_harmless_line(self):
        """A variable or a driver's answer may hold line breaks and terminal codes."""
        assert Finding("GPU", "ok", "a\x1b[31m\nb\tc").found == "a[31m b c"

    def test_several_shortcomings_are_one_finding(self):
        """A remedy that serves twice is said once; without any shortcoming all is well."""
        found = judged("CPU", "old", [Doubt("slow", "buy"), Doubt("hot", "fan"), Doubt("loud", "buy")])

        assert (found.status, found.cost, found.mend) == ("limited", "slow; hot; loud", "buy; fan")
        assert judged("CPU", "new", []) == Finding("CPU", "ok", "new")

    def test_only_what_is_missing_is_unhealthy(self):
        """The course runs with what is limited."""
        ok, limited, missing = (Finding("x", status, "") for status in STATUSES)

        assert healthy([ok, limited])
        assert not healthy([ok, missing])

    def test_a_complaint_loses_its_folders(self, monkeypatch):
        """They name users and machines; the last name says what is wrong."""
        monkeypatch.setattr(Path, "home", lambda: Path("/home/Jane Doe"))

        assert last_words("Traceback\nOSError: /home/Jane Doe/x/libc.so: no such file: 'C:\\a\\b.dll'\n\n") == (
            "OSError: libc.so: no such file: 'b.dll'"
        )


class TestLookingAt:
    def test_a_probe_that_raises_is_a_finding(self):
        """The system's words are kept, the file's name is not."""

        def broken():
            raise PermissionError(errno.EACCES, "Permission denied", "/home/jane/secret")

        found = look_at([Probe(("disk",), broken), Probe(("memory",), lambda: Finding("memory", "ok", "plenty"))])

        assert [finding.status for finding in found] == ["limited", "ok"]
        assert found[0].found == "could not be examined (PermissionError: Permission denied)"

    def test_a_probe_that_hangs_is_given_up(self):
        """The others answer meanwhile; all come in their order, under the names they would have had."""
        never, began = threading.Event(), time.monotonic()
        found = look_at([Probe(("torch", "GPU"), never.wait, 0.2), Probe(("CPU",), lambda: Finding("CPU", "ok", ""))])
        never.set()

        assert time.monotonic() - began < 5
        assert [f"{finding.name} {finding.status}" for finding in found] == ["torch limited", "GPU limited", "CPU ok"]
        assert found[0].found == "no answer within 0.2 s"

    def test_all_probes_run_at_once(self):
        """Two that wait for each other both come back."""
        meeting = threading.Barrier(2, timeout=10)

        def meet():
            meeting.wait()
            return [Finding("a", "ok", ""), Finding("b", "ok", "")]

        assert [finding.status for finding in look_at([Probe(("a", "b"), meet), Probe(("c", "d"), meet)])] == ["ok"] * 4


class TestWhole:
    @pytest.fixture(scope="class")
    @classmethod
    def examined(cls, tmp_path_factory):
        """The examination of this machine, offline, in a process of its own that may not reach the network."""
        log = tmp_path_factory.mktemp("network") / "log"
        log.touch()
        guard = Path(__file__).parent / "no_network"
        program = "import json\nfrom deploykit.doctor import examine\n"
        program += "print(json.dumps([f.to_dict() for f in examine(workshop=True, online=False)]))"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True,
            env=os.environ | {"DEPLOYKIT_TEST_NETWORK_LOG": str(log), "PYTHONPATH": str(guard)},
        )  # fmt: skip
        assert done.stderr == ""
        return json.loads(done.stdout), log.read_text()

    def test_everything_is_looked_at(self, examined):
        """In a fixed order, which the documented page follows."""
        names = [finding["name"] for finding in examined[0]]
        page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text(encoding="utf-8")

        assert names == [name for probe in (*PROBES, *WORKSHOP) for name in probe.names]
        assert len(set(names)) == len(names) >= 20
        assert [name for name in [*names, "network"] if f"**{name}**" not in page] == []

    def test_every_shortcoming_has_its_cost_and_its_remedy(self, examined):
        """And what is ok has neither."""
        assert {finding["status"] for finding in examined[0]} <= set(STATUSES)
        for finding in examined[0]:
            assert bool(finding["cost"]) == bool(finding["mend"]) == (finding["status"] != "ok"), finding

    def test_nobody_is_contacted_offline(self, examined):
        """The examination of the machine stays on the machine."""
        assert examined[1] == ""

    def test_it_names_no_user_host_or_path(self, examined):
        """Readers post it when they ask for help; a folder stands only where it is to be acted on."""
        words = [word for finding in examined[0] for word in " ".join(finding.values()).replace(",", " ").split()]
        said = [word for f in examined[0] for word in f"{f['found']} {f['cost']}".split()]

        assert platform.node() not in words
        assert getpass.getuser() not in words
        assert [word for word in said if word.startswith("/")] == []

    def test_the_network_is_looked_at_unless_told_not_to(self, monkeypatch):
        """And the workshop only when asked."""
        asked = []
        monkeypatch.setattr(
            "deploykit.doctor.look_at",
            lambda probes: asked.append([name for probe in probes for name in probe.names]) or [],
        )
        examine()
        examine(online=False, workshop=True)

        assert ("network" in asked[0], "workshop: ports" in asked[0]) == (True, False)
        assert ("network" in asked[1], "workshop: ports" in asked[1]) == (False, True)


class TestPython:
    def test_this_one_is_fine(self):
        """It runs these tests."""
        assert software.python().found == f"{platform.python_version()}, 64 bit, {platform.python_implementation()}"

    @pytest.mark.parametrize(("version", "pointer"), [("3.10.4", 8), ("3.12.1", 4)])
    def test_an_old_or_a_32_bit_one_has_no_torch(self, monkeypatch, version, pointer):
        """The range is that of the package's own metadata."""
        monkeypatch.setattr(platform, "python_version", lambda: version)
        monkeypatch.setattr("struct.calcsize", lambda _: pointer)
        found = software.python()

        assert found.status == "missing"
        assert found.found.startswith(f"{version}, {8 * pointer} bit")
        assert found.mend == "install a 64-bit Python >=3.11 and make a new .venv with it"


def groups() -> dict[str, Finding]:
    """Return the findings on packages by name."""
    return {finding.name: finding for finding in software.packages()}


class TestPackages:
    @pytest.fixture
    def installed(self, monkeypatch):
        """A small deploykit, and what is installed beside it, to be filled in."""
        versions = {"torch": "2.14.1+cpu", "numpy": "2.4.0", "onnx": "1.23.0"}
        lines = ["numpy>=2.1", "torch>=2.11", 'onnx>=1.20; extra == "onnx"', 'ruff>=1; extra == "test"']
        lines.append('onnxruntime>=1.24; platform_system == "Nowhere" and extra == "onnx"')

        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "requires", lambda _: lines)
        monkeypatch.setattr(metadata, "version", version)
        return versions

    def test_each_group_that_readers_need_is_a_finding(self, installed):
        """What decides, torch, comes first; what another system or the project's tests need is not asked for."""
        found = groups()

        assert list(found) == [
            "packages", "packages: notebooks", "packages: onnx", "packages: openvino", "packages: compression",
            "packages: training", "packages: serving",
        ]  # fmt: skip
        assert found["packages"] == Finding("packages", "ok", "torch 2.14.1+cpu, numpy 2.4.0")
        assert found["packages: onnx"].found == "onnx 1.23.0"

    def test_what_is_absent_or_too_old_is_named_with_its_version(self, installed):
        """Of the core, nothing runs without it; of an extra, the rest does."""
        installed.update(torch="2.9.0")
        del installed["onnx"]
        found = groups()

        assert found["packages"].status == found["packages: onnx"].status == "missing"
        assert found["packages"].found == "torch 2.9.0 is installed, >=2.11 is needed"
        assert found["packages"].cost == "nothing of the course runs"
        assert found["packages: onnx"].found == "not installed: onnx"
        assert found["packages: onnx"].mend.endswith("in the checkout: pip install -e '.[onnx]'")

    def test_the_extras_are_those_of_the_project(self):
        """A group that pyproject.toml renames would otherwise be empty, and ok."""
        offered = set(metadata.metadata("deploykit").get_all("Provides-Extra"))

        assert set(software.EXTRAS) - {""} <= offered


class TestCpu:
    @pytest.mark.parametrize(
        ("kind", "features", "costs"),
        [
            ("x86_64", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"], 0),
            ("x86_64", ["avx2", "avx_vnni", "amx_bf16"], 0),
            ("aarch64", ["asimddp", "i8mm", "bf16"], 0),
            ("x86_64", ["avx2", "avx512_vnni"], 1),
            ("aarch64", [], 2),
            ("x86_64", ["avx2"], 2),
            ("x86_64", [], 3),
        ],
    )
    def test_each_instruction_set_it_lacks_has_its_cost(self, monkeypatch, kind, features, costs):
        """Vectors, int8 and bf16, on x86 and on Arm."""
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(hardware, "cpu", lambda: ("Fast 9", features))
        found = hardware.cpu_features()

        assert found.status == ("limited" if costs else "ok")
        assert len(found.cost.split("; ")) * bool(found.cost) == costs
        assert found.found == f"Fast 9: {' '.join(features) or 'none of the instructions that matter here'}"

    def test_without_vnni_int8_is_promised_nothing(self, monkeypatch):
        """The reader learns why int8 will disappoint before it does."""
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(hardware, "cpu", lambda: ("Old 1", ["avx2"]))

        assert hardware.cpu_features().cost.startswith("without VNNI or its like int8 takes about as long as fp32")

    def test_where_nothing_lists_them_nothing_is_claimed(self, monkeypatch):
        """Windows tells of AVX; whether there is VNNI stays open."""
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(hardware, "cpu", lambda: ("Fast 9", ["avx512"]))

        assert hardware.cpu_features().cost.startswith(
            "whether int8 and bf16 have instructions of their own is not known"
        )


class TestThreads:
    @pytest.fixture
    def host(self, monkeypatch):
        """A host by the threads that are there, allowed and asked for, and its quota."""

        def make(logical=8, allowed=8, quota=None, asked=None):
            monkeypatch.setattr(os, "cpu_count", lambda: logical)
            monkeypatch.setattr("psutil.cpu_count", lambda **_: logical // 2 or 1)
            monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
            monkeypatch.setattr(hardware, "allowed_threads", lambda: allowed)
            monkeypatch.setattr("deploykit.machine.allowed_threads", lambda: allowed)
            monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
            return hardware.threads()

        return make

    def test_logical_and_physical_ones_are_told_apart(self, host):
        """And a server's share from the whole server."""
        assert host() == Finding("threads", "ok", "8 in use, 8 allowed, of 8 (4 physical cores)")
        assert host(64, 4, 4.0) == Finding("threads", "ok", "4 in use, 4 allowed, of 64 (32 physical cores), quota 4")
        assert host(asked="8,2").status == "ok"

    @pytest.mark.parametrize(
        ("facts", "cost", "mend"),
        [
            ({"asked": "2"}, "OMP_NUM_THREADS=2 leaves 6 of 8 threads idle", "unset OMP_NUM_THREADS, if nobody"),
            ({"asked": "64"}, "OMP_NUM_THREADS=64 is more than the 8 allowed", "export OMP_NUM_THREADS=8"),
            ({"allowed": 1, "quota": 1.0}, "with one thread everything takes longer", "ask whoever runs the server"),
            ({"logical": 1, "allowed": 1}, "with one thread everything takes longer", "two CPUs or more"),
            ({"allowed": 2, "quota": 1.5}, "a quota of 1.5 CPUs pauses the 2 in use", "export OMP_NUM_THREADS=1, or"),
            ({"allowed": 2, "quota": 0.5}, "a quota of 0.5 CPUs pauses the 2 in use", "export OMP_NUM_THREADS=1, or"),
        ],
    )
    def test_what_takes_threads_away_is_named(self, host, facts, cost, mend):
        """With what it costs and how to undo it."""
        found = host(**facts)

        assert (found.status, found.cost[: len(cost)], found.mend[: len(mend)]) == ("limited", cost, mend)

    def test_one_thread_within_a_quota_of_one_and_a_half_is_what_was_advised(self, host):
        """The remedy for a broken quota is not itself a conflict."""
        assert host(allowed=2, quota=1.5, asked="1").status == "ok"


class TestMemory:
    @pytest.mark.parametrize(
        ("gib", "status", "found"),
        [
            ((16, 9, None), "ok", "9.0 of 16.0 GiB free"),
            ((64, 40, 4), "ok", "4.0 of 4.0 GiB free (a limit; the machine has 64.0 GiB)"),
            ((8, 1, None), "limited", "1.0 of 8.0 GiB free"),
            ((64, 40, 1), "missing", "1.0 of 1.0 GiB free (a limit; the machine has 64.0 GiB)"),
            ((1, 0.5, None), "missing", "0.5 of 1.0 GiB free"),
        ],
    )
    def test_it_is_what_the_limit_leaves(self, monkeypatch, gib, status, found):
        """A notebook needs 1.5 GiB, free now or at all; given are total, free and limit."""
        total, free, limit = gib
        state = SimpleNamespace(total=total * GIB, available=free * GIB)
        monkeypatch.setattr("psutil.virtual_memory", lambda: state)
        monkeypatch.setattr(hardware, "memory_limit_bytes", lambda: limit and limit * GIB)
        finding = hardware.memory()

        assert (finding.status, finding.found) == (status, found)


class TestSteadiness:
    @pytest.fixture
    def machine(self, monkeypatch, tmp_path):
        """A machine of 8 CPUs by its load, clock and battery."""

        def make(load=0.5, governor=None, driver="acpi-cpufreq", plugged=None):
            monkeypatch.setattr(os, "cpu_count", lambda: 8)
            monkeypatch.setattr("psutil.getloadavg", lambda: (load, 9.0, 9.0))
            battery = None if plugged is None else SimpleNamespace(power_plugged=plugged)
            monkeypatch.setattr("psutil.sensors_battery", lambda: battery, raising=False)
            monkeypatch.setattr(hardware, "CPU_SETTINGS", tmp_path)
            if governor:
                (tmp_path / "scaling_governor").write_text(f"{governor}\n")
                (tmp_path / "scaling_driver").write_text(f"{driver}\n")
            return hardware.steadiness()

        return make

    def test_a_quiet_machine_is_ok(self, machine):
        """Whether or not its clock can be read."""
        assert machine() == Finding("steadiness", "ok", "load 0.5 on 8 CPUs")
        assert machine(governor="performance", plugged=True).status == "ok"
        assert machine(governor="powersave", driver="intel_pstate").status == "ok"

    def test_what_makes_times_spread_is_named(self, machine):
        """Others at work, the lowest clock, a battery."""
        found = machine(load=5.0, governor="powersave", plugged=False)

        assert found.found == "load 5.0 on 8 CPUs, clock governor powersave, on battery"
        assert found.status == "limited"
        assert "sudo cpupower frequency-set -g performance; plug the power supply in" in found.mend


class TestTorchAndGpu:
    FACTS = {"version": "2.14.1", "cuda": "13.0", "gpu": True, "name": "H100", "capability": [9, 0]}  # noqa: RUF012
    SMI = "NVIDIA H100, 580.65.06, 81920, 71680\nNVIDIA H100, 580.65.06, 81920, 81000\n"

    @pytest.fixture
    def programs(self, monkeypatch):
        """A Python with or without a torch that works, and an nvidia-smi or none."""
        monkeypatch.setitem(sys.modules, "pynvml", None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

        def make(torch, smi=None):
            def run(program, *_, limit_s):
                answer = smi if program == "nvidia-smi" else torch
                if answer is None:
                    raise FileNotFoundError(errno.ENOENT, "No such file", program)
                if isinstance(answer, Exception):
                    raise answer
                text = json.dumps(answer) if isinstance(answer, dict) else answer
                failed = text.startswith("Traceback")
                return SimpleNamespace(returncode=int(failed), stdout="" if failed else text, stderr=text)

            monkeypatch.setattr(gpu, "run_bounded", run)
            return gpu.torch_and_gpu()

        return make

    def test_a_gpu_that_torch_can_use_is_ok(self, programs):
        """The first one is described, as its driver does."""
        torch, card = programs(self.FACTS, self.SMI)

        assert torch == Finding("torch", "ok", "2.14.1, built for CUDA 13.0")
        assert card == Finding("GPU", "ok", "NVIDIA H100, 80 GiB (70 free), driver 580.65.06")

    def test_without_a_gpu_the_course_runs(self, programs):
        """Nobody is told to mend what is not broken."""
        torch, card = programs(self.FACTS | {"cuda": None, "gpu": False}, None)

        assert torch.found == "2.14.1, built without CUDA"
        assert (card.status, card.found) == ("limited", "no NVIDIA GPU with a driver")
        assert card.mend.startswith("without an NVIDIA GPU there is nothing to mend")

    @pytest.mark.parametrize(
        ("changed", "smi", "cost", "mend"),
        [
            ({"gpu": False}, SMI, "torch (built for CUDA 13.0) cannot use it", "install a driver for CUDA 13.0"),
            ({"gpu": False, "cuda": None}, SMI, "torch (built without CUDA) cannot", "install a CUDA build of torch"),
            ({"capability": [7, 5]}, SMI, "compute capability 7.5 has no bf16 units", "use precision='fp16'"),
            ({}, "NVIDIA T, 580, 8192, 512\n", "less than 2 GiB are free", "nvidia-smi shows who holds it"),
        ],
    )
    def test_a_gpu_that_gives_less_is_limited(self, programs, changed, smi, cost, mend):
        """A build, a driver, an old card, somebody else's programs."""
        card = programs(self.FACTS | changed, smi)[1]

        assert (card.status, card.cost[: len(cost)], card.mend[: len(mend)]) == ("limited", cost, mend)

    def test_a_hidden_gpu_is_told_from_a_broken_driver(self, programs, monkeypatch):
        """CUDA_VISIBLE_DEVICES hides cards from torch and not from nvidia-smi."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

        assert programs(self.FACTS | {"gpu": False}, self.SMI)[1].mend.startswith("unset CUDA_VISIBLE_DEVICES")

    def test_a_gpu_of_another_maker_is_no_lack(self, programs):
        """What torch can use is used."""
        assert programs(self.FACTS | {"name": "Instinct"}, None)[1].found.startswith("Instinct, as torch sees it")

    def test_a_torch_that_cannot_be_imported_is_missing(self, programs):
        """Its last words are shown, without folders; the GPU is looked at all the same."""
        torch, card = programs(
            "Traceback\nImportError: /opt/x/libgomp.so.1: cannot open shared object file\n", self.SMI
        )

        assert torch.status == "missing"
        assert torch.found == "it cannot be imported (ImportError: libgomp.so.1: cannot open shared object file)"
        assert card.cost.startswith("torch (which could not be asked) cannot use it")

    def test_a_torch_that_hangs_and_a_driver_that_hangs_are_given_up(self, programs):
        """Both are what a broken driver does."""
        stuck = subprocess.TimeoutExpired("python", 25)
        torch, card = programs(stuck, stuck)

        assert (torch.status, torch.found) == ("limited", "importing it took more than 25 s")
        assert card.found == "no NVIDIA GPU with a driver"

    def test_nvml_is_asked_before_nvidia_smi(self, programs, monkeypatch):
        """Its Python form answers without starting a program, and is closed again."""
        closed = []
        library = SimpleNamespace(
            NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlShutdown=lambda: closed.append(True),
            nvmlDeviceGetHandleByIndex=lambda _: "handle", nvmlDeviceGetName=lambda _: "NVIDIA L4",
            nvmlSystemGetDriverVersion=lambda: "590.1",
            nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=24 * GIB, free=20 * GIB),
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "pynvml", library)

        assert programs(self.FACTS, None)[1].found == "NVIDIA L4, 24 GiB (20 free), driver 590.1"
        assert closed


class TestTensorRt:
    @pytest.mark.parametrize(
        ("code", "status", "found"),
        [
            ("__version__ = '11.4'\nclass Builder: ...", "ok", "11.4"),
            ("__version__ = '11.4'", "limited", "11.4, the lean runtime, which has no builder"),
            ("raise ImportError('/x/libnvinfer.so.11: no such file')", "limited", "installed, but it cannot be"),
            (None, "limited", "not installed"),
        ],
    )
    def test_it_is_imported_in_a_process_of_its_own(self, monkeypatch, tmp_path, code, status, found):
        """One that crashes there takes nothing with it; the lean runtime is told from the whole by its builder."""
        if code:
            (tmp_path / "tensorrt_rtx.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(gpu.util, "find_spec", lambda _: code and "there")
        monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)  # of another test
        finding = gpu.tensorrt("tensorrt_rtx")

        assert (finding.name, finding.status, finding.found[: len(found)]) == ("TensorRT-RTX", status, found)
        assert "tensorrt_rtx" not in sys.modules


class TestCompiler:
    @pytest.fixture
    def script(self, monkeypatch, tmp_path):
        """Let a shell script be the compiler that $CXX names; $4 and $6 are its source and its target on Linux."""
        monkeypatch.setattr(sys, "platform", "linux")

        def write(text):
            program = tmp_path / "c++"
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
            monkeypatch.setenv("CXX", str(program))
            return compiler.compiler()

        return write

    def test_the_machines_own_is_tried(self, monkeypatch):
        """A program with OpenMP is compiled and run, and gives the sum of 0 to 99."""
        monkeypatch.delenv("CXX", raising=False)
        if sys.platform != "linux" or not shutil.which("g++"):
            pytest.skip("g++ is missing")
        found = compiler.compiler()

        assert found.found.startswith("g++ ")
        assert found.found.endswith(" compiles and runs C++ with OpenMP")

    @needs_posix
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("echo /x/probe.cpp:2: fatal error: omp.h: No such file >&2; exit 1", "c++ fails on a ten-line program"),
            (r"printf '#!/bin/sh\necho 1' > $6; chmod +x $6", "what c++ built gives a wrong answer"),
            ("touch $6", "programs may not be run from the temporary folder"),
        ],
    )
    def test_one_that_does_not_serve_torch_compile_is_limited(self, script, text, found):
        """Without OpenMP, miscompiling, or into a folder from which nothing may be run."""
        finding = script(text)

        assert (finding.status, finding.found[: len(found)]) == ("limited", found)
        assert "/x/" not in finding.found

    @needs_posix
    def test_one_that_hangs_is_ended(self, script, monkeypatch):
        """And said to be slow."""
        monkeypatch.setattr(compiler, "COMPILE_LIMIT_S", 0.2)

        assert script("exec sleep 30").found == "c++ took more than 0.2 s for ten lines"

    @needs_posix
    def test_without_the_headers_of_python_inductor_fails_later(self, script, monkeypatch):
        """Its kernels include Python.h, which many systems ship apart."""
        monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
        found = script(r"printf '#!/bin/sh\necho 4950' > $6; chmod +x $6")

        assert found.cost.startswith("Python.h is missing: torch.compile cannot build kernels")
        assert found.mend.startswith(f"sudo apt install python3.{sys.version_info.minor}-dev")

    @pytest.mark.parametrize(
        ("there", "asked", "system", "words"),
        [
            ((), None, "linux", ("no g++", "sudo apt install g++ (Debian, Ubuntu)")),
            ((), None, "darwin", ("no clang++", "xcode-select --install")),
            ((), None, "win32", ("no cl", "install the C++ build tools of Visual Studio")),
            (("clang++",), None, "linux", ("no g++; clang++ is there", "export CXX=clang++")),
            (("g++",), "/opt/x/icpx", "linux", ("$CXX names icpx, which is not there", "unset CXX to use g++")),
        ],
    )
    def test_it_is_looked_for_as_inductor_does(self, monkeypatch, there, asked, system, words):
        """$CXX wins, and of others only the system's usual one counts."""
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
        monkeypatch.setenv("CXX", asked) if asked else monkeypatch.delenv("CXX", raising=False)
        found = compiler.compiler()

        assert found.status == "limited"
        assert (found.found.startswith(words[0]), found.mend.startswith(words[1])) == (True, True)


class TestNetwork:
    @pytest.fixture
    def world(self, monkeypatch):
        """Let each host answer with what it is given."""
        monkeypatch.delenv("PIP_INDEX_URL", raising=False)

        def make(**answers):
            def urlopen(request, timeout):
                assert (request.get_method(), timeout) == ("HEAD", network.PATIENCE_S)
                answer = next(answer for host, answer in answers.items() if host in request.host)
                if isinstance(answer, Exception):
                    raise answer
                return io.BytesIO()

            monkeypatch.setattr("urllib.request.urlopen", urlopen)
            return network.network()

        return make

    def test_who_answers_is_there_also_with_a_refusal(self, world):
        """Nothing is fetched: an error page is an answer."""
        refusal = urllib.error.HTTPError("https://x", 403, "Forbidden", None, None)

        assert world(pypi=None, toronto=refusal) == Finding(
            "network", "ok", "the package index and CIFAR-10's server answer"
        )

    def test_offline_is_limited_and_never_missing(self, world):
        """What is here already works without."""
        found = world(pypi=urllib.error.URLError("no route"), toronto=TimeoutError())

        assert found.status == "limited"
        assert found.found == "no answer from the package index and CIFAR-10's server within 2 s"
        assert found.cost.endswith("what is here already works offline")

    def test_each_silent_host_has_its_own_cost(self, world):
        """A mirror of packages does not bring CIFAR-10."""
        found = world(pypi=None, toronto=TimeoutError())

        assert found.cost.startswith("CIFAR-10 cannot be downloaded")
        assert "packages" not in found.cost

    def test_the_readers_own_index_is_asked_and_not_shown(self, world, monkeypatch):
        """Its address may hold a password."""
        monkeypatch.setenv("PIP_INDEX_URL", "https://jane:secret@mirror.example/pypi")
        found = world(mirror=TimeoutError(), toronto=None)

        assert found.found == "no answer from the package index within 2 s"
        assert "secret" not in str(found)


class TestStorage:
    @pytest.fixture(autouse=True)
    def checkout(self, monkeypatch, tmp_path):
        """An empty checkout with an empty cache."""
        for variable in ("DEPLOYKIT_DATA", "DEPLOYKIT_CACHE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
        (tmp_path / "data").mkdir()
        return tmp_path

    def test_cifar10_is_found_where_the_course_looks(self, checkout, monkeypatch):
        """Nowhere, as an archive, as pictures, and before all in the folder that the reader named."""
        assert storage.dataset().status == "limited"
        assert storage.dataset().found == "CIFAR-10 is not here"
        with (checkout / "data" / "cifar-10-binary.tar.gz").open("wb") as archive:
            archive.truncate(storage.ARCHIVE_BYTES)
        assert storage.dataset() == Finding("dataset", "ok", "CIFAR-10's archive cifar-10-binary.tar.gz")
        for split in ("train", "test"):
            (checkout / "data" / "cifar10" / split / "airplane").mkdir(parents=True)
        assert storage.dataset().found == "CIFAR-10 as pictures in data/cifar10"
        monkeypatch.setenv("DEPLOYKIT_DATA", str(checkout / "data" / "cifar10"))
        assert storage.dataset().found == "the folder that DEPLOYKIT_DATA names, with CIFAR-10's classes"

    def test_a_wrong_folder_or_a_cut_archive_stops_the_course(self, checkout, monkeypatch):
        """Both are said before a notebook stumbles over them, with the folder or file to act on."""
        archive = checkout / "data" / "cifar-10-binary.tar.gz"
        archive.write_bytes(b"half")
        assert storage.dataset().found == "CIFAR-10's archive has 4 bytes instead of 170,052,171"
        assert storage.dataset().mend == f"remove {archive}; deploykit data cifar10 fetches it anew"
        monkeypatch.setenv("DEPLOYKIT_DATA", str(checkout / "nowhere"))
        assert storage.dataset().status == "missing"
        assert storage.dataset().found == f"DEPLOYKIT_DATA={checkout / 'nowhere'} has no train and test"

    def test_a_read_only_checkout_is_fine_with_a_cache_of_ones_own(self, monkeypatch):
        """Thirty readers share one."""
        assert storage.folders() == Finding("folders", "ok", "writable")
        monkeypatch.setattr(os, "access", lambda folder, _: Path(folder).name != "data")

        assert storage.folders() == Finding("folders", "ok", "data/ is read-only, your own cache is writable")

    def test_folders_are_tried_by_writing(self, checkout, monkeypatch):
        """A full drive has its permission bits in order."""

        def full(folder):
            if folder == checkout / "data" / "cache":
                raise OSError(errno.ENOSPC, "No space left on device", str(folder))

        monkeypatch.setattr(storage, "_write_into", full)
        found = storage.folders()

        assert (found.status, found.found) == ("missing", "no cache can be written (No space left on device)")
        assert found.mend.startswith("export DEPLOYKIT_CACHE=folder")

    def test_a_home_and_a_temporary_folder_that_cannot_be_written_limit(self, checkout, monkeypatch):
        """Jupyter and torch.compile need them, the rest does not."""

        def refuse(folder):
            if folder != checkout / "data" / "cache":
                raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(storage, "_write_into", refuse)
        found = storage.folders()

        assert found.status == "limited"
        assert found.mend.startswith("export TMPDIR=folder")
        assert "export HOME=folder" in found.mend

    @pytest.mark.parametrize(
        ("rooms", "status", "mend"),
        [
            ((9, 9), "ok", ""),
            ((0.8, 9), "limited", "make room in {}/data/cache, or set DEPLOYKIT_CACHE to a folder on another disk"),
            ((9, 0.1), "missing", "make room in {}/tmp, or set TMPDIR to a folder on another disk"),
        ],
    )
    def test_the_tighter_of_two_disks_decides(self, checkout, monkeypatch, rooms, status, mend):
        """It is named, since the reader must act on it."""
        free = {checkout / "data" / "cache": rooms[0] * GIB, checkout / "tmp": rooms[1] * GIB}
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(checkout / "tmp"))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
        found = storage.disk()

        assert (found.status, found.mend) == (status, mend.format(checkout))


class TestWorkshop:
    @pytest.mark.parametrize(
        ("machine", "status", "number"),
        [
            ((16, 32, 64, 100), "ok", "enough for 16 readers at once"),
            ((16, 32, 16, 100), "ok", "enough for 10 readers at once"),
            ((16, 32, 64, 4), "ok", "enough for 8 readers at once"),
            ((4, 1, 64, 100), "limited", "enough for 1 reader at once"),
            ((4, 8, 2, 100), "missing", "enough for 0 readers at once"),
        ],
    )
    def test_the_scarcest_thing_limits_the_readers(self, monkeypatch, machine, status, number):
        """A core each, 1.5 GiB each beside 1 GiB for the system, half a GiB of disk each."""
        cores, threads, memory, disk = machine
        monkeypatch.setattr("joblib.cpu_count", lambda **_: cores)
        monkeypatch.setattr(workshop, "allowed_threads", lambda: threads)
        monkeypatch.setattr(workshop, "memory_limit_bytes", lambda: memory * GIB)
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=999 * GIB))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * GIB))
        found = workshop.readers()

        assert (found.status, found.found[: len(number)]) == (status, number)

    @needs_posix
    def test_readers_must_be_able_to_read(self, monkeypatch, tmp_path):
        """A checkout in a closed home, or images that only their owner may read, are the usual mistakes."""
        for variable in ("DEPLOYKIT_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
        images, closed = tmp_path / "data" / "cache" / "x.safetensors", set()
        images.parent.mkdir(parents=True)
        monkeypatch.setattr(workshop, "_others_may", lambda _, path: path not in closed)

        assert workshop.shared_data().cost.startswith("no decoded images are shared")
        images.touch()
        assert workshop.shared_data().status == "ok"
        closed |= {images, tmp_path.parent, tmp_path}
        found = workshop.shared_data()
        assert found.cost.startswith("other users cannot enter the checkout")
        assert found.mend == (
            f"chmod o+x {tmp_path.parent}, or move the checkout out of it; chmod -R go+rX {tmp_path / 'data'}"
        )

    @needs_posix
    def test_permissions_are_those_of_the_files(self, tmp_path):
        """Others may do what the mode grants to others, whatever its owner may."""
        file = tmp_path / "file"
        file.touch(mode=0o600)
        assert not workshop._others_may(stat.S_IROTH, file)
        file.chmod(0o604)
        assert workshop._others_may(stat.S_IROTH, file)

    @needs_posix
    def test_one_folder_of_kernels_for_everybody_is_a_mistake(self, monkeypatch):
        """Each reader's compiled kernels belong into a folder of their own."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/srv/kernels")

        assert "unset TORCHINDUCTOR_CACHE_DIR" in workshop.shared_data().mend

    def test_a_port_that_is_taken_is_named(self, monkeypatch):
        """The server would refuse to start, or start elsewhere than announced."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            monkeypatch.setattr(workshop, "PORTS", {port: "JupyterLab"})
            taken = workshop.ports()

        assert taken.found == f"taken: {port} (JupyterLab)"
        assert (taken.status, workshop.ports().status) == ("limited", "ok")

    @pytest.mark.parametrize(("there", "status"), [(None, "limited"), ("spec", "ok")])
    def test_jupyterhub_is_advised_and_not_required(self, monkeypatch, there, status):
        """Readers may as well bring laptops of their own."""
        monkeypatch.setattr(workshop.util, "find_spec", lambda _: there)
        monkeypatch.setattr(shutil, "which", lambda _: None)

        assert workshop.hub().status == status
