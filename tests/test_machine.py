"""The description of the machine, and how many of its threads this process may use."""

from __future__ import annotations

import getpass
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from joblib.externals.loky.backend import context

from deploykit import machine as module
from deploykit.machine import cpu, cpu_quota, machine, memory_limit_bytes, usable_threads

GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A machine of 64 CPUs whose /proc and control groups hold the given files; joblib sees the same."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for variable in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CONTROL_GROUPS", tmp_path / "cgroup")

    def moved(path):
        return tmp_path / "cgroup" / Path(path).relative_to(GROUPS) if str(path).startswith(str(GROUPS)) else path

    exists = os.path.exists
    monkeypatch.setattr(context, "open", lambda path: Path(moved(path)).open(), raising=False)  # noqa: SIM115 (joblib closes)
    monkeypatch.setattr(os.path, "exists", lambda path: exists(moved(path)))

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


class TestDescription:
    def test_it_names_no_user_host_or_path(self):
        """It goes into committed files."""
        words = {word for value in machine().values() for word in str(value).replace(",", " ").split()}

        assert platform.node() not in words
        assert getpass.getuser() not in words
        assert not [word for word in words if word.startswith(("/", "C:"))]

    def test_it_says_what_decides_about_speed(self):
        """CPU, cores, threads, instruction sets and versions are there."""
        found = machine()

        assert found["threads"] >= found["cores"] >= 1
        assert found["torch"] == torch.__version__
        assert {"cpu", "features", "gpu", "os", "python"} <= found.keys()

    def test_cores_are_physical_and_threads_logical(self, host, monkeypatch):
        """Both come from joblib, which knows affinity and quota; memory is in GiB."""
        monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores=False: 4 if only_physical_cores else 8)
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=12 * 2**30))
        found = machine()

        assert (found["cores"], found["threads"], found["memory_gib"]) == (4, 8, 12.0)

    @pytest.mark.parametrize(
        ("cpuinfo", "described"),
        [
            ("model name\t: Fast 9\nflags\t\t: fpu avx512_vnni avx2\n", ("Fast 9", ["avx2", "avx512_vnni"])),
            ("processor\t: 0\nFeatures\t: fp i8mm asimddp\n", (platform.machine(), ["asimddp", "i8mm"])),
        ],
    )
    def test_the_cpu_is_what_linux_says(self, host, monkeypatch, cpuinfo, described):
        """x86 and Arm write different names; of the features, those that decide about low precision are kept."""
        monkeypatch.setattr("sys.platform", "linux")
        host({"proc/cpuinfo": cpuinfo})

        assert cpu() == described

    def test_the_cpu_is_what_macos_says(self, monkeypatch):
        """Its names become those of Linux; what it lists as 0 is not there."""
        said = {
            ("hw.optional",): "hw.optional.neon: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_BF16: 0",
            ("-n", "machdep.cpu.brand_string"): "Apple M9",
        }
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr(module, "_sysctl", lambda *arguments: said[arguments])

        assert cpu() == ("Apple M9", ["i8mm"])

    def test_elsewhere_the_cpu_is_what_torch_says(self, host, monkeypatch):
        """Without a list, the one level that torch detects stands for it."""
        monkeypatch.setattr("sys.platform", "win32")
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")

        assert cpu()[1] == ["avx2"]


class TestThreads:
    @pytest.mark.parametrize(
        "files",
        [
            pytest.param({"cgroup/cpu.max": "100000 100000\n"}, id="a container, version 2"),
            pytest.param(
                {"cgroup/cpu/cpu.cfs_quota_us": "50000\n", "cgroup/cpu/cpu.cfs_period_us": "50000\n"},
                id="a container, version 1",
            ),
            pytest.param(
                {
                    "proc/self/cgroup": "0::/hub.slice/reader.service\n",
                    "cgroup/hub.slice/reader.service/cpu.max": "5 5\n",
                },
                id="a service, version 2",
            ),
            pytest.param(
                {"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "100 100\n", "cgroup/a/b/cpu.max": "max 100\n"},
                id="a group around it, version 2",
            ),
            pytest.param(
                {
                    "proc/self/cgroup": "5:memory:/r\n4:cpu,cpuacct:/r\n1:name=systemd:/r\n0::/\n",
                    "cgroup/cpu/r/cpu.cfs_quota_us": "100000\n",
                    "cgroup/cpu/r/cpu.cfs_period_us": "100000\n",
                },
                id="a service, version 1",
            ),
        ],
    )
    def test_a_quota_of_one_cpu_on_a_larger_host_gives_one_thread(self, host, files):
        """Whoever set it, and in either version of control groups: joblib alone sees only that of a container."""
        host(files)

        assert usable_threads() == 1

    @pytest.mark.parametrize(("quota", "threads"), [("150000 100000", 2), ("max 100000", 64), ("99900000 100000", 64)])
    def test_part_of_a_cpu_counts_and_no_limit_is_none(self, host, quota, threads):
        """One and a half CPUs feed two threads; a quota above the machine adds none."""
        host({"proc/self/cgroup": "0::/r\n", "cgroup/r/cpu.max": quota})

        assert usable_threads() == threads

    def test_version_1_writes_no_limit_as_minus_one(self, host):
        """Which is no quota, and so is one that this process's group does not have."""
        host(
            {"proc/self/cgroup": "4:cpu:/r\n", "cgroup/cpu/r/cpu.cfs_quota_us": "-1", "cgroup/cpu/other/cpu.max": "1 1"}
        )
        host({"cgroup/cpu/r/cpu.cfs_period_us": "100000"})

        assert cpu_quota() is None

    def test_the_affinity_bounds(self, host, monkeypatch):
        """What taskset or a scheduler took away is not used."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)

        assert usable_threads() == 2

    @pytest.mark.parametrize(
        ("asked", "threads"), [("3", 3), ("3,1", 3), ("999", 64), ("0", 64), ("", 64), ("all", 64)]
    )
    def test_the_reader_may_ask_for_fewer(self, host, monkeypatch, asked, threads):
        """OMP_NUM_THREADS lowers the number and never raises it; of a list, the first level counts."""
        monkeypatch.setenv("OMP_NUM_THREADS", asked)

        assert usable_threads() == threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cgroup/r/memory.max": "max", "cgroup/memory.max": "2147483648"}, 2**31),
        ({"cgroup/memory/r/memory.limit_in_bytes": "1073741824"}, 2**30),
        ({"cgroup/memory/r/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({}, None),
    ],
)
def test_the_memory_is_what_the_groups_allow(host, files, limit):
    """The least of all groups around the process; version 1's "unlimited" is no limit."""
    host({"proc/self/cgroup": "3:memory:/r\n0::/r\n", **files})

    assert memory_limit_bytes() == limit
