"""The Chinese README says what README.md says: the same code, the same numbers, the same notebooks, the same links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tools import readme

ROOT = Path(__file__).resolve().parents[1]
NAME = "README.zh-CN.md"
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| \[(\d\d) · [^\]]+\]\(notebooks/(\w+)\.ipynb\) \|.*\| ([\d.]+ / [\d.]+) \|$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
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

    assert readme.filled(chinese, readme.blocks(NAME)) == chinese


def test_the_results_have_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the heads of the tables and two sentences are translated."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(ROOT))
    lines = {name: "\n".join(readme.blocks(name).values()).splitlines() for name in readme.WORDS}
    translated = [(one, other) for one, other in zip(*lines.values(), strict=True) if one != other]
    numbers = [[sorted(NUMBER.findall(text)) for text in pair] for pair in translated]

    assert len(translated) == len(dataclasses.fields(readme.Words))
    assert all(one == other for one, other in numbers)
    assert len(lines[NAME]) > len(translated) + 20


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
