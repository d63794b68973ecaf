"""Inductor: torch's compiler, ahead of time into a .pt2 package of machine code, or when the model is called."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._inductor
from torch import Tensor, nn

from .built_here import check_built_here, record_built_here
from .files import complete_or_absent, existing
from .predictor import Predictor, default_threads

if TYPE_CHECKING:
    import pandas as pd

NAME = "Inductor"
# Freezing makes the weights constants, which the compiler may lay out anew: without it int8 is slower than float.
FREEZING = {"freezing": True}
# A call in the source of a package, of an operator of torch or of a loop that the compiler wrote.
CALL = re.compile(r"(?m)(?:CHECK\(aoti_torch_cpu_+|^ +(?=cpp_fused))(\w+?)(?:_\d+|_)?\(")


def save(model: nn.Module, path: Path | str, *, images: Tensor, max_batch: int = 1024) -> Path:
    """Write the model's artifact, complete or not at all, and return its path.

    It is one package with machine code for this kind of processor and this version of torch, which needs no compiler
    when it is loaded. Its hash is noted in the reader's cache folder: :func:`load` takes only what was built here.

    Args:
        model: in evaluation mode, or a graph that PT2E has quantized; it is not changed.
        path: ends in ".pt2".
        images: an example, float32 [N, C, H, W]: C, H and W become fixed, N does not.
        max_batch: the largest N.

    Raises:
        TypeError: another kind of model.
        ValueError: another ending, a model in training mode, or one that cannot be exported or compiled.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME} saves a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(model, torch.fx.GraphModule) and any(module.training for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is in training mode; call .eval() before save")
    example = images[:1].repeat(2, 1, 1, 1)  # a batch of 1 would be taken for a constant
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    _register_integer_kernels(model)
    notes = {"images": ",".join(map(str, images.shape[1:])), "max_batch": str(max_batch)}
    options = FREEZING | {"aot_inductor.metadata": notes}
    with complete_or_absent(path, ".pt2") as partial:
        try:
            with torch.no_grad(), _without_own_warnings():
                program = torch.export.export(copy.deepcopy(model), (example,), dynamic_shapes=({0: batch},))
                torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented name
                    program, package_path=str(partial), inductor_configs=options
                )
        except Exception as error:  # export and compiler have no common root but this
            said = str(error).strip().partition("\n")[0]
            raise ValueError(f"{type(model).__name__} cannot be compiled ahead of time: {said}") from error
        record_built_here(partial.read_bytes())
    return Path(path)


def load(source: Path | str | nn.Module, *, threads: int | None = None, trust: bool = False) -> Predictor:
    """Return the model as a predictor.

    A package is a program, and loading it runs it: who can write it can do all that you can. It is no format to send
    or to receive. What this machine did not build is therefore refused.

    Args:
        source: the path of an artifact, or the model itself, which is then compiled when it is called with the first
            batch of a size: in seconds to minutes, by a C++ compiler.
        threads: as many as torch uses; another number is refused, since the machine code has that of its build.
        trust: load a package that this machine did not build. Only where you know who did, and how it came to you.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a package that was not built here or is truncated, or another number of threads than torch has.
    """
    if default_threads(threads) != torch.get_num_threads():
        raise ValueError(
            f"{NAME} computes with torch's {torch.get_num_threads()} threads, not {threads}; call "
            f"torch.set_num_threads({threads}) before save and load"
        )
    if isinstance(source, nn.Module):
        return Predictor(NAME, (None, None, None), torch.get_num_threads(), source, _compiling(source))
    path = existing(source)
    content = path.read_bytes()
    if not trust:
        check_built_here(content, path)
    try:
        package = torch._inductor.aoti_load_package(io.BytesIO(content))  # noqa: SLF001 - of the bytes that were checked
        notes = package.get_metadata()
        shape = tuple(int(size) for size in notes["images"].split(","))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{NAME} cannot load {path}; is it whole, and made by save()? It says: {error}") from error
    return Predictor(NAME, shape, torch.get_num_threads(), path, package, int(notes["max_batch"]))


def kernels(predictor: Predictor, images: Tensor) -> pd.DataFrame:
    """Return what really computes: operator, precision, count, and share of the time, largest first.

    Of a package the operators are read from the source of its machine code, which lies in it: they have no times
    (NaN), since machine code does not report to torch's profiler. A model in memory is profiled. The precision is known
    by the operator: oneDNN's "qconv" and "qlinear" take int8 weights and uint8 or int8 activations.

    Args:
        predictor: from :func:`load`.
        images: float32 [N, C, H, W].
    """
    import pandas as pd

    if isinstance(predictor.source, nn.Module):
        rows = _profiled(predictor, images)
    else:
        with zipfile.ZipFile(predictor.source) as package:
            sources = [package.read(name).decode() for name in package.namelist() if name.endswith(".wrapper.cpp")]
        rows = [(name, 1, float("nan")) for source in sources for name in CALL.findall(source)]
    table = pd.DataFrame(rows, columns=["operator", "count", "time"])
    table.insert(1, "precision", ["int8" if _is_integer(name) else "float32" for name in table["operator"]])
    census = table.groupby(["operator", "precision"]).sum(min_count=1).reset_index()
    census["share_of_time"] = census.pop("time") / table["time"].sum(min_count=1)
    return census.sort_values(["share_of_time", "count"], ascending=False, ignore_index=True)


def _is_integer(operator: str) -> bool:
    return "qconv" in operator or "qlinear" in operator


def _compiling(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model as torch.compile makes it; freezing is a global option, to be on whenever it compiles."""
    _register_integer_kernels(model)
    compiled = torch.compile(model)
    seen: set[tuple[Any, ...]] = set()

    def forward(images: Tensor) -> Tensor:
        form = (images.shape, torch.is_inference_mode_enabled())
        if form in seen:
            return compiled(images)
        with torch._inductor.config.patch(FREEZING), _without_own_warnings():  # noqa: SLF001 - the documented name
            logits = compiled(images)
        seen.add(form)
        return logits

    return forward


def _register_integer_kernels(model: nn.Module) -> None:
    """Teach the compiler that quantize and dequantize around an operator are an integer kernel.

    torchao's rules for it are registered when this module of its is imported, whichever quantizer made the graph;
    without them the same graph is compiled to float arithmetic, in silence.
    """
    if isinstance(model, torch.fx.GraphModule) and any("quantize" in str(node.target) for node in model.graph.nodes):
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401


@contextlib.contextmanager
def _without_own_warnings() -> Iterator[None]:
    """Keep what the compiler says of its own code, with the path of the file, from the reader."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        yield


def _profiled(predictor: Predictor, images: Tensor) -> list[tuple[str, int, float]]:
    predictor(images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        predictor(images)
    averages = profile.key_averages()
    return [(event.key, event.count, event.self_cpu_time_total) for event in averages if event.self_cpu_time_total]
