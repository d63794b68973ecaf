"""What is offered for copying works where deploykit is not installed, and is the code that the library runs."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from .cells import tagged
from .conftest import ROOT

LIBRARY = ROOT / "src" / "deploykit"
# Packages are copied as folders, modules as files. What measures is a foundation that is declared copyable as well;
# `measure` itself needs its neighbours, and tests/test_measure.py copies them together.
RECIPES = (
    "quantization", "pruning", "runtimes", "distillation.py", "precision.py", "export", "serving/batcher.py",
    "free_speed.py", "cost.py", "machine.py", "monitoring.py", "significance.py", "timing.py", "pareto.py",
)  # fmt: skip

# Each of the named files or modules is run as if deploykit were not there; what goes wrong is printed as JSON.
RUN_FILES = """
import json, os, runpy, sys, tempfile
sys.modules["deploykit"] = None
failed = {}
for path in sys.argv[1:]:
    os.chdir(tempfile.mkdtemp(dir=os.path.dirname(path)))
    try:
        runpy.run_path(path, run_name="__main__")
    except BaseException as error:
        failed[os.path.basename(path)] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(failed))
"""
IMPORT_FROM_HERE = """
import importlib, json, os, sys
sys.modules["deploykit"] = None
sys.path.insert(0, os.getcwd())
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(failed))
"""


def failures(program: str, arguments: list[str], folder: Path) -> dict[str, str]:
    """Run one of the programs above in ``folder`` with nothing of this checkout on the path."""
    command = [sys.executable, "-I", "-c", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def cells_that_do_not_run(cells: dict[str, NotebookNode], folder: Path) -> dict[str, str]:
    """Return, by name, the cells that fail in an empty folder without deploykit, or use names they do not define."""
    files = [folder / f"{name}.py" for name in cells]
    for file, cell in zip(files, cells.values(), strict=True):
        file.write_text(cell.source + "\n", encoding="utf-8")
    found = {Path(name).stem: why for name, why in failures(RUN_FILES, list(map(str, files)), folder).items()}
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=json"]
    undefined = subprocess.run([*ruff, *map(str, files)], capture_output=True, text=True, check=False)
    for problem in json.loads(undefined.stdout):
        found.setdefault(Path(problem["filename"]).stem, problem["message"])
    return found


def differences(cell: NotebookNode) -> list[str]:
    """Return how a cell differs from the module that its metadata names: ``{"deploykit": {"copies": "…"}}``.

    Functions, classes and constants of equal name must be equal code; docstrings, comments and layout are free.
    """
    name = cell.metadata.get("deploykit", {}).get("copies")
    if not name:
        return ['its metadata does not say what it copies: {"deploykit": {"copies": "deploykit.<module>"}}']
    stem = ROOT / "src" / name.replace(".", "/")
    module = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.exists()), None)
    if module is None:
        return [f"it copies {name}, which does not exist"]
    ours, theirs = definitions(cell.source), definitions(module.read_text(encoding="utf-8"))
    if not ours.keys() & theirs.keys():
        return [f"it defines nothing that {name} defines"]
    return [f"{key} is not as in {name}" for key in sorted(ours.keys() & theirs.keys()) if ours[key] != theirs[key]]


def definitions(source: str) -> dict[str, str]:
    """Map each function, class and constant at the top of ``source`` to its code without docstrings."""
    module = ast.parse(source)
    for node in ast.walk(module):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    found = {}
    for node in module.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = ast.dump(node)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = ast.dump(node)
    return found


@pytest.fixture(scope="module")
def copies(solutions: dict[str, NotebookNode]) -> dict[str, NotebookNode]:
    """Every cell offered for copying, by notebook and cell number."""
    found = {
        f"{stem}-cell-{index}": cell
        for stem, notebook in solutions.items()
        for index, cell in enumerate(notebook.cells)
        if tagged(cell, "copy-this")
    }
    assert found, "no cell is tagged copy-this"
    return found


class TestCopyThis:
    @pytest.mark.parametrize(
        ("source", "why"),
        [
            ("import deploykit", "ModuleNotFoundError"),
            ("from deploykit.measure import compare", "ModuleNotFoundError"),
            ("open('data/x.txt')", "FileNotFoundError"),
            ("def f():\n    return helper()", "Undefined name `helper`"),
        ],
    )
    def test_a_cell_that_needs_more_than_libraries_is_found(self, tmp_path, source, why):
        """A cell that needs deploykit, a file of the checkout or another cell does not run alone."""
        cells = {"bad": new_code_cell(source), "good": new_code_cell("import math\nprint(math.pi)")}

        found = cells_that_do_not_run(cells, tmp_path)

        assert list(found) == ["bad"]
        assert why in found["bad"]

    def test_a_copy_that_drifted_is_found(self):
        """Another default value is a difference; another docstring or comment is none."""
        name = "deploykit.places"
        function = ast.parse((LIBRARY / "places.py").read_text(encoding="utf-8")).body[-1]
        same = new_code_cell(ast.unparse(function), metadata={"deploykit": {"copies": name}})
        function.body[0] = ast.Expr(ast.Constant("Other words."))
        reworded = new_code_cell(ast.unparse(function), metadata=same.metadata)
        drifted = new_code_cell(reworded.source.replace("return", "print()\n    return"), metadata=same.metadata)

        assert (differences(same), differences(reworded)) == ([], [])
        assert differences(drifted) == [f"clean_leftovers is not as in {name}"]

    def test_a_copy_of_nothing_is_found(self):
        """A cell says what it copies, and copies some of it."""
        assert "does not say what it copies" in differences(new_code_cell("x = 1"))[0]

        metadata = {"deploykit": {"copies": "deploykit.places"}}
        assert "defines nothing" in differences(new_code_cell("x = 1", metadata=metadata))[0]

    def test_every_copy_runs_alone(self, copies, tmp_path):
        """Each cell offered for copying runs in an empty folder, without deploykit."""
        assert cells_that_do_not_run(copies, tmp_path) == {}

    def test_every_copy_is_the_librarys_code(self, copies):
        """No cell offered for copying has drifted from its module."""
        assert {name: found for name, cell in copies.items() if (found := differences(cell))} == {}


def copied(recipes: list[Path], folder: Path) -> list[str]:
    """Copy recipes into ``folder`` as a reader would; return the names of the modules that can be imported there."""
    names = []
    for recipe in recipes:
        if recipe.is_dir():
            shutil.copytree(recipe, folder / recipe.name, ignore=shutil.ignore_patterns("__pycache__"))
            names += [f"{recipe.name}.{path.stem}" for path in sorted(recipe.glob("*.py"))]
        else:
            shutil.copy(recipe, folder)
            names.append(recipe.stem)
    return [name.removesuffix(".__init__") for name in names]


class TestRecipes:
    def test_a_recipe_that_needs_a_foundation_is_found(self, tmp_path):
        """Importing deploykit, or a neighbour by a relative import, keeps a recipe from being copied."""
        for name, line in {
            "one": "from deploykit import data",
            "two": "from . import data",
            "three": "import math",
        }.items():
            (tmp_path / f"{name}.py").write_text(line, encoding="utf-8")

        assert sorted(failures(IMPORT_FROM_HERE, ["one", "three", "two"], tmp_path)) == ["one", "two"]

    def test_every_recipe_imports_alone(self, tmp_path):
        """Each recipe that exists, copied into an empty folder, imports without deploykit."""
        recipes = [LIBRARY / name for name in RECIPES if (LIBRARY / name).exists()]
        assert LIBRARY / "significance.py" in recipes

        names = copied(recipes, tmp_path)

        assert len(names) >= len(recipes)
        assert failures(IMPORT_FROM_HERE, names, tmp_path) == {}
