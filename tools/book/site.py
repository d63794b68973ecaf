"""Lay the pages of the site together and have Sphinx build it; the old site stays until the new one is whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat

from make import BUILD, ROOT, say, surroundings
from tools.book import landing, recipes, reference, results, root_files, verdicts
from tools.book.pages import Outcome, Page

SITE = BUILD / "cookbook"
SCALE = {  # what the page on more than one machine shows
    "server": "server",
    "p50_ms_with_1_client": "p50 of a lone client [ms]",
    "requests_per_s_with_32_clients": "requests/s, 32 clients",
    "core_us_per_request_with_32_clients": "processor time a request [us]",
    "idle_cores": "cores busy while idle",
    "memory_mib": "memory [MiB]",
}


def build(outcomes: Mapping[str, Outcome | None], executed: Path, *, site: Path = SITE) -> Path | None:
    """Build the site; what was there before stays until the new one is whole.

    Args:
        outcomes: notebook's name without suffix -> what became of it, in the order of the pages; None where it is shown
            as committed, without having been run.
        executed: folder of the executed copies; a failed notebook's may be missing.
        site: folder to build; one beside it, with the suffix ``.work``, holds what it is made from.

    Returns:
        The site's first page, or None when Sphinx failed, which it has then told.
    """
    pages = [_page(name, outcome, executed) for name, outcome in outcomes.items()]
    work = site.with_suffix(".work")
    lay_out(pages, work / "pages")
    return _sphinx(pages, work, site)


def _page(name: str, outcome: Outcome | None, executed: Path) -> Page:
    path = executed / f"{name}.ipynb"
    return Page(name, path if path.exists() else ROOT / "notebooks" / path.name, outcome)


def lay_out(pages: list[Page], folder: Path) -> None:
    """Write into ``folder`` everything that Sphinx reads: docs/, the notebooks, and the pages made from records."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    (folder / "notebooks").mkdir()
    for page in pages:
        nbformat.write(page.shown(), folder / "notebooks" / f"{page.name}.ipynb")
    root_files.write(folder)
    names = reference.write(folder)
    generated = folder / "_generated"
    generated.mkdir(exist_ok=True)
    parts = {
        "made": landing.made(pages),
        "scores": landing.scores(pages),
        "point": landing.point(generated),
        "table": landing.table(),
        "paths": landing.paths(pages),
        "notebooks": landing.notebooks(pages),
        "recipes": recipes.table(pages, names),
        "verdicts": verdicts.listing(pages),
        "records": results.listing(),
        "scale": results.excerpt("serving-scale", SCALE),
        "toctrees": toctrees(folder),
    }
    for name, text in parts.items():
        (generated / f"{name}.md").write_text(f"{text.strip()}\n", encoding="utf-8")


def toctrees(folder: Path) -> str:
    """Return the lists of those pages of the first level that may be absent; Sphinx warns of a name without a page."""
    listed = ("index", "recipes", "reading", "verdicts", "results", "faults", "cli", "doctor", "glossary")
    others = sorted(path.stem for path in folder.glob("*.md") if path.stem not in listed)
    groups = {
        "Look up": ("api/index", "cli", "doctor", *others, "glossary"),
        "Teach": ("workshop/index", "workshop/index.zh-CN"),
        "About": ("about/trust", "about/contributing", "about/changelog", "about/zh-cn"),
    }
    titles = {"about/zh-cn": "中文 <about/zh-cn>"}
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
        + "\n".join(titles.get(name, name) for name in names if (folder / f"{name}.md").is_file())
        + "\n```\n"
        for caption, names in groups.items()
    )


def _sphinx(pages: list[Page], work: Path, site: Path) -> Path | None:
    fresh = site.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(work / "doctrees")]
    result = subprocess.run(
        [*sphinx, str(work / "pages"), str(fresh)],
        cwd=ROOT,
        env=surroundings(),
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if result.stderr.strip():
        say(result.stderr.strip())
    if result.returncode:
        return None
    for page in pages:
        shutil.copy(page.path, fresh / "notebooks")
    shutil.rmtree(site, ignore_errors=True)
    fresh.rename(site)
    return site / "index.html"
