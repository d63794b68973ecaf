"""The glossary explains the words of the course in two languages, and each is used where it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tools.notebooks import read

ROOT = Path(__file__).resolve().parents[1]
FEWEST = 40
CHINESE = re.compile(r"[\u4e00-\u9fff]")


class Entry(NamedTuple):
    """A term in both languages, what is said of it in each, and the two digits of its notebook."""

    term: str
    chinese_term: str
    english: str
    chinese: str
    notebook: str

    @property
    def word(self) -> str:
        """What notebooks call it: of a term with a number the number is enough."""
        return self.term.removesuffix(" sparsity").lower()


def entries() -> list[Entry]:
    """Return what the page's glossary holds."""
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    body = re.search(r"^```\{glossary\}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    found = []
    for part in re.split(r"\n(?=\S)", body.strip()):
        head, _, text = part.partition("\n")
        paragraphs = [" ".join(line.split()) for line in text.strip().split("\n\n")]
        assert len(paragraphs) == 3, f"{head!r} needs English, Chinese and the notebook, a blank line between each"
        term, chinese_term = re.fullmatch(r"(.+) \((.+)\)", head).groups()
        found.append(Entry(term, chinese_term, *paragraphs[:2], re.fullmatch(r"\*Notebook (\d\d)\*", paragraphs[2])[1]))
    return found


GLOSSARY = entries()


def sentences(text: str) -> int:
    """Count sentences, English or Chinese."""
    return len(re.findall(r"[.?!](?= |$)|[。?!]", text))


@pytest.fixture(scope="module")
def words_of() -> dict[str, str]:
    """Return text and code of each notebook by its number, in lower case, on one line."""
    notebooks = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
    texts = {path.name[:2]: " ".join(cell.source for cell in read(path).cells) for path in notebooks}
    return {number: " ".join(text.lower().split()) for number, text in texts.items()}


def test_there_are_enough_terms_in_alphabetical_order() -> None:
    """At least forty, each once, where one looks for it."""
    terms = [entry.term.lower() for entry in GLOSSARY]

    assert len(set(terms)) == len(terms) >= FEWEST
    assert terms == sorted(terms)


def test_an_entry_is_two_sentences_in_each_language() -> None:
    """Two plain English sentences; one or two Chinese ones; a Chinese word for the term."""
    for entry in GLOSSARY:
        assert sentences(entry.english) == 2, entry.english
        assert 1 <= sentences(entry.chinese) <= 2, entry.chinese
        assert CHINESE.search(entry.chinese_term), entry.term
        assert CHINESE.search(entry.chinese), entry.term
        assert not CHINESE.search(entry.english), entry.english


def test_a_term_is_used_in_the_notebook_it_names(words_of: dict[str, str]) -> None:
    """Name the notebook that uses the word, or leave the term out."""
    idle = [
        f"{entry.term}, notebook {entry.notebook}"
        for entry in GLOSSARY
        if not re.search(rf"(?<![a-z0-9]){re.escape(entry.word)}", words_of[entry.notebook])
    ]

    assert idle == []
