"""CONTRIBUTING, SECURITY and CITATION say what is true of this checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import deploykit
import make

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "SECURITY.md")
LINES_OF_A_PAGE = 80
# What only a reader's machine has.
OF_THE_READER = ("notebooks/16_my_topic.ipynb", "config.json")


def text(name: str) -> str:
    """Return a page of the root folder."""
    return (ROOT / name).read_text(encoding="utf-8")


def paths_in(page: str) -> list[str]:
    """Return what looks like a file or folder of this project in code spans and links."""
    spans = re.findall(r"`([\w./-]+)`|\]\((?!https?:)([\w./-]+)\)", page)
    named = [one or other for one, other in spans]
    return [name for name in named if "/" in name or name.endswith((".md", ".toml", ".yml", ".py"))]


def test_a_missing_file_would_be_found() -> None:
    """Names in code spans and in links are seen, other code is not."""
    assert paths_in("`tests/a.py`, `make lint`, [x](B.md), `weights_only=True`, [y](https://e.org/c.md)") == [
        "tests/a.py", "B.md",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    """No page sends anybody to a file that is not there."""
    named = [path for path in paths_in(text(name)) if path not in OF_THE_READER]

    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_commands_that_are_named_exist(name: str) -> None:
    """`make x` and `python3 make.py x` are commands of make.py."""
    named = re.findall(r"\bmake(?:\.py)? ([a-z]+)", " ".join(re.findall(r"`[^`]+`|^\$ .+$", text(name), re.MULTILINE)))

    assert named
    assert sorted(set(named) - set(make.COMMANDS)) == []


def test_every_house_rule_is_explained() -> None:
    """Each file of tests/house stands in CONTRIBUTING: add its row, and say what it holds one to."""
    rules = {f"tests/house/{path.name}" for path in (ROOT / "tests" / "house").glob("test_*.py")}

    assert rules
    assert rules - set(paths_in(text("CONTRIBUTING.md"))) == set()


def test_contributing_is_one_page() -> None:
    """What is longer is not read before the first change."""
    assert len(text("CONTRIBUTING.md").splitlines()) <= LINES_OF_A_PAGE


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff has what the format asks for, and the version and licence of the package."""
    citation = yaml.safe_load(text("CITATION.cff"))

    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == deploykit.__version__
    assert text("LICENSE").startswith(f"{citation['license']} License")
