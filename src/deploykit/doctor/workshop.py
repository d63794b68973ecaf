"""Whether several readers can work on this machine at once, and how many."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import tempfile
from importlib import util
from pathlib import Path

from deploykit import places
from deploykit.doctor.finding import LIMITED, MISSING, OK, Doubt, Finding, judged
from deploykit.doctor.hardware import GIB, READER_GIB
from deploykit.machine import allowed_threads, memory_limit_bytes

SYSTEM_GIB = 1.0  # for the system and JupyterHub
READER_DISK_GIB = 0.5  # compiled kernels, ledger, notebooks, and where need be a cache of one's own
QUICK_THREADS = 2  # what the minutes in README are for
PORTS = {8000: "JupyterHub", 8888: "JupyterLab"}


def readers() -> Finding:
    """Count how many readers cores, memory and disk suffice for."""
    import joblib
    import psutil

    threads = allowed_threads()
    cores = min(joblib.cpu_count(only_physical_cores=True), threads)
    memory_gib = min(psutil.virtual_memory().total, memory_limit_bytes() or sys.maxsize) / GIB
    disk_gib = shutil.disk_usage(tempfile.gettempdir()).free / GIB
    rooms = {
        "cores": cores,
        "memory": max(0, int((memory_gib - SYSTEM_GIB) / READER_GIB)),
        "disk": int(disk_gib / READER_DISK_GIB),
    }
    number, scarce = min(rooms.values()), min(rooms, key=lambda what: rooms[what])
    found = (
        f"enough for {number} {'reader' if number == 1 else 'readers'} at once: {cores} cores at one each, "
        f"{memory_gib:.1f} GiB of memory at {READER_GIB} each, {disk_gib:.0f} GiB of disk at {READER_DISK_GIB} each"
    )
    mend = f"{scarce} run out first: add to them, or let readers work on laptops of their own"
    if number == 0:
        return Finding("workshop: readers", MISSING, found, "no notebook runs to its end", mend)
    if number == 1:
        return Finding("workshop: readers", LIMITED, found, "a second reader spoils the times of the first", mend)
    undisturbed = threads // QUICK_THREADS
    if undisturbed < number:
        found += f"; with two threads each, as the course's minutes assume, {undisturbed}"
    return Finding("workshop: readers", OK, found)


def shared_data() -> Finding:
    """See whether other users can enter the checkout and read its data, which need not be writable for them."""
    name, root, data = "workshop: shared data", places.repository(), places.data_folder()
    if os.name == "nt":
        return Finding(name, OK, "not examined on Windows: share the folder for reading")
    doubts = []
    if closed := [folder for folder in (data, root, *root.parents) if not _others_may(stat.S_IXOTH, folder)]:
        cost = "other users cannot enter the checkout, so each needs a copy and a .venv (7 GB) of their own"
        doubts.append(Doubt(cost, f"chmod o+x {closed[-1]}, or move the checkout out of it"))
    images = sorted((data / "cache").glob("*.safetensors"))
    if not images:
        cost = "no decoded images are shared: every reader decodes and keeps their own (0.2 GB)"
        doubts.append(Doubt(cost, "deploykit data, once, as the owner of the checkout"))
    elif not all(_others_may(stat.S_IROTH, file) for file in images):
        cost = "other users cannot read the decoded images: every reader decodes and keeps their own (0.2 GB)"
        doubts.append(Doubt(cost, f"chmod -R go+rX {data}"))
    if named := [name for name in ("TORCHINDUCTOR_CACHE_DIR", "DEPLOYKIT_CACHE") if os.environ.get(name)]:
        cost = f"{' and '.join(named)} set for everybody makes readers write into one folder"
        doubts.append(Doubt(cost, f"unset {' '.join(named)}: each reader then has a folder of their own"))
    return judged(name, "the checkout can be read by other users" if not doubts else "for one user", doubts)


def ports() -> Finding:
    """See whether the usual ports are free on the loopback."""
    taken = [f"{port} ({program})" for port, program in PORTS.items() if not _free(port)]
    if not taken:
        return Finding("workshop: ports", OK, f"{' and '.join(map(str, PORTS))} are free")
    cost = "a program listens there: the server will refuse to start, or take the next port"
    mend = "end that program, or choose with --port"
    return Finding("workshop: ports", LIMITED, f"taken: {', '.join(taken)}", cost, mend)


def hub() -> Finding:
    """See whether JupyterHub is installed, which gives every reader a login, a server and limits."""
    if util.find_spec("jupyterhub") or shutil.which("jupyterhub"):
        found = "installed; give each reader cpu_limit = 1 and mem_limit = '4G', so that nobody slows the others"
        return Finding("workshop: JupyterHub", OK, found)
    cost = "readers on one server need a login and a server each, started by hand and without limits"
    mend = "pip install jupyterhub jupyterhub-systemdspawner, or let readers work on their own laptops"
    return Finding("workshop: JupyterHub", LIMITED, "not installed", cost, mend)


def _others_may(do: int, path: Path) -> bool:
    return bool(path.stat().st_mode & do)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
