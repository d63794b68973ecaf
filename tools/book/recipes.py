"""The index of the cookbook: what a reader wants, the notebook, the cell to copy and the module behind it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

from make import ROOT
from tools.book.pages import Page

WISHES = ROOT / "docs" / "recipes.toml"


@dataclass(frozen=True)
class Recipe:
    """A wish and what answers it.

    Attributes:
        want: completes the words "I want to".
        notebook: two digits.
        use: dotted name of a function or class of deploykit.
    """

    want: str
    notebook: str
    use: str

    @property
    def module(self) -> str:
        """The module that defines what is used."""
        return self.use.rpartition(".")[0]


def load(path: Path = WISHES) -> list[Recipe]:
    """Read the table of wishes.

    Raises:
        TypeError: an entry lacks a key or has another one.
    """
    return [Recipe(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["recipe"]]


def table(pages: list[Page], names: list[str]) -> str:
    """Return the index as HTML, of the notebooks that this site has.

    Args:
        pages: the site's notebooks.
        names: modules that have a page in the reference.
    """
    by_number = {page.number: page for page in pages}
    rows = [_row(recipe, by_number[recipe.notebook], names) for recipe in load() if recipe.notebook in by_number]
    if not rows:
        return "No notebook of this site has a recipe."
    head = "<th>I want to …</th><th>recipe</th><th>notebook</th><th>minutes</th><th>from the module</th>"
    return (
        f'<table class="table dk-sortable dk-filter"><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def _row(recipe: Recipe, page: Page, names: list[str]) -> str:
    module = escape(recipe.module)
    if recipe.module in names:
        anchor = f"api/{recipe.module.split('.')[1]}.html#{recipe.use}"
        words = recipe.use.removeprefix("deploykit.").replace(".", ".<wbr>")
        module = f'<a href="{anchor}"><code>{words}</code></a>'
    copy = f'<a href="notebooks/{page.name}.html#copy-this">copy this</a>' if page.copies() else ""
    quick = page.planned[0] if page.planned else ""
    return (
        f'<tr><td>{escape(recipe.want)}</td><td class="dk-whole">{copy}</td>'
        f'<td><a href="notebooks/{page.name}.html">{escape(page.title)}</a></td><td>{quick}</td><td>{module}</td></tr>'
    )
