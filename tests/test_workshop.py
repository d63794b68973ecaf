"""The workshop kit is made from the notebooks, and its pages agree with them, with make.py and with the lock."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.version import Version

import make
from tools import notebooks, workshop

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "workshop"
SLOT = re.compile(r"^\| (\d\d):(\d\d) \| (\d\d):(\d\d) \| ([^|]+) \|([^|]*)\| ([\d.]+) \|$", re.MULTILINE)
FENCE = re.compile(r"^```console.*?^```$", re.DOTALL | re.MULTILINE)
LARGEST_SHARE_OF_A_SLOT = 0.25  # the rest is talk, predictions and exercises


def text(name: str) -> str:
    """Return a page of the kit."""
    return (PAGES / name).read_text(encoding="utf-8")


def timetables(name: str) -> list[list[tuple[int, int, str, list[str], float]]]:
    """Return each timetable of a page: begin and end in minutes of the day, what, notebooks, machine minutes."""
    found = []
    for table in re.split(r"^## ", text(name), flags=re.MULTILINE):
        rows = [
            (60 * int(a) + int(b), 60 * int(c) + int(d), what, re.findall(r"\d\d", numbers), float(minutes))
            for a, b, c, d, what, numbers, minutes in SLOT.findall(table)
        ]
        found += [rows] if rows else []
    return found


@pytest.fixture(scope="module")
def quick_minutes() -> dict[str, float]:
    """Return the minutes that each notebook says of itself, by number."""
    return {path.name[:2]: workshop.minutes(notebooks.read(path))[0] for path in workshop.sources()}


@pytest.fixture(scope="module")
def exercises() -> dict[str, workshop.Exercise]:
    """Return every exercise of the course by number."""
    found = [exercise for path in workshop.sources() for exercise in workshop.exercises(notebooks.read(path))]
    return {exercise.number: exercise for exercise in found}


class TestTimetables:
    def test_half_a_day_and_a_whole_one(self) -> None:
        """Two timetables without gaps: at most four and at most eight hours."""
        tables = timetables("index.md")

        assert [table[-1][1] - table[0][0] <= 60 * hours for table, hours in zip(tables, (4, 8), strict=True)]
        assert all(before[1] == after[0] for table in tables for before, after in itertools.pairwise(table))

    def test_machine_minutes_are_those_of_the_notebooks(self, quick_minutes) -> None:
        """A notebook that takes longer now changes the timetable: correct the row, and its Chinese twin."""
        for _, _, what, numbers, minutes in itertools.chain(*timetables("index.md")):
            assert minutes == sum(quick_minutes[number] for number in numbers), what

    def test_there_is_time_to_talk(self) -> None:
        """Machines take at most a quarter of a slot."""
        for begin, end, what, _, minutes in itertools.chain(*timetables("index.md")):
            assert minutes <= LARGEST_SHARE_OF_A_SLOT * (end - begin), what

    def test_exercises_that_are_named_exist(self, exercises) -> None:
        """Each is one of a notebook in the same row."""
        for _, _, what, numbers, _ in itertools.chain(*timetables("index.md")):
            for number in re.findall(r"\d\d\.\d", what):
                assert number in exercises
                assert number[:2] in numbers

    def test_the_chinese_page_has_the_same_times_and_commands(self) -> None:
        """Only words differ between index.md and index.zh-CN.md: change both."""
        strip = [[(*row[:2], *row[3:]) for row in table] for table in timetables("index.md")]

        assert [[(*row[:2], *row[3:]) for row in table] for table in timetables("index.zh-CN.md")] == strip
        assert FENCE.findall(text("index.zh-CN.md")) == FENCE.findall(text("index.md"))


class TestPages:
    def test_the_exercises_are_current(self) -> None:
        """docs/workshop/exercises.md is what the notebooks hold today."""
        assert workshop.PAGE.read_text(encoding="utf-8") == workshop.page(), "run `python make.py workshop`"

    @pytest.mark.parametrize("name", ["index.md", "index.zh-CN.md"])
    def test_sizes_are_those_of_the_set_up(self, name) -> None:
        """Disk and downloads are what make.py asks for."""
        assert f"{make.VENV_GIB} GB" in text(name)
        assert re.search(r"about (\d) GB of downloads", Path(make.__file__).read_text(encoding="utf-8"))[1] == "3"
        assert "3 GB" in text(name)

    def test_answers_point_to_sections_that_exist(self) -> None:
        """Each question of the page leads to a notebook, and to sections of it."""
        sources = {path.name[:2]: notebooks.read(path).cells for path in workshop.sources()}
        texts = {number: "\n".join(cell.source for cell in cells) for number, cells in sources.items()}
        pointers = re.findall(r"notebook (\d\d)(?:, sections? (\d+)(?: and (\d+))?)?", text("questions.md"))

        assert len(pointers) > 15
        for number, *sections in pointers:
            for section in filter(None, sections):
                assert re.search(rf"^## {section} · ", texts[number], re.MULTILINE), (number, section)

    def test_the_lock_is_above_the_floors(self) -> None:
        """What is locked has none of the holes that the page names, and each floor names its source."""
        floors = re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \| (.+) \|$", text("server.md"), re.MULTILINE)
        lines = (ROOT / "requirements.lock").read_text(encoding="utf-8")
        lock = dict(re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE))
        locked = {package: (lock[package], floor) for package, floor, _ in floors if package in lock}

        assert {"jupyterlab", "jupyter-server"} <= locked.keys()
        assert [name for name, (version, floor) in locked.items() if Version(version) < Version(floor)] == []
        assert [package for package, _, why in floors if not re.search(r"CVE-\d{4}-\d+|GHSA-", why)] == []


class TestExercises:
    def test_one_is_taken_apart(self) -> None:
        """Question, expectations, hint, answer without markers, and what is said afterwards."""
        cells = [
            new_markdown_cell("## Exercises\n\n**99.1 · Twice.** Write it, as in [98](98_x.ipynb)."),
            new_code_cell("def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"),
            new_code_cell(
                'exercise("99.1", double, expect={"2 is 4": lambda f: f(2) == 4}, hint="Add.", well_done="Yes.")'
            ),
        ]
        (found,) = workshop.exercises(new_notebook(cells=cells))

        assert (found.number, found.title, found.question) == ("99.1", "Twice", "Write it, as in 98.")
        assert (found.answer, found.expected) == ("def double(x):\n    return 2 * x", ["2 is 4"])
        assert (found.hint, found.well_done) == ("Add.", "Yes.")

    def test_one_without_a_check_is_refused(self) -> None:
        """An exercise that cannot be checked is not printed as if it could."""
        cells = [new_markdown_cell("**99.1 · Twice.** Write it."), new_code_cell("double = 2")]

        with pytest.raises(ValueError, match=r"99\.1 has no solution, or no exercise"):
            workshop.exercises(new_notebook(cells=cells))


class TestTwins:
    def test_a_twin_tells_neither_answers_nor_what_to_read(self, tmp_path) -> None:
        """Solutions are blanked, outputs are gone, the sentences under figures too; questions and headings stay."""
        cells = [
            new_markdown_cell("## 1 · Fast?\n\n**Before you run it:** how fast?"),
            new_code_cell("### BEGIN SOLUTION\nx = 42\n### END SOLUTION"),
            new_markdown_cell("**Read it.** Very.\n\nAnd now?"),
            new_markdown_cell("**Read it.** Slow."),
        ]
        notebooks.write(new_notebook(cells=cells), tmp_path / "99_x.ipynb")
        twin = workshop.clean_twin(tmp_path / "99_x.ipynb")

        assert [cell.source for cell in twin.cells] == [cells[0].source, "# YOUR CODE HERE\nx = ...", "And now?"]
        nbformat.validate(twin)

    def test_the_command_builds_decks_and_twins(self, tmp_path, monkeypatch) -> None:
        """One of each for a notebook, and the page; what was there before is gone."""
        source = workshop.sources()[0]
        monkeypatch.setattr(workshop, "WORKSHOP", tmp_path / "workshop")
        monkeypatch.setattr(workshop, "PAGE", tmp_path / "exercises.md")
        monkeypatch.setattr(workshop, "sources", lambda: [source])
        (tmp_path / "workshop" / "old").mkdir(parents=True)

        assert workshop.main([]) == 0
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
        assert found == ["exercises.md", f"workshop/clean/{source.name}", f"workshop/slides/{source.stem}.html"]
        assert not (tmp_path / "workshop" / "old").exists()

    def test_a_notebook_that_was_not_executed_is_named(self, tmp_path, monkeypatch, capsys) -> None:
        """It has no figures to show: there is no deck of it, and the status is 1."""
        notebooks.write(new_notebook(cells=[new_markdown_cell("# 99 · X")]), tmp_path / "99_x.ipynb")
        monkeypatch.setattr(workshop, "WORKSHOP", tmp_path / "workshop")
        monkeypatch.setattr(workshop, "PAGE", tmp_path / "exercises.md")
        monkeypatch.setattr(workshop, "sources", lambda: [tmp_path / "99_x.ipynb"])

        assert workshop.main([]) == 1
        assert "no slides for 99_x: not executed yet; python make.py notebooks 99" in capsys.readouterr().out
