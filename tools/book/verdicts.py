"""The page of verdicts: every piece of advice under test, its source, the number that decides, and what came out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from deploykit.advice import Claim
from deploykit.claims import HOLDS, NOT_MEASURABLE, REFUTED, UNDECIDED, claims
from deploykit.text import escape_markdown
from tools.book.pages import Page, Verdict

CLASSES = {HOLDS: "holds", REFUTED: "refuted", UNDECIDED: "undecided", NOT_MEASURABLE: "unmeasured"}
NONE_HERE = "no verdict in this run"
_ADDRESS = re.compile(
    r"arXiv:(?P<arxiv>\d{4}\.\d{4,5})"
    r"|(?P<repository>[\w-]+/[\w-]+)#(?P<issue>\d+)"
    r"|(?P<address>\b(?:[\w-]+\.)+(?:com|org|io|ai|dev)\b(?:/[\w./~-]*[\w/])?)"
)


def found(pages: list[Page]) -> dict[str, Verdict]:
    """Return the verdicts of these notebooks by claim."""
    return {verdict.claim: verdict for page in pages for _, verdict in page.verdicts}


def badge(word: str) -> str:
    """Return a verdict's word as HTML, in its colour."""
    return f'<span class="dk-verdict dk-{CLASSES.get(word, "unmeasured")}">{escape(word)}</span>'


def linked(source: str) -> str:
    """Return a claim's source as Markdown, with links where it names an address, a paper on arXiv or an issue."""
    parts, end = [], 0
    for match in _ADDRESS.finditer(source):
        if match["arxiv"]:
            address = f"https://arxiv.org/abs/{match['arxiv']}"
        elif match["issue"]:
            address = f"https://github.com/{match['repository']}/issues/{match['issue']}"
        else:
            address = f"https://{match['address']}"
        parts += [escape_markdown(source[end : match.start()]), f"[{escape_markdown(match[0])}]({address})"]
        end = match.end()
    return "".join([*parts, escape_markdown(source[end:])])


def listing(pages: list[Page]) -> str:
    """Return the Markdown of all verdicts: a table to sort and filter, then each claim in full."""
    known = found(pages)
    return "\n".join([*_table(known), *_details(pages, known)])


def _table(known: dict[str, Verdict]) -> Iterator[str]:
    heads = ("advice", "verdict", "measured, and what was claimed", "notebook")
    yield '<table class="table dk-sortable dk-filter"><thead><tr>'
    yield f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>"
    for claim in claims().values():
        verdict = known.get(claim.id)
        yield (
            f'<tr><td><a href="#claim-{claim.id}">{escape(claim.words)}</a></td>'
            f"<td>{badge(verdict.word if verdict else NONE_HERE)}</td>"
            f"<td>{escape(verdict.numbers if verdict else '')}</td>"
            f"<td>{_cell(verdict, claim.notebook) if verdict else claim.notebook}</td></tr>"
        )
    yield "</tbody></table>\n"


def _details(pages: list[Page], known: dict[str, Verdict]) -> Iterator[str]:
    titles = {page.number: page.title for page in pages}
    number = ""
    for claim in claims().values():
        if claim.notebook != number:
            number = claim.notebook
            yield f"## {escape_markdown(titles.get(number, f'Notebook {number}'))}\n"
        yield _detail(claim, known.get(claim.id))


def _detail(claim: Claim, verdict: Verdict | None) -> str:
    lines = [f"(claim-{claim.id})=", f"### {escape_markdown(claim.words)}\n"]
    if verdict:
        lines += [f"{badge(verdict.word)} {escape_markdown(verdict.numbers)}.\n", f"{_where(verdict)}\n"]
        lines += [f"*But* {escape_markdown(claim.but)}.\n"] if claim.but else []
    else:
        lines += [f"{badge(NONE_HERE)}\n"]
    return "\n".join(
        [
            *lines,
            f"*Source:* {linked(claim.source)}.  ",
            f"*Put to the test:* {escape_markdown(claim.measured)}  ",
            f"*Holds if* {escape_markdown(claim.quantity)} is **{escape_markdown(claim.stake)}**. `{claim.id}`\n",
        ]
    )


def _where(verdict: Verdict) -> str:
    page, banner = verdict.page, verdict.page.banner
    facts = [banner[key] for key in ("machine", "device", "versions", "dataset", "budget") if key in banner]
    return f"Recorded in {_cell(verdict, page.title)}{': ' if facts else ''}{escape_markdown(' · '.join(facts))}."


def _cell(verdict: Verdict, words: str) -> str:
    """Return a link to the cell that judged, as HTML."""
    return f'<a href="notebooks/{verdict.page.name}.html#verdict-{verdict.claim}">{escape(words)}</a>'
