"""Search in English and in Chinese: a run of Chinese characters is found by each two that stand side by side."""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

CHINESE = "\u3400-\u9fff\uf900-\ufaff"
_PARTS = re.compile(rf"[{CHINESE}]+|[^\W{CHINESE}]+")


class SearchBoth(SearchEnglish):
    """English words, stemmed, and Chinese pairs; the browser takes a query apart in the same way."""

    js_splitter_code = r"""
function splitQuery(query) {
  const chinese = /^[\u3400-\u9fff\uf900-\ufaff]{3,}$/;
  const part = /[\u3400-\u9fff\uf900-\ufaff]+|(?:(?![\u3400-\u9fff\uf900-\ufaff])[\p{L}\p{N}_])+/gu;
  return (query.match(part) || []).flatMap((run) =>
    chinese.test(run) ? Array.from(run.slice(1), (second, index) => run[index] + second) : [run]);
}
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 (Sphinx's name)
        """Take a text apart into words, and into pairs where it is Chinese."""
        return [word for part in _PARTS.findall(input) for word in _words(part)]


def _words(part: str) -> list[str]:
    if not re.match(rf"[{CHINESE}]", part) or len(part) == 1:
        return [part]
    return [part[index : index + 2] for index in range(len(part) - 1)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it in English's place."""
    app.add_search_language(SearchBoth)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
