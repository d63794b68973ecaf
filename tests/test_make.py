"""make.py and tools/cookbook.py, on a small project of their own: what goes wrong is named, and nothing else stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nbformat
import psutil
import pytest

import make
from tools import cookbook

ROOT = Path(__file__).resolve().parents[1]
PLAIN_BOOK = 'project = "toy"\nextensions = ["myst_nb"]\nnb_execution_mode = "off"\nexclude_patterns = ["_generated"]\n'
TABLE = "from IPython.display import Markdown\nMarkdown('| this run | |\\n|:--|:--|\\n| from | a folder |')"
FIGURE = """from base64 import b64decode
from IPython.display import Image, display
dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
display(Image(b64decode(dot)), metadata={"image/png": {"alt": "one dot"}})"""
SLOW = """import os, pathlib, time
pathlib.Path("pid").write_text(f"{os.getpid()}\\n")
time.sleep(99)"""
TIMES = """import time
begun = time.time()
time.sleep(1)
open("spans", "a").write(f"[{begun}, {time.time()}]\\n")"""


def write_notebook(project: Path, name: str, *cells: str) -> None:
    """Write a notebook with a title, a promise, a formula, a parameters cell and `cells`."""
    parameters = nbformat.v4.new_code_cell('BUDGET, DATA = "full", "none"', metadata={"tags": ["parameters"]})
    text = nbformat.v4.new_markdown_cell(f"# Title of {name}\n\nWhat it promises.\n\nFor $x$:\n\n$$\\sum_i x_i$$")
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=[text, parameters, *code]), project / "notebooks" / f"{name}.ipynb")


def new_project(folder: Path, *, plain_book: bool) -> Path:
    """Lay out a project with our make.py, tools and book (or one that builds quickly), and no notebook."""
    shutil.copy(ROOT / "make.py", folder)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    if plain_book:
        (folder / "docs" / "conf.py").write_text(PLAIN_BOOK, encoding="utf-8")
    for name in ("notebooks", "src"):
        (folder / name).mkdir()
    (folder / "requirements.lock").write_text("", encoding="utf-8")
    return folder


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `make cookbook` with the Python of the tests."""
    command = [sys.executable, "make.py", "--this-python", "cookbook", *arguments]
    # A background job of a shell, such as a CI run may be, ignores Ctrl-C and passes that on to what it starts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end and return everything that was printed."""
    return process.communicate(timeout=120)[0]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def project(tmp_path) -> Path:
    """Return a project without notebooks whose book builds quickly."""
    return new_project(tmp_path, plain_book=True)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> tuple[Path, int, str]:
    """Run six notebooks, four of which end badly, with our own book: the project, exit status and output."""
    project = new_project(tmp_path_factory.mktemp("troubled"), plain_book=False)
    write_notebook(project, "00_good", "print(BUDGET, DATA)", FIGURE, TABLE)
    write_notebook(project, "01_fails", "x = 1\nraise ValueError('<img src=x onerror=alert(1)> ```')", "print('late')")
    write_notebook(project, "02_hangs", "while True: pass")
    write_notebook(project, "03_killed", "import os\nos.kill(os.getpid(), 9)")
    write_notebook(project, "04_memory", "raise MemoryError('4 TB')")
    write_notebook(project, "05_loud", "for _ in range(1000): print('x' * 100_000)")
    process = start(project, "--timeout", "8")
    output = finish(process)
    return project, process.returncode, output


def verdict(output: str, name: str) -> str:
    """Return what the summary says of one notebook, on one line."""
    rows = output.split("building the site")[1]
    return " ".join(re.search(rf"^  {name} .*(?:\n      .*)*", rows, re.MULTILINE)[0].split())


@pytest.mark.parametrize(
    ("arguments", "variable", "limit"),
    [
        (["--budget", "smoke"], None, 300),
        ([], None, 300),
        (["--budget", "full"], None, 14400),
        (["--budget", "full", "--timeout", "20"], "30", 20),
        (["--budget", "full"], "30", 30),
    ],
)
def test_a_cell_gets_the_seconds_of_its_budget(monkeypatch, arguments, variable, limit):
    """Hours with the full one, where single cells train for many minutes; what is asked for wins."""
    monkeypatch.delenv("DEPLOYKIT_CELL_TIMEOUT", raising=False)
    if variable:
        monkeypatch.setenv("DEPLOYKIT_CELL_TIMEOUT", variable)

    assert cookbook.options(arguments).timeout == limit


class TestNotebooksThatEndBadly:
    """One run, looked at from several sides."""

    def test_the_others_run_to_their_end(self, troubled):
        """Four failures stop neither the last notebook nor the book, and the exit status says that some failed."""
        project, status, output = troubled

        assert status == 1
        assert "2 of 6 notebooks ran to their end" in output
        assert (project / "build" / "cookbook" / "notebooks" / "05_loud.html").exists()

    def test_a_failed_cell_is_named_with_its_error(self, troubled):
        """The parameters are cell 1, what was injected is not counted, and the error's line is given."""
        words = verdict(troubled[2], "01_fails")

        assert "error where: code cell 2, which begins 'x = 1'" in words
        assert "error: ValueError: <img src=x onerror=alert(1)> ```" in words
        assert "remedy: open it (make lab)" in words

    def test_a_hanging_cell_is_ended(self, troubled):
        """An endless loop ends at the limit, and the remedy says how to move it."""
        words = verdict(troubled[2], "02_hangs")

        assert "time-out where: code cell 2, which begins 'while True: pass'" in words
        assert "did not finish within 8 s remedy: give each cell longer" in words

    def test_a_killed_kernel_is_told_from_an_error(self, troubled):
        """A kernel that the system killed, as it does for want of memory, is named so."""
        assert "kernel died where: code cell 2, which begins 'import os'" in verdict(troubled[2], "03_killed")

    def test_a_memory_error_has_its_own_remedy(self, troubled):
        """MemoryError is a kind of its own."""
        words = verdict(troubled[2], "04_memory")

        assert "out of memory where: code cell 2" in words
        assert "remedy: close other programs" in words

    def test_a_flood_of_output_is_cut(self, troubled):
        """Of 100 MB that a cell prints 50 kB are kept, with a word about the rest, and the notebook goes on."""
        executed = troubled[0] / "build" / "notebooks" / "05_loud.ipynb"

        assert " ok" in verdict(troubled[2], "05_loud")
        assert "cut here: this cell put out more than 50,000 characters" in executed.read_text(encoding="utf-8")
        assert executed.stat().st_size < 200_000

    def test_no_process_is_left(self, troubled):
        """Neither a kernel nor its starter survives the run."""
        folder = str(troubled[0])
        left = [
            process.pid for process in psutil.process_iter(["cwd"]) if (process.info["cwd"] or "").startswith(folder)
        ]

        assert left == []


class TestTheBook:
    """The site of the same run."""

    @pytest.fixture
    def page(self, troubled) -> Callable[[str], str]:
        """Return a function that reads a page of the site."""
        return lambda name: (troubled[0] / "build" / "cookbook" / name).read_text(encoding="utf-8")

    def test_a_failure_is_shown_in_its_page(self, page):
        """The page says what happened and where, with markup shown as text, and what did not run is there too."""
        failed = page("notebooks/01_fails.html")

        assert "This notebook did not run to its end here" in failed
        assert "&lt;img src=x onerror=alert(1)&gt; ```" in failed
        assert "<img src=x" not in failed
        assert "late" in failed

    def test_the_first_page_lists_every_notebook(self, page):
        """Title, promise and what became of it in this run."""
        first = page("index.html")

        assert first.count("What it promises.") == 6
        assert re.search(r"Title of 02_hangs</span></a> · time-out after \d+ s", first)

    def test_parameters_reach_the_notebook_and_not_the_page(self, page):
        """The injected values are used, and the cell that holds them is not shown."""
        good = page("notebooks/00_good.html")

        assert "quick auto" in good
        assert "# Parameters" not in good

    def test_a_figure_keeps_its_alt_text(self, page):
        """The alt text that the output carries is the image's in the page."""
        assert 'alt="one dot"' in page("notebooks/00_good.html")

    def test_a_table_that_a_cell_shows_is_a_table(self, page):
        """The banner of every notebook is one; plain CommonMark would leave its bars standing."""
        assert '<td class="text-left"><p>a folder</p></td>' in page("notebooks/00_good.html")

    def test_formulas_are_mathml(self, page):
        """A formula needs no script: the browser draws it."""
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page("notebooks/00_good.html")

    def test_nothing_is_loaded_from_elsewhere(self, troubled):
        """No page or style names a script, style, font or image of another host."""
        site = troubled[0] / "build" / "cookbook"
        loading = re.compile(
            r"(?:<(?:script|img|link|iframe)[^>]*(?:src|href)=|url\()[\"']?(?:https?:)?//", re.IGNORECASE
        )
        files = [*site.rglob("*.html"), *site.rglob("*.css")]

        assert len(files) > 10
        assert [file.name for file in files if loading.search(file.read_text(encoding="utf-8"))] == []

    def test_it_builds_without_a_warning(self, troubled):
        """Sphinx has nothing to complain about."""
        assert "WARNING" not in troubled[2]


class TestInterruption:
    """A run that is stopped, by its reader or by force."""

    @pytest.fixture
    def slow(self, project) -> Path:
        """Return a project whose first notebook counts its runs and whose second writes its process id and sleeps."""
        write_notebook(project, "00_first", "with open('runs', 'a') as file: file.write('x')")
        write_notebook(project, "01_slow", SLOW)
        return project

    def interrupted(self, project: Path, with_signal: int) -> tuple[int, int, str]:
        """Send a signal while the second notebook sleeps: its kernel's process, exit status and output."""
        process = start(project)
        note = project / "notebooks" / "pid"
        wait_for(lambda: note.exists() and note.read_text(encoding="utf-8").endswith("\n"))
        process.send_signal(with_signal)
        output = finish(process)
        return int(note.read_text(encoding="utf-8")), process.returncode, output

    def test_ctrl_c_ends_it_with_a_word(self, slow):
        """Exit status 130, one sentence, no traceback, no kernel left."""
        kernel, status, output = self.interrupted(slow, signal.SIGINT)

        assert status == 130
        assert "Stopped; no kernel is left running. The same command goes on with the notebook" in output
        assert "Traceback" not in output
        assert not psutil.pid_exists(kernel)

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
    def test_a_killed_run_is_continued_and_a_complete_one_is_not(self, slow):
        """After kill -9 the kernel ends too, what had finished is kept, and then nothing is left to go on with."""
        kernel, _, _ = self.interrupted(slow, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(kernel))
        write_notebook(slow, "01_slow", "1 + 1")

        second = finish(start(slow))

        assert "00_first  ok, kept from the interrupted run" in second
        assert "2 of 2 notebooks ran to their end" in second
        assert (slow / "notebooks" / "runs").read_text(encoding="utf-8") == "x"
        assert not (slow / "build" / "unfinished-run.json").exists()

    def test_two_at_once_take_turns(self, project):
        """The second says for which process it waits, and both succeed without their notebooks overlapping."""
        write_notebook(project, "00_times", TIMES)

        first, second = start(project), start(project)
        outputs = [finish(first), finish(second)]
        spans = [
            json.loads(line) for line in (project / "notebooks" / "spans").read_text(encoding="utf-8").splitlines()
        ]

        assert (first.returncode, second.returncode) == (0, 0)
        assert sum("Waiting for process" in output for output in outputs) == 1
        assert max(spans[0][0], spans[1][0]) > min(spans[0][1], spans[1][1])


class TestEnvironment:
    """Setting .venv up, without installing anything."""

    @pytest.fixture
    def place(self, tmp_path, monkeypatch) -> Path:
        """Point make at an empty project."""
        for name in ("requirements.lock", "pyproject.toml"):
            (tmp_path / name).write_text("", encoding="utf-8")
        monkeypatch.setattr(make, "ROOT", tmp_path)
        monkeypatch.setattr(make, "BUILD", tmp_path / "build")
        monkeypatch.setattr(make, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(make, "LOCK_FILE", tmp_path / "requirements.lock")
        return tmp_path

    def test_it_is_complete_until_the_lock_changes(self, place):
        """A stamp of another lock, or none, means that there is work to do."""
        python = make.venv_python()
        python.parent.mkdir(parents=True)
        python.touch()
        before = make._is_current()
        (place / ".venv" / "complete").write_text(make._wanted(), encoding="utf-8")
        after = make._is_current()
        (place / "requirements.lock").write_text("another", encoding="utf-8")

        assert (before, after, make._is_current()) == (False, True, False)

    def test_a_half_installed_package_is_forgotten(self, place):
        """A package that lacks its record, or a file of it, is no longer counted as installed; a whole one is."""
        site = place / ".venv" / "lib" / "python3.11" / "site-packages"
        for name in ("whole", "unrecorded", "lacking"):
            (site / f"{name}-1.0.dist-info").mkdir(parents=True)
            (site / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (site / "whole.py").touch()
        (site / "whole-1.0.dist-info" / "RECORD").write_text("whole.py,,\n")
        (site / "lacking-1.0.dist-info" / "RECORD").write_text("lacking.py,,\n")

        make._forget_half_installed()

        assert [path.name for path in sorted(site.glob("*.dist-info"))] == ["whole-1.0.dist-info"]

    def test_a_small_disk_is_noticed_first(self, place, monkeypatch):
        """What is needed, what is free, and what to do, before anything is created."""
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9 * 2**30, 8 * 2**30, 2**30))

        with pytest.raises(make.StopError, match=r"needs 8\.0 GiB more and .* has 1\.0 GiB free\.\nFree some space"):
            make.environment()

        assert not (place / ".venv").exists()

    def test_a_python_without_venv_is_explained(self, place, monkeypatch):
        """Debian's Python comes without ensurepip: the message names the package to install."""
        monkeypatch.setattr(make.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())

        with pytest.raises(make.StopError, match=r"sudo apt install python3\.\d+-venv"):
            make._create_venv()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("ERROR: [Errno 28] No space left on device", "the disk is full"),
            (
                "WARNING: Retrying … NameResolutionError(…)\nERROR: No matching distribution found",
                "Is this machine online?",
            ),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "It was refused"),
            ("ERROR: No matching distribution found for torch==2.14.1", "Try another Python"),
            ("ERROR: something new", "ERROR: something new"),
        ],
    )
    def test_what_pip_says_is_explained(self, words, said):
        """Full disk, no network, wrong hash, no such package: each its remedy, and where the whole log is."""
        explained = make._explain(words)

        assert said in explained
        assert "build/environment.log" in explained

    def test_an_old_python_is_told_what_to_do(self):
        """Python 3.8 gets two lines instead of a traceback."""
        code = (
            f"import sys; sys.version_info = (3, 8, 0); exec(open({str(ROOT / 'make.py')!r}, encoding='utf-8').read())"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert result.returncode == 1
        assert "needs Python 3.11 or later and this is 3.8" in result.stderr
        assert "Traceback" not in result.stderr

    def test_make_imports_the_standard_library_only(self):
        """It runs where nothing is installed."""
        code = "import sys; import make; print(*{name.partition('.')[0] for name in sys.modules})"
        command = [sys.executable, "-S", "-c", code]
        modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

        assert set(modules) - set(sys.stdlib_module_names) <= {"make", "__main__", "__mp_main__"}


class TestCommandLine:
    """What is typed wrongly, and cleaning up."""

    def test_an_unknown_command_is_answered_with_the_known_ones(self):
        """No traceback, no set-up."""
        with pytest.raises(make.StopError, match=r"no command 'cook'; there are cookbook, book, notebooks, test, lab"):
            make.main(["cook"])

    def test_every_command_is_explained_and_in_the_makefile(self):
        """`make help` and the Makefile know each command."""
        targets = re.search(r"^(cookbook .*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[
            1
        ].split()

        assert set(targets) == {*make.COMMANDS, "clean"}
        assert [name for name in targets if f"\n  {name} " not in make.__doc__] == []

    def test_clean_leaves_the_environment_and_the_locks(self, project):
        """The lock files stay, since a process may hold one, and .venv goes only with --all."""
        (project / "build" / "cookbook").mkdir(parents=True)
        (project / ".venv").mkdir()
        subprocess.run([sys.executable, "make.py", "clean"], cwd=project, check=True, capture_output=True)
        once = sorted(path.name for path in (project / "build").iterdir()), (project / ".venv").exists()
        subprocess.run([sys.executable, "make.py", "clean", "--all"], cwd=project, check=True, capture_output=True)

        assert once == (["book.lock", "cookbook.lock", "environment.lock"], True)
        assert not (project / ".venv").exists()

    def test_a_name_that_fits_no_notebook_is_answered_with_those_there_are(self, project):
        """`cookbook 07` says which numbers exist."""
        write_notebook(project, "00_good", "1")

        assert "no notebook begins with 07; there are 00_good" in finish(start(project, "07"))


def test_the_package_is_installed_from_this_checkout():
    """The tests test these files and not another copy."""
    try:
        found = distribution("deploykit").read_text("direct_url.json")
    except PackageNotFoundError:
        pytest.skip("deploykit is not installed: run python3 make.py test")

    assert json.loads(found)["url"] == ROOT.as_uri()
