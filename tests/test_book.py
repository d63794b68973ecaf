"""The site of the committed notebooks, in a headless browser: whole, quiet, findable, readable on a phone, offline."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import io
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from sphinx.util.inventory import InventoryFile

from deploykit.claims import claims
from tools import book
from tools.book import reference
from tools.book.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# In the dark as well, and looked at for contrast, which takes axe longer than everything else: a page of each kind.
OF_EACH_KIND = ("index", "verdicts", "cli", "api/distillation", "notebooks/01_baseline_and_measuring")
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
UNNAMED = "[...document.querySelectorAll('img')].filter(image => !image.alt.trim()).map(image => image.src)"
FILE_NAMED = "[...document.querySelectorAll('img')].filter(i => /\\.(png|svg)$/.test(i.alt)).map(i => i.alt)"


@dataclass(frozen=True)
class Site:
    """A built site and what Sphinx had to say."""

    folder: Path
    words: str

    @functools.cached_property
    def pages(self) -> dict[str, str]:
        """Every page's HTML by its path without suffix."""
        found = {
            path.relative_to(self.folder).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(self.folder.rglob("*.html"))
            if "_static" not in path.parts  # where the theme leaves its templates
        }
        assert len(found) > len(NOTEBOOKS) + 50
        return found


@dataclass
class Visits:
    """What was wrong with the pages when a browser opened them, by kind and page."""

    faults: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def note(self, kind: str, page: str, found: list[str]) -> None:
        """Remember faults of one kind, if there are any."""
        if found:
            self.faults.setdefault(kind, {})[page] = found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """Build the site once, from the committed notebooks."""
    words = io.StringIO()
    folder = tmp_path_factory.mktemp("book") / "site"
    with contextlib.redirect_stdout(words):
        first = book.build({path.stem: None for path in NOTEBOOKS}, ROOT / "notebooks", site=folder)
    assert first == folder / "index.html", words.getvalue()
    return Site(folder, words.getvalue())


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Start the system's Chromium once."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("the book is tested in a browser and there is none: apt-get install chromium (or google-chrome)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def watched(browser, *, viewport: dict[str, int], scheme: str, home: str) -> tuple[object, list[str], list[str]]:
    """Open a tab; what it logs as an error, and what it asks for outside ``home``, is collected in two lists."""
    # Half-way through the change from light to dark a button's words have no contrast, and axe looks then.
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    errors: list[str] = []
    outside: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
    page.on("request", lambda request: None if request.url.startswith((home, "data:")) else outside.append(request.url))
    return page, errors, outside


def violations(page, *, contrast: bool) -> list[str]:
    """Return what axe finds on an open page that is serious or critical, with the first place of each."""
    from axe_playwright_python.sync_playwright import Axe

    options = {
        "resultTypes": ["violations"],
        "rules": {"color-contrast": {"enabled": contrast}},
        "preload": False,  # it would fetch stylesheets, which browsers refuse in a folder
    }
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']} ({len(each['nodes'])}): {each['nodes'][0]['html'][:160]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def visits(site, browser) -> Visits:
    """Open every page at the width of a phone, in the light, some in the dark and at a desk's width as well."""
    seen = Visits()
    others = [name for name in site.pages if name not in OF_EACH_KIND]
    rounds = [(PHONE, "light", others), (PHONE, "light", OF_EACH_KIND), (DESK, "dark", OF_EACH_KIND)]
    for viewport, scheme, names in rounds:
        page, errors, outside = watched(browser, viewport=viewport, scheme=scheme, home=site.folder.as_uri())
        for name in names:
            page.goto((site.folder / f"{name}.html").as_uri())
            seen.note("errors", name, errors[:])
            seen.note("outside", name, outside[:])
            seen.note("too wide", name, ["wider than the window"] if page.evaluate(TOO_WIDE) else [])
            seen.note("unnamed", name, page.evaluate(UNNAMED) + page.evaluate(FILE_NAMED))
            seen.note(
                "scheme", name, [] if page.evaluate("document.documentElement.dataset.theme") == scheme else ["?"]
            )
            seen.note("axe", f"{name}, {scheme}", violations(page, contrast=names is OF_EACH_KIND))
            errors.clear()
            outside.clear()
        page.close()
    return seen


def dead_links(pages: dict[str, str], folder: Path) -> list[str]:
    """Return the links of ``pages`` that lead to no file of ``folder``, or to no place in its page."""
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    dead = []
    for name, text in pages.items():
        for raw in set(re.findall(r'<a\b[^>]*?\bhref="([^"]*)"', text)):
            target, _, place = unquote(html.unescape(raw)).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (folder / name).parent / target.partition("?")[0] if target else folder / f"{name}.html"
            page = path.resolve().relative_to(folder.resolve()).with_suffix("").as_posix()
            if not path.is_file():
                dead.append(f"{name}: {raw}")
            elif place and path.suffix == ".html" and place not in places[page]:
                dead.append(f"{name}: {raw}, no such place")
    return dead


class TestBuilding:
    def test_sphinx_has_nothing_to_complain_about(self, site):
        """Every docstring, page and notebook is read as it was meant."""
        assert site.words == ""

    def test_the_download_is_the_committed_notebook(self, site):
        """Beside each notebook's page lies its file, to the byte, and the page offers it."""
        for path in NOTEBOOKS:
            assert (site.folder / "notebooks" / path.name).read_bytes() == path.read_bytes()
            assert f'href="{path.name}" download' in site.pages[f"notebooks/{path.stem}"]

    def test_every_public_name_is_documented(self, site):
        """The reference has every function and class that deploykit does not keep to itself."""
        known = InventoryFile.loads((site.folder / "objects.inv").read_bytes(), uri="").data
        documented = {name for kind in ("py:function", "py:class", "py:exception") for name in known[kind]}
        wanted = {
            f"{module}.{name}"
            for modules in reference.modules(ROOT / "src" / "deploykit").values()
            for module in modules
            for name in reference.public_names(reference.source_of(module))
        }

        assert len(wanted) > 400
        assert sorted(wanted - documented) == []

    def test_every_claim_is_shown_with_its_verdict(self, site):
        """Each piece of advice has its place, and each verdict of a notebook leads to the cell that judged."""
        text = site.pages["verdicts"]
        judged = [verdict for path in NOTEBOOKS for _, verdict in Page(path.stem, path, None).verdicts]
        assert len(judged) > len(NOTEBOOKS)

        assert [claim for claim in claims() if f'id="claim-{claim}"' not in text] == []
        assert [one.claim for one in judged if f"{one.page.name}.html#verdict-{one.claim}" not in text] == []

    def test_every_recorded_run_is_shown(self, site):
        """Each file of data/results is there with the command that reproduces it."""
        names = [path.stem for path in (ROOT / "data" / "results").glob("*.json")]
        assert names

        assert [name for name in names if f'id="run-{name.replace(".", "-")}"' not in site.pages["results"]] == []


class TestLinks:
    def test_a_dead_link_is_found(self, tmp_path):
        """A missing file, and a missing place in a page that exists."""
        pages = {"a": '<a href="b.html#here"></a><a href="b.html#gone"></a><a href="c.html"></a>', "b": '<p id="here">'}
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")

        assert sorted(dead_links(pages, tmp_path)) == ["a: b.html#gone, no such place", "a: c.html"]

    def test_every_link_inside_leads_somewhere(self, site):
        """Files and places in pages alike."""
        assert dead_links(site.pages, site.folder) == []


class TestInTheBrowser:
    @pytest.mark.parametrize(
        "kind",
        [
            "errors",  # in the console, or a file that is not there
            "outside",  # asked for from another host
            "too wide",
            "unnamed",  # a figure whose alt text is missing, or the name of a file
            "scheme",  # light or dark as the reader's system asks
            "axe",  # serious or critical
        ],
    )
    def test_no_page_has(self, visits, kind):
        """Every page is quiet, offline, as wide as its window, named for those who do not see, and accessible."""
        assert visits.faults.get(kind, {}) == {}

    @pytest.mark.parametrize(
        ("words", "page"),
        [
            ("calibration", "glossary.html"),
            ("剪枝", "glossary.html"),
            ("quantize_static", "api/static_quantization.html"),
        ],
    )
    def test_search_finds(self, site, browser, words, page):
        """English, Chinese and code, in a folder without a server."""
        tab, errors, outside = watched(browser, viewport=DESK, scheme="light", home=site.folder.as_uri())
        tab.goto(f"{(site.folder / 'search.html').as_uri()}?q={words}")
        tab.wait_for_selector(".search-summary:has-text('found')")
        found = tab.eval_on_selector_all(
            "#search-results li a", "links => links.map(link => link.getAttribute('href'))"
        )
        tab.close()

        assert any(link.partition("#")[0].partition("?")[0].endswith(page) for link in found), found
        assert (errors, outside) == ([], [])

    def test_it_works_from_a_static_host(self, site, browser):
        """Over HTTP search shows excerpts, which it fetches, and nothing goes wrong."""
        handler = functools.partial(Quiet, directory=str(site.folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            home = f"http://127.0.0.1:{server.server_address[1]}/"
            tab, errors, outside = watched(browser, viewport=DESK, scheme="light", home=home)
            tab.goto(f"{home}search.html?q=calibration")
            tab.wait_for_selector("#search-results li p.context")
            tab.close()
            server.shutdown()

        assert (errors, outside) == ([], [])

    def test_a_table_is_sorted_and_filtered(self, site, browser):
        """A click on a head sorts by it, a second one the other way, and typing hides the rows without these words."""
        tab, _, _ = watched(browser, viewport=DESK, scheme="light", home="")
        tab.goto((site.folder / "verdicts.html").as_uri())
        column = "rows => rows.filter(row => !row.hidden).map(row => row.cells[1].textContent)"
        tab.click("th:has-text('verdict') button")
        rising = tab.eval_on_selector_all("table.dk-filter tbody tr", column)
        tab.click("th:has-text('verdict') button")
        falling = tab.eval_on_selector_all("table.dk-filter tbody tr", column)
        tab.fill("input.dk-field", "refuted")
        left = tab.eval_on_selector_all("table.dk-filter tbody tr", column)
        tab.close()

        assert rising == sorted(rising)
        assert falling == rising[::-1]
        assert set(left) == {"refuted here"}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static host that does not log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""
