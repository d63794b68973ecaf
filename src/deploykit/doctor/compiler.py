"""The C++ compiler that torch.compile calls, tried on a small program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from deploykit.doctor.finding import LIMITED, OK, Doubt, Finding, judged, last_words, run_bounded

COMPILE_LIMIT_S = 20.0
NAME = "compiler"
COST = "torch.compile cannot build kernels for the CPU: compiled fp32 and int8 are 'not measurable here'"
INSTALL = {
    "linux": "sudo apt install g++ (Debian, Ubuntu), sudo dnf install gcc-c++ (Fedora), or conda install gxx",
    "darwin": "xcode-select --install",
    "win32": "install the C++ build tools of Visual Studio and start from their command prompt",
}

# What Inductor's kernels need: C++17, OpenMP and a folder from which built code may be run.
PROGRAM = """\
#include <cstdio>
#ifdef _OPENMP
#include <omp.h>
#endif
int main() {
  int sum = 0;
  #pragma omp parallel for reduction(+ : sum)
  for (int i = 0; i < 100; ++i) { if constexpr (sizeof(int) > 1) sum += i; }
  std::printf("%d\\n", sum);
}
"""
ANSWER = "4950"


def compiler() -> Finding:
    """Compile and run a program with OpenMP in a temporary folder, as Inductor would."""
    # Inductor takes $CXX, else this one; it does not look for another.
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    asked = os.environ.get("CXX")
    chosen = asked or usual
    install = INSTALL.get(sys.platform, INSTALL["linux"])
    if shutil.which(chosen) is None:
        if asked:
            found = f"$CXX names {Path(asked).name}, which is not there"
            return Finding(NAME, LIMITED, found, COST, f"unset CXX to use {usual}, or let it name a compiler")
        if sys.platform == "linux" and shutil.which("clang++"):
            found = "no g++; clang++ is there, but torch.compile does not look for it"
            return Finding(NAME, LIMITED, found, COST, "export CXX=clang++")
        return Finding(NAME, LIMITED, f"no {usual}", COST, install)
    if sys.platform == "win32":
        return Finding(NAME, OK, f"{usual} is there (not tried)")
    return _tried(chosen, install)


def _tried(chosen: str, install: str) -> Finding:
    name = Path(chosen).name
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text(PROGRAM, encoding="ascii")
        # Apple's compiler has no OpenMP of its own; Inductor brings torch's.
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
        try:
            built = run_bounded(
                chosen, "-std=c++17", "-O1", *openmp, str(source), "-o", str(program), limit_s=COMPILE_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            found = f"{name} took more than {COMPILE_LIMIT_S:g} s for ten lines"
            return Finding(NAME, LIMITED, found, "torch.compile takes minutes", "wait until the machine is less busy")
        if built.returncode:
            complaint = next((line for line in built.stderr.splitlines() if "error" in line), built.stderr)
            found = f"{name} fails on a ten-line program with OpenMP ({last_words(complaint)})"
            return Finding(NAME, LIMITED, found, COST, install)
        try:
            answer = run_bounded(str(program), limit_s=COMPILE_LIMIT_S).stdout.strip()
        except PermissionError:
            mend = "export TMPDIR=folder, a folder of yours that allows programs to be run"
            return Finding(NAME, LIMITED, "programs may not be run from the temporary folder", COST, mend)
    if answer != ANSWER:
        return Finding(NAME, LIMITED, f"what {name} built gives a wrong answer", COST, install)
    return judged(NAME, f"{name} {_version(chosen)} compiles and runs C++ with OpenMP", _doubts())


def _version(chosen: str) -> str:
    return run_bounded(chosen, "-dumpfullversion", "-dumpversion", limit_s=COMPILE_LIMIT_S).stdout.strip()


def _doubts() -> list[Doubt]:
    if Path(sysconfig.get_path("include"), "Python.h").exists():
        return []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [Doubt(f"Python.h is missing: {COST}", f"sudo apt install python{version}-dev (Debian, Ubuntu)")]
