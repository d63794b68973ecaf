"""The book. tools/book lays these pages, the notebooks and the records together and builds from there."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

from deploykit.noise import silence_known_noise

project = "deploykit"
author = "the deploykit authors"
copyright = "the deploykit authors, MIT licence"  # noqa: A001 (Sphinx's name)
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["tools.book.docstrings", "tools.book.search"]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]

nb_execution_mode = "off"  # the notebooks come executed: one renderer, and the build takes seconds
nb_ipywidgets_js: dict[str, Any] = {}  # nor any other script from the network
nb_merge_streams = True
nb_render_markdown_format = "myst"  # as cells of text are read: plain CommonMark has no tables
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# of two classes with one name, the module that annotates with it tells which
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]
smartquotes_action = "D"  # dashes only: "cifar10" is written with these quotes

silence_known_noise()  # autodoc imports everything

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False
napoleon_use_ivar = True  # the attributes of a class belong to its description, not into the index
napoleon_attr_annotations = False  # types stand in the signature
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "deploykit"
# a font for formulas, which few systems have, out of the package that carries it
_font = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
html_static_path = ["_static", str(_font)]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_favicon = "_static/favicon.svg"
html_logo = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # without it the theme logs an error in the console
html_show_sourcelink = False
html_use_index = html_domain_indices = False  # search finds names
html_copy_source = False  # each notebook lies beside its page
html_theme_options: dict[str, Any] = {
    "logo": {"text": "deploykit", "alt_text": "deploykit"},
    "show_toc_level": 2,
    "navigation_depth": 2,  # the list of all pages is in every page
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "footer_content_items": "copyright.html",
}


def _mathml(translator: HTML5Translator, latex: str, node: nodes.Node, *, block: bool) -> None:
    latex = re.sub(r"\\[bB]igg?[lrm]?(?![A-Za-z])", "", latex)  # fences of MathML grow by themselves
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
