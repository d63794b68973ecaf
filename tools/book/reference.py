"""The pages of the reference: one for each module or package of deploykit, found by looking, filled by autodoc."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from make import ROOT

GROUPS = {
    "Recipes": (
        "Third-party libraries and nothing else of deploykit: copy the file or the folder into a project and it works.",
        "quantization pruning distillation precision export runtimes free_speed pareto significance",
    ),
    "Put together": (
        "What the recipes are for: the fastest form of a network, a plan, a service, one model in every runtime.",
        "optimize advisor static_quantization serving benchmarking contestants rows artifacts standalone untrusted",
    ),
    "Data and networks": (
        "What everything is tried on.",
        "data batches models cifar10 shapes folders contents download",
    ),
    "Training and evaluation": (
        "One loop for all of it.",
        "training evaluation optimizers resumable distributed cards",
    ),
    "Measuring": (
        "Numbers that know what they are worth.",
        "measure measurement comparison timing cost profiling layers peaks roofline machine load monitoring regression",
    ),
    "Claims and records": (
        "Advice, predictions, verdicts, and where they are kept.",
        "claims advice predictions exercises ledger recorded notebook plots figures",
    ),
}
REST = "Everything else"
COMMANDS = "cli"  # documented by what it prints: docs/cli.md


def modules(package: Path) -> dict[str, list[str]]:
    """Map each public module and package at the top of ``package`` to the dotted names it is made of, itself first.

    The commands are left out.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if (
            parts
            and parts[0] != COMMANDS
            and (path.parent / "__init__.py").exists()
            and not any(part.startswith("_") for part in parts)
        ):
            found.setdefault(parts[0], []).append(".".join((package.name, *parts)))
    return {name: sorted(dotted) for name, dotted in found.items()}


def public_names(source: str) -> list[str]:
    """Return the functions and classes that the module ``source`` defines for others."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, defined) and not node.name.startswith("_")]


def source_of(module: str) -> str:
    """Return the source of a module or package of this checkout by its dotted name."""
    path = ROOT.joinpath("src", *module.split("."))
    file = path.with_suffix(".py")
    return (file if file.exists() else path / "__init__.py").read_text(encoding="utf-8")


def write(pages: Path) -> list[str]:
    """Write a page for each module into ``pages/api`` and their list; return the dotted names that have one."""
    package = ROOT / "src" / "deploykit"
    found = modules(package) if package.is_dir() else {}
    folder = pages / "api"
    folder.mkdir(exist_ok=True)
    for name, dotted in found.items():
        (folder / f"{name}.md").write_text(_page(dotted), encoding="utf-8")
    listing = "\n".join(_listing({name: _first_line(dotted[0]) for name, dotted in found.items()}))
    (pages / "_generated").mkdir(exist_ok=True)
    tree = "\n".join(["```{toctree}", ":hidden:", "", *found, "```", ""])
    text = f"{listing}\n{tree}" if found else "Nothing to refer to.\n"
    (pages / "_generated" / "api.md").write_text(text, encoding="utf-8")
    return [name for dotted in found.values() for name in dotted]


def _page(dotted: list[str]) -> str:
    # __all__ ignored: what a package hands on from its modules is documented there, once
    autodoc = "```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :ignore-module-all:\n```\n"
    return "\n".join(
        f"{'#' if name == dotted[0] else '##'} {name.removeprefix('deploykit.')}\n\n{autodoc.format(name=name)}"
        for name in dotted
    )


def _first_line(module: str) -> str:
    return (ast.get_docstring(ast.parse(source_of(module))) or "").partition("\n")[0]


def _listing(found: dict[str, str]) -> Iterator[str]:
    placed = {name for _, names in GROUPS.values() for name in names.split()}
    rest = " ".join(name for name in found if name not in placed)
    for title, (words, names) in [*GROUPS.items(), (REST, ("What these stand on.", rest))]:
        rows = [f"[`deploykit.{name}`](/api/{name}.md)\n: {found[name]}\n" for name in names.split() if name in found]
        if rows:
            yield f"## {title}\n\n{words}\n"
            yield from rows
