"""Each name of TensorRT that the recipes, notebook 12 and its table use is in version 10 and in version 11."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from deploykit.runtimes.tensorrt_names import REPLACED

ROOT = Path(__file__).resolve().parents[1]
LISTS = {
    version: json.loads((ROOT / "tests" / "tensorrt_api" / f"api-{version}.json").read_text(encoding="utf-8"))
    for version in (10, 11)
}
MODULES = sorted((ROOT / "src" / "deploykit" / "runtimes").glob("tensorrt*.py"))
NOTEBOOK = ROOT / "notebooks" / "solutions" / "12_tensorrt.ipynb"
# What a variable of this name holds, here and in the notebook. A leading underscore is an attribute's.
KINDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "taken": "ITensor",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
OF_PYTHON = {"name"}  # of an enumeration's member
# Names that another library has as well.
ELSEWHERE = {"precision", "dtype", "execute", "num_inputs"}
GONE = {member for members in LISTS[10].values() if isinstance(members, dict) for member in members}
GONE -= {member for members in LISTS[11].values() if isinstance(members, dict) for member in members}
GONE |= {row.shown.partition(".")[2] for row in REPLACED if row.gone_in} - ELSEWHERE


def is_in(version: int, path: str) -> bool:
    """Tell whether a version has a class, or a class and member: "Builder.create_network"."""
    kind, _, member = path.partition(".")
    members = LISTS[version].get(kind)
    return members is not None and (not member or member in members)


def faults(source: str) -> list[str]:
    """Return the names that are not in both versions, unless hasattr() or a look at the version stands before them."""
    return list(_faults(ast.parse(source), frozenset()))


def _faults(node: ast.AST, allowed: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.If | ast.IfExp):
        allowed |= _checked(node.test)
    if isinstance(node, ast.Attribute) and node.attr not in allowed and "__version__" not in allowed:
        path = _path(node)
        if path and not all(is_in(version, path) for version in LISTS):
            yield f"line {node.lineno}: {path}"
        elif not path and node.attr in GONE - ELSEWHERE:
            yield f"line {node.lineno}: {node.attr}"
    for child in ast.iter_child_nodes(node):
        yield from _faults(child, allowed)


def _checked(test: ast.expr) -> frozenset[str]:
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr"]
    named = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    versions = {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute) and node.attr == "__version__"}
    return frozenset(map(str, named | versions))


def _path(node: ast.Attribute) -> str:
    """Return what an attribute is called in the lists; nothing where it belongs to something else."""
    match node.value:
        case ast.Name("trt") | ast.Attribute(attr="_trt"):
            return "" if node.attr.startswith("__") else node.attr
        case ast.Attribute(value=ast.Name("trt") | ast.Attribute(attr="_trt"), attr=kind) if kind in LISTS[10]:
            return "" if node.attr.startswith("__") else f"{kind}.{node.attr}"
        case ast.Name(name) | ast.Attribute(attr=name) if name.removeprefix("_") in KINDS:
            return f"{KINDS[name.removeprefix('_')]}.{node.attr}"
    return ""


def used(source: str) -> set[str]:
    """Return all names of TensorRT in a piece of code."""
    return {path for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and (path := _path(node))}


def notebook_cells() -> list[str]:
    """Return the notebook's code cells as Python."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return [TransformerManager().transform_cell(cell.source) for cell in cells if cell.cell_type == "code"]


class TestScanner:
    @pytest.mark.parametrize(
        "code",
        [
            "config.set_flag(trt.BuilderFlag.FP16)",
            "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
            "self._engine.num_bindings",
            "config.max_workspace_size = 1 << 30",
            "context.execute_async_v2(bindings, stream)",
            "trt.IInt8EntropyCalibrator2()",
            "builder.platform_has_fast_fp16",
            "whatever.get_binding_index('images')",
            "self._trt.CausalMaskKind",
            "profile.profile_stream",
        ],
    )
    def test_a_name_that_is_not_in_both_is_found(self, code):
        """On the module, on what is known to be an engine or a context, and on anything if the name is gone."""
        assert len(faults(code)) == 1

    @pytest.mark.parametrize(
        "code",
        [
            "if hasattr(trt.BuilderFlag, 'FP16'):\n    config.set_flag(trt.BuilderFlag.FP16)",
            "x = builder.platform_has_fast_fp16 if trt.__version__ < '11' else None",
            "config.set_flag(trt.BuilderFlag.REFIT)",
            "context.execute_v2([1, 2])",
            "trt.__version__, trt.ILogger.WARNING, table.columns",
        ],
    )
    def test_other_names_are_not(self, code):
        """What both have, what a check stands before, and what is not TensorRT's."""
        assert faults(code) == []


class TestRecipes:
    @pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
    def test_each_name_is_in_both_versions(self, module):
        """So the same code runs on TensorRT 10, on 11, and on TensorRT-RTX."""
        assert faults(module.read_text(encoding="utf-8")) == []

    def test_the_scanner_sees_what_they_use(self):
        """Were variables renamed, it would find nothing and be content."""
        names = set().union(*(used(module.read_text(encoding="utf-8")) for module in MODULES))

        assert names >= {
            "Builder.build_serialized_network",
            "Builder.create_network",
            "IBuilderConfig.add_optimization_profile",
            "IBuilderConfig.progress_monitor",
            "IBuilderConfig.set_memory_pool_limit",
            "IBuilderConfig.set_timing_cache",
            "ICudaEngine.create_execution_context",
            "ICudaEngine.get_tensor_mode",
            "IExecutionContext.execute_async_v3",
            "IExecutionContext.infer_shapes",
            "IExecutionContext.set_input_shape",
            "IExecutionContext.set_tensor_address",
            "INetworkDefinition.num_inputs",
            "IOptimizationProfile.set_shape",
            "MemoryPoolType.WORKSPACE",
            "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
            "OnnxParser.parse_from_file",
            "ParserError.desc",
            "ProfilingVerbosity.DETAILED",
            "Runtime.deserialize_cuda_engine",
            "TensorIOMode.INPUT",
        }

    def test_flags_are_named_and_not_numbered(self):
        """STRONGLY_TYPED is 1 in version 10 and 0 in 11: a number would mean something else."""
        flag = "STRONGLY_TYPED"
        numbers = [LISTS[version]["NetworkDefinitionCreationFlag"][flag] for version in LISTS]

        assert numbers == [1, 0]
        assert "1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)" in MODULES[
            [module.stem for module in MODULES].index("tensorrt_build")
        ].read_text(encoding="utf-8")


class TestNotebook:
    def test_each_name_is_in_both_versions(self):
        """In all code cells, the one to copy included."""
        found = {index: fault for index, cell in enumerate(notebook_cells()) if (fault := faults(cell))}

        assert found == {}

    def test_it_writes_the_inference_out(self):
        """The names that the table points to are in its code."""
        names = set().union(*map(used, notebook_cells()))

        assert names >= {
            "Builder.build_serialized_network",
            "IExecutionContext.execute_async_v3",
            "IExecutionContext.set_input_shape",
            "IExecutionContext.set_tensor_address",
            "Runtime.deserialize_cuda_engine",
        }


class TestReplacedCalls:
    @pytest.mark.parametrize("row", REPLACED, ids=lambda row: row.shown)
    def test_it_is_gone_where_the_table_says(self, row):
        """In version 10 already, from 11 on, or not at all."""
        there = [version for version in LISTS if is_in(version, row.shown)]

        assert there == {10: [], 11: [10], None: [10, 11]}[row.gone_in]

    @pytest.mark.parametrize("row", REPLACED, ids=lambda row: row.shown)
    def test_what_is_written_today_is_in_both(self, row):
        """Each name of the replacement exists, and stands in its text."""
        for name in row.names:
            assert is_in(10, name), name
            assert is_in(11, name), name
            assert name.rpartition(".")[2] in row.today or "EDITABLE" in name or "create_optimization" in name
        assert row.today

    def test_no_call_is_listed_twice(self):
        """One row each."""
        assert len({row.shown for row in REPLACED}) == len(REPLACED)
