"""Nothing here loads a file that can run code, unpacks archives blindly, starts a shell or hides all warnings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.notebooks import read

from .cells import tree
from .conftest import ROOT

FOLDERS = ("src", "tools", "benchmarks", "notebooks")
# Last two parts of what is called, without its module's alias for the ones whose alias varies.
FORBIDDEN = {
    "pickle.load": "unpickling runs code from the file",
    "pickle.loads": "unpickling runs code from the file",
    "pickle.Unpickler": "unpickling runs code from the file",
    "dill.load": "unpickling runs code from the file",
    "dill.loads": "unpickling runs code from the file",
    "joblib.load": "joblib files are pickles",
    "pd.read_pickle": "unpickling runs code from the file",
    "pandas.read_pickle": "unpickling runs code from the file",
    "yaml.unsafe_load": "it builds any object; use yaml.safe_load",
    "yaml.full_load": "it builds more than data; use yaml.safe_load",
    "marshal.loads": "it trusts its input",
    "os.system": "it starts a shell; use subprocess.run([...])",
    "os.popen": "it starts a shell; use subprocess.run([...])",
    "eval": "it runs text as code",
    "exec": "it runs text as code",
}


def unsafe(module: ast.Module) -> list[str]:
    """Return the unsafe calls and imports in a parsed file, with their line and the reason."""
    renamed = _imported_names(module)
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = _name(node.func, renamed)
            found += [f"line {node.lineno}: {name}(): {reason}" for reason in _reasons(name, node)]
    return found


def _reasons(name: str, call: ast.Call) -> Iterator[str]:
    keywords = {word.arg: word.value for word in call.keywords}

    def given(word: str, value: str) -> bool:
        return word in keywords and ast.unparse(keywords[word]) == value

    if name in FORBIDDEN:
        yield FORBIDDEN[name]
    if name == "torch.load" and not given("weights_only", "True"):
        yield "write weights_only=True, or the file can run code"
    if "allow_pickle" in keywords and not given("allow_pickle", "False"):
        yield "allow_pickle lets the file run code"
    if name == "yaml.load" and "SafeLoader" not in ast.unparse(call):
        yield "use yaml.safe_load"
    if name.rsplit(".", 1)[-1] in ("extractall", "unpack_archive"):
        yield "members of an archive can lie outside its folder; read the members you want"
    if "shell" in keywords and not given("shell", "False"):
        yield "it starts a shell; pass a list"
    if name in ("warnings.filterwarnings", "warnings.simplefilter") and _is_blanket(call):
        yield "it hides every warning; name the message or the module"
    if name == "logging.disable":
        yield "it hides every log record; set the level of one logger"


def _is_blanket(call: ast.Call) -> bool:
    action = next((a for a in [*call.args[:1], *(w.value for w in call.keywords if w.arg == "action")]), None)
    ignores = isinstance(action, ast.Constant) and action.value == "ignore"
    narrowed = len(call.args) > 1 or {word.arg for word in call.keywords} & {"message", "module", "category"}
    return ignores and not narrowed


def _imported_names(module: ast.Module) -> dict[str, str]:
    """Map each name that an import binds to what it stands for: ``np`` to ``numpy``, ``load`` to ``pickle.load``."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _name(function: ast.expr, renamed: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(function).partition(".")
    return renamed.get(first, first) + dot + rest


def sources() -> dict[str, ast.Module]:
    """Return every Python file and notebook of the project, parsed; a notebook is the sum of its code cells."""
    files = [ROOT / "make.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    parsed = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            parsed[str(path.relative_to(ROOT))] = _joined(path)
    return parsed


def _joined(path: Path) -> ast.Module:
    cells = [tree(cell) for cell in read(path).cells if cell.cell_type == "code"]
    return ast.Module(body=[statement for cell in cells for statement in cell.body], type_ignores=[])


class TestUnsafe:
    @pytest.mark.parametrize(
        "source",
        [
            "import pickle\npickle.load(f)", "import pickle as p\np.loads(b)", "from pickle import load\nload(f)",
            "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)",
            "import joblib\njoblib.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)", "yaml.load(f, Loader)",
            "tar.extractall(d)", "shutil.unpack_archive(f)", "subprocess.run(c, shell=True)", "os.system(c)",
            "eval(s)", "exec(s)", "warnings.filterwarnings('ignore')", "warnings.simplefilter('ignore')",
            "warnings.filterwarnings(action='ignore')", "import pandas as pd\npd.read_pickle(f)",
        ],
    )  # fmt: skip
    def test_an_unsafe_call_is_found(self, source):
        """Each way to run a file's code, or to hide what is wrong, is found, whatever it is imported as."""
        assert len(unsafe(ast.parse(source))) == 1

    @pytest.mark.parametrize(
        "source",
        [
            "torch.load(f, weights_only=True)", "np.load(f)", "np.load(f, allow_pickle=False)", "json.load(f)",
            "yaml.safe_load(f)", "yaml.load(f, Loader=yaml.SafeLoader)", "subprocess.run([c])", "model.eval()",
            "warnings.filterwarnings('ignore', message='beta')", "joblib.cpu_count()", "cursor.exec(s)",
            "warnings.simplefilter('error')", "warnings.simplefilter('ignore', BetaWarning)",
        ],
    )  # fmt: skip
    def test_a_safe_call_is_not(self, source):
        """The safe form of each is left alone."""
        assert unsafe(ast.parse(source)) == []

    def test_nothing_in_the_project_is_unsafe(self, solutions):
        """Library, tools, benchmarks and notebooks keep the rule; notebooks and library are among what was read."""
        parsed = sources()
        assert {"make.py", "src/deploykit/__init__.py", f"notebooks/solutions/{min(solutions)}.ipynb"} <= set(parsed)

        assert {name: found for name, module in parsed.items() if (found := unsafe(module))} == {}
