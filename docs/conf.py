"""The book. `python3 make.py cookbook` lays these pages and the executed notebooks together and builds from there."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

project = "deploykit"
author = "the deploykit authors"
copyright = "the deploykit authors, MIT licence"  # noqa: A001 (Sphinx's name)
extensions = ["myst_nb"]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]

nb_execution_mode = "off"  # the notebooks come executed: one renderer, and the build takes seconds
nb_ipywidgets_js: dict[str, Any] = {}  # nor any other script from the network
nb_merge_streams = True
nb_render_markdown_format = "myst"  # as cells of text are read: plain CommonMark has no tables
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = "deploykit"
# a font for formulas, which few systems have, out of the package that carries it
_font = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
html_static_path = ["_static", str(_font)]
html_css_files = ["book.css"]
html_favicon = "_static/favicon.svg"
html_logo = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # without it the theme logs an error in the console
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": "deploykit", "alt_text": "deploykit"},
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "footer_content_items": "copyright.html",
}


def _mathml(translator: HTML5Translator, latex: str, node: nodes.Node, *, block: bool) -> None:
    try:
        mathml = tex2mathml(latex.strip(), as_block=block)
    except MathError as error:
        message = f"{node.source}: the formula {latex.strip()!r} cannot be shown: {error}"
        raise SphinxError(message) from error
    mathml = mathml.replace("<mo>‖</mo>", '<mo stretchy="false">‖</mo>')  # as tall as the letters beside it
    if block:
        mathml = f'<div class="formula">{mathml}</div>'
    translator.body.append(mathml)
    raise nodes.SkipNode


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    _mathml(translator, node.astext(), node, block=False)


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    _mathml(translator, node.astext(), node, block=True)


def setup(app: Sphinx) -> None:
    """Show formulas as MathML, which browsers draw by themselves: no script, nothing to fetch, read out aloud."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.config.html_math_renderer = "mathml"
