#!/usr/bin/env python3
"""The commands of this project, from nothing but Python 3.11 or later: `python3 make.py COMMAND`.

  cookbook   run every notebook and build the site build/cookbook/index.html (`cookbook --help` has options)
  book       the same site from the notebooks as they are committed, without running them: build/book/index.html
  test       the whole test suite, unit tests and notebooks (further arguments go to pytest)
  lab        open the notebooks in JupyterLab, on this machine only
  lint       ruff, import-linter and mypy
  faults     try what goes wrong on real machines, on purpose, and print what became of it (`--short`, `--seed N`)
  notebooks  write notebooks/ anew from notebooks/solutions/ and execute them (for authors)
  readme     fill README's results table from data/results (for authors)
  reference  write docs/cli.md and tests/golden/help anew from the command `deploykit` (for authors)
  workshop   make slides and clean notebooks for teaching in build/workshop, and the page of exercises
  canary     try the newest releases of everything in an environment of its own, and record what breaks (`--help`)
  clean      remove what was built; `clean --all` removes the environment .venv too

Each does its own set-up first: the locked dependencies go into .venv, once, which takes some minutes and 8 GB. Killed
half-way, the same command goes on where it stopped. `--this-python` before the command uses the Python that runs this
file as it is (conda users: environment.yml). Under Windows, or without make, this file is all that is needed; the
Makefile only calls it.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "deploykit needs Python 3.11 or later and this is {}.{} ({}).\nInstall a newer one (python.org, your package "
        "manager, conda, pyenv) and name it: python3.12 make.py cookbook".format(*sys.version_info[:2], sys.executable)
    )

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
VENV = ROOT / ".venv"
LOCK_FILE = ROOT / "requirements.lock"
VENV_GIB = 8  # torch's CUDA build alone is 5.5
DOWNLOAD_GIB = 4
OLDEST_PIP = 25
MOST_WORKERS = 4  # of unit tests: each takes up to 3 GB


class StopError(Exception):
    """The command cannot go on; the text says why and what to do."""


def say(text: str) -> None:
    """Print at once: a pipe would otherwise show the parent's lines after its children's."""
    print(text, flush=True)


# --- one process at a time ------------------------------------------------------------------------------------------


def _try_lock(file: IO[str]) -> bool:
    """Take the operating system's lock on an open file without waiting. The lock dies with the process."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 30)  # Windows locks bytes, and a locked byte cannot be read: lock one behind the text
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        say(f"This drive has no file locks ({error}): do not run two of these commands at once.")
    return True


@contextlib.contextmanager
def only_one(task: str) -> Iterator[None]:
    """Let one process at a time do `task` in this folder; a second one says what it waits for, and waits."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"{task}.lock").open("a+", encoding="utf-8") as file:
        waited = False
        while not _try_lock(file):
            if not waited:
                file.seek(0)
                say(f"Waiting for {file.read() or 'another process'}, which is busy with the {task} here.")
            waited = True
            time.sleep(0.3)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}")
        file.flush()
        os.set_inheritable(file.fileno(), True)  # noqa: FBT003 (a child may hold the lock too: see _pip)
        yield


# --- the environment ------------------------------------------------------------------------------------------------


def venv_python() -> Path:
    """Where .venv has its Python, whether it exists or not."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _wanted() -> str:
    """Return the stamp of a complete environment: a change of lock, package or place makes it incomplete."""
    parts = [LOCK_FILE.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _is_current() -> bool:
    stamp = VENV / "complete"
    return venv_python().exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == _wanted()


def environment() -> Path:
    """The Python of a complete .venv, which is created or completed first where it has to be."""
    if _is_current():
        return venv_python()
    with only_one("environment"):
        if not _is_current():  # the process waited for may have done it
            _complete_environment()
    return venv_python()


def _complete_environment() -> None:
    start = time.monotonic()
    say(f"Setting up the environment {VENV.relative_to(ROOT)} (once; it goes on where it stopped if interrupted)")
    _check_disk()
    with contextlib.suppress(FileNotFoundError):
        (VENV / "complete").unlink()
    if _works(venv_python()):
        _forget_half_installed()
    else:
        _create_venv()
    _upgrade_pip()
    _pip("--require-hashes", "-r", str(LOCK_FILE), what="installing the locked packages (about 3 GB of downloads)")
    _compile()
    _pip("--no-deps", "--no-build-isolation", "-e", str(ROOT), what="installing deploykit itself")
    temporary = VENV / f"complete.{os.getpid()}"
    temporary.write_text(_wanted(), encoding="utf-8")
    temporary.replace(VENV / "complete")
    say(f"  environment complete after {minutes(time.monotonic() - start)}")


def _works(python: Path) -> bool:
    """Whether this Python starts and has pip: one moved, upgraded away or half made does not."""
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def _create_venv() -> None:
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        version = "{}.{}".format(*sys.version_info[:2])
        raise StopError(
            f"this Python ({sys.executable}) comes without the modules venv and ensurepip.\n"
            f"On Debian and Ubuntu: sudo apt install python{version}-venv. Then run the same command again."
        )
    say("  creating it")
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise StopError(f"python -m venv failed:\n{(result.stdout + result.stderr).strip()}")


def _check_disk() -> None:
    needed = max(0, VENV_GIB * 2**30 - _size(VENV))
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise StopError(
            f"the environment needs {needed / 2**30:.1f} GiB more and {ROOT} has {free / 2**30:.1f} GiB free.\n"
            "Free some space, or clone the project onto a larger drive; then run the same command again."
        )
    temporary = Path(tempfile.gettempdir())
    needed = min(needed, DOWNLOAD_GIB * 2**30)
    free = shutil.disk_usage(temporary).free
    if free < needed:
        raise StopError(
            f"the downloads pass through {temporary}, which has {free / 2**30:.1f} of the {needed / 2**30:.1f} GiB "
            "needed free.\nName a folder on a larger drive in the variable TMPDIR; then run the same command again."
        )


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*")) if folder.exists() else 0


def _site_packages() -> Path:
    return next(iter(VENV.glob("lib/python*/site-packages")), VENV / "Lib" / "site-packages")


def _forget_half_installed() -> None:
    """Take away the record of each package that lacks files, so that pip installs it again.

    A pip that is killed leaves a package which the next pip counts as installed.
    """
    for package in importlib.metadata.distributions(path=[str(_site_packages())]):
        files = package.files  # from RECORD, which pip writes last
        if files is None or any(not file.locate().exists() for file in files if file.suffix != ".pyc"):
            # no public name for the package's metadata folder
            shutil.rmtree(package._path, ignore_errors=True)  # type: ignore[attr-defined]  # noqa: SLF001


def _upgrade_pip() -> None:
    command = [venv_python(), "-c", "import pip; print(pip.__version__)"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if int(version.split(".")[0]) < OLDEST_PIP:
        _pip("--upgrade", "pip", what=f"upgrading pip {version.strip()}")


def _pip(*arguments: str, what: str) -> None:
    """Run pip install; shows how far it is, keeps its words in build/environment.log, explains a failure."""
    start = time.monotonic()
    say(f"  {what}")
    options = ["--no-input", "--no-compile", "--disable-pip-version-check"]
    command = [str(venv_python()), "-m", "pip", "install", *options, *arguments]
    if "PIP_RETRIES" not in os.environ:
        command.append("--retries=2")
    words = []
    count = 0
    with (BUILD / "environment.log").open("a", encoding="utf-8") as log:
        print(*command, file=log)
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            close_fds=False,  # when this process is killed, pip goes on for a while and keeps the lock as long
        ) as process:
            for line in process.stdout or ():
                words.append(line)
                log.write(line)
                if match := re.match(r"(Collecting|Requirement already satisfied:) ([\w.-]+)", line):
                    count += 1
                    progress(f"    {count:4} {match[2]}", every=count % 40 == 0)
                elif line.startswith("Installing collected packages"):
                    progress(f"    unpacking {line.count(',') + 1} packages, the slowest part", every=True)
    progress("")
    if process.returncode:
        raise StopError(_explain("".join(words)))
    say(f"    done after {minutes(time.monotonic() - start)}")


def _compile() -> None:
    """Compile the packages with all cores; pip would do it with one. What does not compile is never imported."""
    start = time.monotonic()
    say("  compiling them")
    command = [venv_python(), "-m", "compileall", "-qq", "-j", "0", _site_packages()]
    subprocess.run(command, capture_output=True, check=False)
    say(f"    done after {minutes(time.monotonic() - start)}")


def _explain(words: str) -> str:
    """Turn pip's last words into what happened and what to do."""
    again = "The whole log: build/environment.log. Running the same command again goes on where this stopped."
    errors = [line for line in words.splitlines() if line.startswith("ERROR")] or words.splitlines()[-5:]
    network = (
        r"NewConnectionError|NameResolutionError|name resolution|Name or service not known|getaddrinfo failed|"
        r"ConnectTimeout|ReadTimeout|ProxyError|Network is unreachable|Connection (refused|reset|aborted)|SSLError"
    )
    if re.search(r"No space left|Errno 28|not enough space", words):
        reason = f"the disk is full. Free some space (the environment needs {VENV_GIB} GiB in all)."
    elif re.search(network, words):
        reason = (
            "the package index did not answer. Is this machine online? Behind a proxy set HTTPS_PROXY; with an index "
            "or a folder of wheels of your own set PIP_INDEX_URL or PIP_FIND_LINKS."
        )
    elif "DO NOT MATCH THE HASHES" in words:
        reason = "a downloaded package is not the one that was locked (a broken download or proxy?). It was refused."
    elif "No matching distribution found" in words:
        reason = "a locked package does not exist for this system or Python. Try another Python (3.11 to 3.13)."
    else:
        reason = "pip failed."
    return "\n".join([reason, *errors[:5], again])


# --- running things -------------------------------------------------------------------------------------------------


def minutes(seconds: float) -> str:
    """Write a duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"  # noqa: PLR2004


def progress(line: str, *, every: bool = False) -> None:
    """Show one line that the next one replaces; where there is no terminal print only the lines with `every`."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:{width}}\r", end="", flush=True)
    elif every:
        say(line)


def surroundings() -> dict[str, str]:
    """Environment variables of everything run here: nothing is written to, or read from, the reader's home folder."""
    own = {
        "IPYTHONDIR": str(BUILD / "home" / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(BUILD / "home" / "jupyter"),
        "MPLCONFIGDIR": str(BUILD / "home" / "matplotlib"),
        "PYTHONUTF8": "1",
    }
    return {**os.environ, **own}


def run(*command: str | Path) -> int:
    """Run a command to its end. Ctrl-C is its business: the terminal sends it to both."""
    with subprocess.Popen([str(part) for part in command], cwd=ROOT, env=surroundings()) as process:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def become(*command: str | Path) -> NoReturn:
    """Go on as `command`, so that whoever kills this process kills that one."""
    sys.stdout.flush()
    if os.name == "nt":
        sys.exit(run(*command))
    os.chdir(ROOT)
    os.execve(command[0], [str(part) for part in command], surroundings())  # noqa: S606 (the same as S603)


# --- the commands ---------------------------------------------------------------------------------------------------


def cookbook(python: Path, arguments: list[str]) -> NoReturn:
    """Run the notebooks and build the site."""
    become(python, "-m", "tools.cookbook", *arguments)


def book(python: Path, arguments: list[str]) -> NoReturn:
    """Build the site from the committed notebooks."""
    become(python, "-m", "tools.book", *arguments)


def notebooks(python: Path, arguments: list[str]) -> NoReturn:
    """Write notebooks/ anew from the solutions."""
    become(python, "-m", "tools.regenerate", *arguments)


def test(python: Path, arguments: list[str]) -> int:
    """Run the suite, or what the arguments tell pytest to run."""
    pytest = (python, "-m", "pytest")
    if arguments:
        become(*pytest, *arguments)
    # Files of tests side by side, each with one thread; the notebooks that readers get alone, since they measure.
    alone = "tests/notebooks/test_committed.py"
    workers = str(min(os.cpu_count() or 1, MOST_WORKERS))
    others = run(*pytest, "tests", f"--ignore={alone}", "-n", workers, "--dist", "loadfile", "--durations=15")
    return run(*pytest, alone) or others


def lab(python: Path, arguments: list[str]) -> NoReturn:
    """Open JupyterLab for this machine only, with the token that it makes up."""
    # JupyterLab refuses to start as root, which is what one is in a container; loopback and token stay
    as_root = ["--allow-root"] if os.name != "nt" and os.geteuid() == 0 else []
    become(python, "-m", "jupyterlab", "--ip=127.0.0.1", *as_root, *arguments, ROOT / "notebooks")


def faults(python: Path, arguments: list[str]) -> NoReturn:
    """Try what goes wrong, on purpose."""
    become(python, "-m", "tools.faults", *arguments)


def readme(python: Path, arguments: list[str]) -> NoReturn:
    """Fill README's results table from data/results."""
    become(python, "-m", "tools.readme", *arguments)


def reference(python: Path, arguments: list[str]) -> NoReturn:
    """Write anew what documents the command."""
    become(python, "-m", "tools.cli_reference", *arguments)


def workshop(python: Path, arguments: list[str]) -> NoReturn:
    """Make what a teacher needs."""
    become(python, "-m", "tools.workshop", *arguments)


def canary(python: Path, arguments: list[str]) -> NoReturn:
    """Try the newest releases."""
    become(python, "-m", "tools.canary", *arguments)


def lint(python: Path, arguments: list[str]) -> int:
    """Run every check, also after one has failed."""
    if arguments:
        raise StopError("lint takes no arguments")
    checks = {
        "ruff check": [python, "-m", "ruff", "check"],
        "ruff format": [python, "-m", "ruff", "format", "--check"],
        "import-linter": [python, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        "mypy": [python, "-m", "mypy"],
    }
    failed = []
    for name, command in checks.items():
        say(f"--- {name}")
        if run(*command):
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return bool(failed)


def clean(arguments: list[str]) -> int:
    """Remove what was built. The lock files stay: a process may hold them."""
    if arguments not in ([], ["--all"]):
        raise StopError(f"clean takes no argument but --all, and was given {' '.join(arguments)}")
    with only_one("environment"), only_one("cookbook"), only_one("book"):
        for path in BUILD.iterdir():
            if path.suffix != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", ".hypothesis"):
            shutil.rmtree(ROOT / name, ignore_errors=True)
        if arguments:
            shutil.rmtree(VENV, ignore_errors=True)
    say("removed what was built" + (" and the environment" if arguments else "; .venv stays (clean --all)"))
    return 0


COMMANDS = {
    "cookbook": cookbook,
    "book": book,
    "notebooks": notebooks,
    "test": test,
    "lab": lab,
    "lint": lint,
    "faults": faults,
    "readme": readme,
    "reference": reference,
    "workshop": workshop,
    "canary": canary,
}


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit status."""
    this_python = arguments[:1] == ["--this-python"]
    command, *rest = arguments[this_python:] or ["--help"]
    if command in ("--help", "-h", "help"):
        say((__doc__ or "").strip())
        return 0
    if command == "clean":
        return clean(rest)
    if command not in COMMANDS:
        raise StopError(f"there is no command {command!r}; there are {', '.join(COMMANDS)} and clean")
    return COMMANDS[command](Path(sys.executable) if this_python else environment(), rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StopError as error:
        sys.exit(f"\nmake.py stops: {error}")
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from here.")
        sys.exit(130)
    except OSError as error:
        sys.exit(f"\nmake.py stops: {error}\nThe same command, once that is put right, goes on where this stopped.")
