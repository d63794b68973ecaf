"""What an engine was built from and for, in a JSON file beside it: an engine fits nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .built_here import check_built_here

IN_WORDS = {
    "onnx_sha256": "ONNX file",
    "library": "library",
    "version": "version of the library",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "profile": "profile",
    "workspace_gib": "workspace",
}


@dataclass(frozen=True)
class Manifest:
    """What decides whether an engine can be used.

    Attributes:
        onnx_sha256: of the ONNX file and of the files with its weights, if they lie outside.
        library: "tensorrt" or "tensorrt_rtx".
        version: of the library.
        gpu: the GPU's name, None where the engine asks for no certain one.
        compute_capability: of that GPU, "9.0".
        profile: the smallest, the commonest and the largest batch.
        workspace_gib: the memory that a layer might take while it computes.
        plan_sha256: of the engine; empty before it is built.
    """

    onnx_sha256: str
    library: str
    version: str
    gpu: str | None
    compute_capability: str | None
    profile: tuple[int, int, int]
    workspace_gib: float
    plan_sha256: str = ""

    def write(self, plan: Path) -> None:
        """Write it beside the plan."""
        beside(plan).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, plan: Path) -> Manifest:
        """Return the one beside the plan.

        Raises:
            ValueError: there is none, or it is none that :meth:`write` wrote.
        """
        try:
            stored: dict[str, Any] = json.loads(beside(plan).read_text(encoding="utf-8"))
            return cls(**{**stored, "profile": tuple(stored["profile"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{plan} has no manifest beside it that says what it was built from and for ({beside(plan).name}); "
                "build_engine writes both"
            ) from error

    def changes(self, now: Manifest) -> Iterator[str]:
        """Yield in words what is not as it was when this engine was built."""
        for name, words in IN_WORDS.items():
            was, is_now = getattr(self, name), getattr(now, name)
            if was != is_now:
                yield f"another {words}" + ("" if name.endswith("sha256") else f", {is_now} instead of {was}")


def beside(plan: Path) -> Path:
    """Return where the manifest of a plan lies."""
    return plan.with_name(plan.name + ".json")


def sha256(*contents: bytes) -> str:
    """Return the hash of contents in a row, each with its length."""
    total = hashlib.sha256()
    for content in contents:
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def is_built_here(plan: bytes, path: Path) -> bool:
    """Tell whether this machine wrote exactly these bytes."""
    try:
        check_built_here(plan, path)
    except ValueError:
        return False
    return True
