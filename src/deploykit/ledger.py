"""The ledger: every step of the course appends a row, and nothing is ever locked or lost.

Each process appends to a JSON-lines file of its own; reading merges the files. A row is flat: one number, text or
yes/no per column, so that the whole is a table.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import json
import math
import os
import platform
import secrets
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deploykit
from deploykit.places import atomic_write, cache_folder, data_folder

if TYPE_CHECKING:
    import pandas as pd

FIRST_COLUMNS = ("time", "run", "what", "kind", "dataset", "split")
RUNTIMES = ("torch", "torchvision", "torchao", "onnxruntime", "openvino", "nncf", "tensorrt")
# JSON has no NaN and no infinity; rows are flat, so an object in place of a value can mean nothing else.
NON_FINITE = "non_finite"

_context: dict[str, Any] = {}


def set_context(**columns: Any) -> None:
    """Add ``columns`` (``dataset="cifar10"``, ``budget="quick"`` …) to every later row of this process.

    ``None`` takes a column out again.

    Raises:
        ValueError: a value is not a single number, text, yes/no or None.
    """
    _context.update(_flat(columns))


def record(
    what: str, *, kind: str, dataset: str | None = None, split: str | None = None, **values: Any
) -> dict[str, Any]:
    """Append one row and return it.

    The row also gets ``time`` (UTC, ISO 8601), ``run`` (one id per process), ``cpu``, ``gpu``, ``threads`` (torch's, at
    that moment) and the versions of Python, deploykit and the runtimes in use. It is flushed to the disk before this
    function returns.

    Args:
        what: the step, model or claim that the numbers belong to.
        kind: family of rows: ``"baseline"``, ``"verdict"``, ``"prediction"`` …
        dataset: name of the dataset; by default the one that the notebook started with.
        split: ``"train"``, ``"val"`` or ``"test"``, where the numbers come from a split.
        values: single numbers (NaN and infinity are kept), texts, yes/no or None, with the unit in the column's name.

    Raises:
        ValueError: a value is a list, dict or tensor of several elements, or a column is one that deploykit fills in.
        OSError: the row could not be written whole (full disk); earlier rows are unharmed.
    """
    row: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "run": _run_id(os.getpid()),
        "what": what,
        "kind": kind,
    }
    conditions = _conditions()
    if taken := sorted(values.keys() & (row.keys() | conditions.keys())):
        raise ValueError(f"the ledger fills in {', '.join(taken)} itself; give your numbers other column names")
    row |= {name: value for name, value in _context.items() if value is not None}
    row |= _flat({name: value for name, value in (("dataset", dataset), ("split", split)) if value is not None})
    row |= _flat(values) | conditions
    _append(_writable_folder() / f"{row['run']}.jsonl", json.dumps(row, allow_nan=False) + "\n")
    return _decoded(row)


def rows(kind: str | None = None) -> pd.DataFrame:
    """Return all rows of all runs as a table, oldest first; ``kind`` keeps one family of rows.

    A column that a row lacks is empty. A half-written line (a process was killed, a disk was full) is skipped and
    named once on stderr.
    """
    import pandas as pd

    found = [row for row in _read() if kind is None or row.get("kind") == kind]
    return pd.DataFrame(found, columns=_columns(found))


def export(path: Path | str) -> Path:
    """Write all rows to ``path``, as CSV or Parquet by its suffix, and return the path.

    A column that a row lacks stays empty (CSV) or null (Parquet); a number that is not finite is written as ``NaN``,
    ``Infinity`` or ``-Infinity``, so that "measured, and it was NaN" differs from "not measured".

    Raises:
        ValueError: another suffix, or no rows yet.
        ModuleNotFoundError: Parquet without pyarrow; the message names the extra to install.
    """
    path = Path(path)
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ValueError(f"cannot export to {path.name!r}: the name must end in .csv or .parquet")
    found = _read()
    if not found:
        raise ValueError("the ledger is empty: run a notebook first, each step of it appends a row")
    with atomic_write(path) as temporary:
        writers[path.suffix](temporary, found)
    return path


def package_versions() -> dict[str, str]:
    """Return the versions of Python, deploykit and those runtimes that this process has imported."""
    runtimes = {name: importlib.metadata.version(name) for name in RUNTIMES if sys.modules.get(name)}
    return {"python": platform.python_version(), "deploykit": deploykit.__version__, **runtimes}


@functools.cache
def _run_id(process: int) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{process}-{secrets.token_hex(3)}"


@functools.cache
def _say_once(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _preferred_folder() -> Path:
    named = os.environ.get("DEPLOYKIT_LEDGER")
    return Path(named).expanduser() if named else data_folder() / "ledger"


def _writable_folder() -> Path:
    preferred = _preferred_folder()
    try:
        preferred.mkdir(parents=True, exist_ok=True)
        if os.access(preferred, os.W_OK):
            return preferred
    except OSError:
        pass
    fallback = cache_folder() / "ledger"
    fallback.mkdir(parents=True, exist_ok=True)
    _say_once(f"the ledger's folder {preferred} cannot be written; rows go to {fallback} (set DEPLOYKIT_LEDGER)")
    return fallback


def _append(path: Path, line: str) -> None:
    data = line.encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # An earlier write that the disk cut short must not swallow this row.
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                data = b"\n" + data
        written = os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes of a ledger row fitted into {path}: is the disk full?")


def _read() -> list[dict[str, Any]]:
    folders = {_preferred_folder(): None, _writable_folder(): None}
    found = [row for folder in folders for path in sorted(folder.glob("*.jsonl")) for row in _read_file(path)]
    return sorted(found, key=lambda row: str(row.get("time", "")))


def _read_file(path: Path) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield _decoded(row)
        else:
            _say_once(f"ledger: skipped line {number} of {path.name}, which is not a whole row (half-written?)")


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: float(value[NON_FINITE]) if isinstance(value, dict) and NON_FINITE in value else value
        for name, value in row.items()
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _json_value(name, value) for name, value in values.items()}


def _json_value(name: str, value: Any) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # NumPy's and torch's scalars know their Python value
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str | bool | int | float | None):
        raise ValueError(  # noqa: TRY004 (bad input is a ValueError throughout deploykit)
            f"{name} is a {type(value).__name__}; a ledger row is flat: record single numbers or texts, one per column"
        )
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: str(value)}
    return value


def _conditions() -> dict[str, Any]:
    import torch

    from deploykit.machine import machine

    here = machine()
    versions = {f"version_{package}": version for package, version in package_versions().items()}
    return {"cpu": here["cpu"], "gpu": here["gpu"], "threads": torch.get_num_threads(), **versions}


def _columns(found: list[dict[str, Any]]) -> list[str]:
    present = {name: None for row in found for name in row}
    return [*FIRST_COLUMNS, *(name for name in present if name not in FIRST_COLUMNS)]


def _write_csv(path: Path, found: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, _columns(found), restval="")
        writer.writeheader()
        writer.writerows({name: _csv_value(value) for name, value in row.items()} for row in found)


def _csv_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return "" if value is None else value


def _write_parquet(path: Path, found: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            'Parquet needs pyarrow: pip install "deploykit[parquet]", or export to a name ending in .csv'
        ) from missing
    table = {}
    for name in _columns(found):
        values = [row.get(name) for row in found]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        table[name] = [None if value is None else str(value) for value in values] if mixed else values
    pyarrow.parquet.write_table(pa.table(table), path)
