"""Docstrings of deploykit read as they are meant: an indented example is shown as it stands, a bar is a bar.

And shown as they should be: the parameters of a long signature are lines, and not a list without terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
_CODE = re.compile(r"(``.+?``)")
_SIGNATURE = re.compile(r'(<dt class="sig [^>]*>)(.*?)(</dt>)', re.DOTALL)
_MARK = re.compile(r"[|]|(?<!\S)\*(?=[\s,.)])")  # a bar, or an asterisk that emphasises nothing


def as_text(lines: list[str]) -> Iterator[str]:
    """Yield a docstring's lines so that what reStructuredText would take for markup of its own is text.

    Args:
        lines: of a docstring in Google's form, its indentation removed.
    """
    literal = sections = False
    blank, last = True, ""
    for line in lines:
        sections = sections or bool(_SECTION.match(line))
        indented = line.startswith("    ") and not sections
        if indented and blank and not literal and not last.startswith((" ", "-")):
            yield from ("::", "")
            literal = True
        literal = literal and (indented or not line)
        yield line if literal else _escaped(line)
        blank, last = not line, line or last


def _escaped(line: str) -> str:
    return "".join(part if part.startswith("``") else _MARK.sub(r"\\\g<0>", part) for part in _CODE.split(line))


def _process(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = as_text(lines)


def signatures_as_lines(body: str) -> str:
    """Return a page's HTML with the lists in its signatures, which readers' software trips over, made into lines."""

    def lines(match: re.Match[str]) -> str:
        inner = re.sub(r"<(/?)dl\b[^>]*>", lambda tag: _tag(tag[1], "sig-lines"), match[2])
        return match[1] + re.sub(r"<(/?)dd\b[^>]*>", lambda tag: _tag(tag[1], "sig-line"), inner) + match[3]

    body = body.replace('">Variables<span class="colon">', '">Attributes<span class="colon">')  # as in the docstring
    return _SIGNATURE.sub(lines, body)


def _tag(closing: str, name: str) -> str:
    return "</span>" if closing else f'<span class="{name}">'


def _show(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    if "body" in context:
        context["body"] = signatures_as_lines(context["body"])


def _skip(_app: Sphinx, _what: str, _name: str, obj: Any, _skip: bool, _options: Any) -> bool | None:  # noqa: FBT001
    """Skip what another package put into a class, matplotlib's ``set`` for instance."""
    return None if (getattr(obj, "__module__", None) or "deploykit").startswith("deploykit") else True


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all three; docstrings are changed before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    app.connect("html-page-context", _show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
