"""A model and its limits as NVIDIA Triton's model repository: nothing to program, a folder that its server reads.

Sources: Triton's ``model_config.proto``, and its user guide on model repositories, configuration and dynamic batching.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.serving.triton_artifact import Tensor, read_artifact

VERSION = "1"  # a model's folder holds one folder per version
# Parameters of the backends (onnxruntime_backend and openvino_backend, README.md and src). That for OpenVINO fixes the
# batch at its largest size, and fails on smaller ones unless it may fill them up.
THREADS = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}
FURTHER = {"onnxruntime": {}, "openvino": {"ENABLE_BATCH_PADDING": "YES"}}


class Word(str):
    """A name of an enumeration: text without quotes."""

    __slots__ = ()


def export_triton(
    artifact: Path | str,
    folder: Path | str,
    *,
    name: str,
    max_batch_size: int = 16,
    max_queue_delay_us: int = 1000,
    max_queue_size: int = 64,
    deadline_ms: float = 2000.0,
    instances: int = 1,
    threads: int = 1,
) -> Path:
    """Add a model to a model repository, complete or not at all, and return its folder.

    The limits are those of the service, with two differences: Triton's queue counts requests, not images, and what is
    over the deadline is refused only while it waits. Sizes of batches are not "preferred": Triton's guide advises that
    only where a model is much faster at some of them. An .onnx file suits Triton better than an .xml, whose backend
    computes every batch as a full one, and in bfloat16 where the processor can what is not quantized.

    Args:
        artifact: an .onnx file, or an .xml of OpenVINO with its .bin beside it; its first dimension must be free.
        folder: the repository, ``tritonserver --model-repository FOLDER``; made if it is not there.
        name: of the model, of its folder and in the paths.
        max_batch_size: images computed together, and in one request.
        max_queue_delay_us: microseconds for which a request may wait for company.
        max_queue_size: requests that may wait.
        deadline_ms: after which a request that waits is refused.
        instances: copies of the model that compute side by side on the CPU.
        threads: of each.

    Raises:
        FileNotFoundError: no such artifact, or no .bin.
        FileExistsError: the repository has a model of this name.
        ValueError: a name that is no folder, a number out of its range, another kind of file, or one that is damaged,
            for batches of a fixed size, or of a type that Triton does not know.
        ImportError: onnx or openvino is missing.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"the model's name is {name!r}; use letters, digits, '-', '_' and '.', a letter or digit first"
        )
    least = {
        "max_batch_size": (max_batch_size, 1), "max_queue_delay_us": (max_queue_delay_us, 0),
        "max_queue_size": (max_queue_size, 1), "deadline_ms": (deadline_ms, 1), "instances": (instances, 1),
        "threads": (threads, 1),
    }  # fmt: skip
    if wrong := [f"{key} is {value}; give at least {low}" for key, (value, low) in least.items() if not value >= low]:
        raise ValueError(wrong[0])
    target = Path(folder) / name
    if target.exists():
        raise FileExistsError(f"{target} is there; remove it, or choose another name")
    read = read_artifact(Path(artifact))
    config = {
        "name": name,
        "backend": read.backend,
        "default_model_filename": read.file,
        "max_batch_size": max_batch_size,
        "input": [_described(tensor) for tensor in read.inputs],
        "output": [_described(tensor) for tensor in read.outputs],
        "dynamic_batching": {
            "max_queue_delay_microseconds": max_queue_delay_us,
            "default_queue_policy": {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": round(1000 * deadline_ms),
                "max_queue_size": max_queue_size,
            },
        },
        "instance_group": {"count": instances, "kind": Word("KIND_CPU")},
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in {THREADS[read.backend]: str(threads), **FURTHER[read.backend]}.items()
        ],
        "model_warmup": [_warm_up(read.inputs, size) for size in sorted({1, max_batch_size})],
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as partial:
        whole = Path(partial) / name
        (whole / VERSION).mkdir(parents=True)
        read.save(whole / VERSION)
        (whole / "config.pbtxt").write_text("\n".join([*_lines(config), ""]), encoding="utf-8")
        whole.rename(target)
    return target


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": Word(f"TYPE_{tensor.type}"), "dims": list(tensor.dims)}


def _warm_up(inputs: Sequence[Tensor], size: int) -> dict[str, Any]:
    """Return a request of zeros that each instance computes before it is ready; a size that is free is 1 there."""
    zeros = [
        {
            "key": tensor.name,
            "value": {
                "data_type": Word(f"TYPE_{tensor.type}"),
                "dims": [max(1, dim) for dim in tensor.dims],
                "zero_data": True,
            },
        }
        for tensor in inputs
    ]
    return {"name": f"batch of {size}", "batch_size": size, "inputs": zeros}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of a protobuf message in its text form; strings and numbers are written there as in JSON."""
    for key, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{key} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {one if isinstance(one, Word) else json.dumps(one, ensure_ascii=False)}"
