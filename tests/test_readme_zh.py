"""The Chinese README says what README.md says: the same code, the same numbers, the same notebooks, the same links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import readme

ROOT = Path(__file__).resolve().parents[1]
NAME = "README.zh-CN.md"
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| \[(\d\d) · [^\]]+\]\(notebooks/(\w+)\.ipynb\) \|.*\| ([\d.]+ / [\d.]+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture(scope="module")
def english() -> str:
    """Return README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def chinese() -> str:
    """Return README.zh-CN.md."""
    return (ROOT / NAME).read_text(encoding="utf-8")


def test_code_blocks_are_identical(english: str, chinese: str) -> None:
    """Commands are not translated: copy the blocks of README.md into README.zh-CN.md, in their order."""
    assert FENCE.findall(english)
    assert FENCE.findall(chinese) == FENCE.findall(english)


def test_its_results_are_the_recorded_ones(chinese: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python make.py readme` fills both READMEs: run it after a measurement."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))

    assert readme.filled(chinese, readme.tables(NAME)) == chinese


def test_the_results_have_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the heads of the tables are translated."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
    heads = {name: set(words) for name, words in readme.WORDS.items()}
    lines = {name: [line for line in readme.tables(name).splitlines() if line not in heads[name]] for name in heads}

    assert lines[NAME] == lines["README.md"]
    assert len(lines[NAME]) > 10


def test_the_table_of_notebooks_has_the_same_rows(english: str, chinese: str) -> None:
    """Number, file and minutes agree: add a row to README.zh-CN.md with its title and question in Chinese."""
    assert len(ROW.findall(english)) > 10
    assert ROW.findall(chinese) == ROW.findall(english)


def test_it_leads_to_everything_that_the_english_one_leads_to(english: str, chinese: str) -> None:
    """No link is lost in translation; what exists in Chinese may take the place of the English page."""
    translated = {target.replace(".zh-CN", "") for target in LINK.findall(chinese)} | {NAME}

    assert sorted(set(LINK.findall(english)) - translated) == []


def test_every_code_span_of_a_command_or_file_is_there(english: str, chinese: str) -> None:
    """What one types or looks for is the same in both: translate the sentence that was added to README.md."""
    spans = {
        name: set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text)))
        for name, text in {"English": english, "Chinese": chinese}.items()
    }

    assert spans["English"] - spans["Chinese"] == set()
