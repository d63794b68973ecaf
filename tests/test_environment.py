"""environment.yml, the extras of pyproject.toml and requirements.lock name the same packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# TensorRT's source distribution asks an index of its own, so that no lock with hashes can be resolved from PyPI alone;
# the other two are of use only beside it.
NOT_LOCKED = {"nvidia-ml-py", "pycuda", "tensorrt"}
HOST = re.compile(
    r"https?://|--(?:extra-)?index-url|--find-links|\b[\w-]*pypi[\w-]*\.(?:org|io|com|net)\b", re.IGNORECASE
)


def bare(requirement: str) -> str:
    """Return a requirement's name in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement.strip())[0]).lower()


@pytest.fixture(scope="module")
def project() -> dict:
    """Return the `project` table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def declared(project) -> set[str]:
    """Return every package that pyproject.toml names, extras included."""
    extras = project["optional-dependencies"].values()
    return {bare(line) for group in (project["dependencies"], *extras) for line in group} - {"deploykit"}


@pytest.fixture(scope="module")
def lock() -> str:
    """Return the text of requirements.lock."""
    return (ROOT / "requirements.lock").read_text(encoding="utf-8")


def conda_packages() -> list[str]:
    """Return what environment.yml installs, its pip part included, without Python and deploykit."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    ours = ("pip", "python>=3.11", "-e .")
    return [entry for entry in [*listed, *pip] if isinstance(entry, str) and entry not in ours]


def test_conda_users_get_every_package_of_the_project(declared):
    """environment.yml names what pyproject.toml names, no more and no less, and each once."""
    names = [bare(entry) for entry in conda_packages()]

    assert len(names) == len(set(names)) > 30
    assert set(names) == declared


def test_the_lock_holds_every_package_but_those_for_gpus(declared, lock):
    """A package of any extra but `gpu` is in the lock; the three of `gpu`, named here, are not."""
    locked = {bare(line) for line in re.findall(r"^[\w.-]+==", lock, re.MULTILINE)}

    assert declared - locked == NOT_LOCKED


def test_the_extra_for_gpus_is_the_one_that_is_not_locked(project):
    """The exception above is the extra `gpu`, as it stands today."""
    assert {bare(line) for line in project["optional-dependencies"]["gpu"]} == NOT_LOCKED


def test_every_locked_package_has_a_hash(lock):
    """Hashes can be required hashes: each pinned version is followed by at least one sha256."""
    entries = re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]

    assert len(entries) > 150
    assert [entry.partition(" ")[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_pinned_pair_is_the_same_everywhere(lock):
    """One version of torch and of torchvision stands in requirements.in, requirements.lock and environment.yml."""
    pinned = re.findall(r"^\w+==\S+$", (ROOT / "requirements.in").read_text(encoding="utf-8"), re.MULTILINE)

    assert len(pinned) == 2
    for pin in pinned:
        assert re.search(rf"^{re.escape(pin)}\s", lock, re.MULTILINE)
        assert pin in conda_packages()


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements.in", "environment.yml", "pyproject.toml", "Makefile"]
)
def test_no_package_index_is_named(name):
    """Where packages come from is the reader's affair: no address of an index stands in a file of the set-up."""
    assert HOST.findall((ROOT / name).read_text(encoding="utf-8")) == []


def test_no_committed_file_names_an_index():
    """Nor does any other file that git tracks: addresses of indexes belong to the machine, not to the project."""
    listed = subprocess.run(
        ["git", "grep", "-IlE", r"index-url *[=:]? *http|/simple/?[\"' ]|files\.pythonhosted"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode not in (0, 1):
        pytest.skip("this is not a git checkout")

    assert [name for name in listed.stdout.split() if name != "tests/test_environment.py"] == []


def test_every_package_that_the_code_imports_is_declared(declared):
    """An import that works only because some package brought the module along is found here."""
    distribution = {
        "PIL": "pillow", "sklearn": "scikit-learn", "pynvml": "nvidia-ml-py", "openvino_telemetry": "openvino",
        "tensorrt_rtx": "tensorrt-rtx-cu13",
        # parts of what these are, which they cannot drop
        "IPython": "ipykernel", "docutils": "sphinx", "requests": "pooch", "urllib3": "pooch", "google": "onnx",
        "ml_dtypes": "onnx", "rich": "nncf", "starlette": "fastapi", "pydantic": "fastapi",
        "markdown_it": "markdown-it-py",
    }  # fmt: skip
    imported = set()
    for path in [ROOT / "make.py", *(ROOT / "src").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    imported -= {*sys.stdlib_module_names, "deploykit", "make", "tools"}

    assert imported
    assert {bare(distribution.get(name, name)) for name in imported} - declared == set()
