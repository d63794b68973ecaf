"""Reading the code of notebook cells: which functions a cell calls, and with what."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode


def tree(cell: NotebookNode) -> ast.Module:
    """Parse a code cell, magics included."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def calls(cell: NotebookNode, *names: str) -> Iterator[ast.Call]:
    """Yield the calls in a code cell of functions or methods with one of ``names``, in order."""
    if cell.cell_type != "code":
        return
    found = [node for node in ast.walk(tree(cell)) if isinstance(node, ast.Call) and called(node) in names]
    yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))


def called(call: ast.Call) -> str:
    """Return the last part of what is called: ``judge`` for ``claims.judge(...)``."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def first_string(call: ast.Call) -> str | None:
    """Return the first argument when it is written as a string."""
    match call.args:
        case [ast.Constant(value=str(text)), *_]:
            return text
    return None


def tagged(cell: NotebookNode, tag: str) -> bool:
    """Say whether a cell carries ``tag``."""
    return tag in cell.metadata.get("tags", [])
