"""What the site is put together from: sources as links, docstrings as text, pages of the root, words to search for."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.recorded import Recorded
from tools.book import docstrings, recipes, reference, results, root_files, search, verdicts
from tools.book.landing import ways
from tools.book.pages import Page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    """Return every committed notebook as a page."""
    found = [Page(path.stem, path, None) for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    assert found
    return found


class TestWaysIn:
    def test_every_recipe_can_be_looked_up(self, pages):
        """Each notebook with a cell to copy answers a wish of docs/recipes.toml."""
        answering = {recipe.notebook for recipe in recipes.load()}

        assert [page.name for page in pages if page.copies() and page.number not in answering] == []

    def test_every_recipe_names_what_exists(self):
        """The function or class behind it is where the table says."""
        for recipe in recipes.load():
            assert recipe.use.rpartition(".")[2] in reference.public_names(reference.source_of(recipe.module))

    def test_every_notebook_is_on_a_way(self, pages):
        """Whatever brings a reader here, docs/paths.toml leads to each notebook from some goal."""
        reached = {number for way in ways() for number in way["notebooks"]}

        assert [page.name for page in pages if page.number not in reached] == []

    def test_every_notebook_says_how_long_it_takes(self, pages):
        """The head of each holds its minutes, from which the ways are added up."""
        assert [page.name for page in pages if not page.planned] == []


class TestResults:
    def test_a_page_shows_a_part_of_a_run_with_its_source(self, monkeypatch, tmp_path):
        """The columns asked for, in their order and words; machine and command below, a link to the rest; or none."""
        rows = ({"server": "one_process", "ms": 2.333333, "other": 1}, {"server": "two", "ms": 14, "other": 2})
        run = Recorded("scale.1", "all", "2026-01-02", "python x.py", {"cpu": "C", "threads": 2}, {}, rows)
        monkeypatch.setattr(results, "recorded", {"scale.1": run}.get)
        monkeypatch.setattr(results, "ROOT", tmp_path)
        assert results.excerpt("scale.1", {"server": "who"}) == "Nothing has been recorded yet."
        (tmp_path / "data" / "results").mkdir(parents=True)
        (tmp_path / "data" / "results" / "scale.1.json").touch()

        assert results.excerpt("scale.1", {"server": "who", "ms": "p50 [ms]"}).splitlines() == [
            "| who | p50 [ms] |",
            "| --- | ---: |",
            "| one\\_process | 2.333 |",
            "| two | 14 |",
            "",
            "C, 2 threads, 2026-01-02: `python x.py`; [all of it](#run-scale-1).",
        ]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("source", "address"),
        [
            ("Wen et al. 2016 (arXiv:1608.03665), section 1", "https://arxiv.org/abs/1608.03665"),
            ("PyTorch (docs.pytorch.org/docs/2.8/quantization.html): says", "https://docs.pytorch.org/docs/2.8/quantization.html"),
            ("against it NVIDIA/TensorRT#3805: an error", "https://github.com/NVIDIA/TensorRT/issues/3805"),
            ("onnx.ai: develop", "https://onnx.ai"),
        ],
    )  # fmt: skip
    def test_a_source_is_linked(self, source, address):
        """Papers, pages and issues that a source names can be opened."""
        assert f"]({address})" in verdicts.linked(source)

    def test_a_source_without_an_address_is_text(self):
        """Names and years are no links, and what Markdown would read as marks is shown."""
        assert verdicts.linked("Peters 2004, set_flag(*x)") == r"Peters 2004, set\_flag(\*x)"


class TestDocstrings:
    def test_an_indented_example_stands_as_it_is(self):
        """A block before the sections becomes literal, with every mark in it."""
        lines = [
            "Taps.",
            "",
            "    with tap(|x|) as y:",
            "        pass",
            "",
            "After |it|.",
            "",
            "Args:",
            "    x: a |b|.",
        ]

        assert list(docstrings.as_text(lines))[:8] == [
            "Taps.", "", "::", "", "    with tap(|x|) as y:", "        pass", "", r"After \|it\|.",
        ]  # fmt: skip

    def test_code_keeps_its_bars(self):
        """Between double backticks nothing is escaped; outside a bar and a lonely asterisk are."""
        assert next(docstrings.as_text(["|w| of ``a | b``, +, *, /"])) == r"\|w\| of ``a | b``, +, \*, /"


class TestRootFiles:
    def test_links_lead_to_pages_of_the_site(self, tmp_path):
        """What the site has is linked, what only the repository has keeps its words, other hosts stay."""
        (tmp_path / "notebooks").mkdir()
        for name in ("cli.md", "notebooks/00_a.ipynb"):
            (tmp_path / name).touch()
        text = "[a](docs/cli.md#x) [b](notebooks/00_a.ipynb) [c](LICENSE) [d](https://e.org) [e](README.md) [f](#g)"

        assert root_files.linked(text, tmp_path) == (
            "[a](/cli.md#x) [b](/notebooks/00_a.ipynb) c [d](https://e.org) [e](/index.md) [f](#g)"
        )


class TestSearch:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("quantize_static in int8", ["quantize_static", "in", "int8"]),
            ("pruning (剪枝)", ["pruning", "剪枝"]),
            ("结构化剪枝", ["结构", "构化", "化剪", "剪枝"]),
            ("int8量化", ["int8", "量化"]),
        ],
    )
    def test_text_is_taken_apart(self, text, words):
        """Words stay whole; of Chinese, every two characters side by side are one."""
        assert search.SearchBoth({}).split(text) == words


def test_modules_are_found_by_looking():
    """Packages come with their modules, and what begins with an underscore is nobody's business."""
    found = reference.modules(ROOT / "src" / "deploykit")

    assert found["measure"] == ["deploykit.measure"]
    assert {"deploykit.quantization", "deploykit.quantization.qdq"} <= set(found["quantization"])
    assert not [name for names in found.values() for name in names if "._" in name]
