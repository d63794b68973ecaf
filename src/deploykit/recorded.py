"""Results that took hours or a GPU: run once by a command, kept with the machine, and shown as what they are."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.places import atomic_write, data_folder

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("what", "date", "command", "machine", "versions", "rows")


@dataclass(frozen=True)
class Recorded:
    """A recorded run, read from ``data/results/<name>.json``.

    Attributes:
        what: a sentence that says what was run.
        date: ISO date (UTC).
        command: reproduces it, from the root of a checkout.
        machine: what ``measure.machine()`` said there.
        versions: package to version.
        rows: the results, flat, with units in the names.
    """

    name: str
    what: str
    date: str
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def label(self) -> str:
        """The line to show with every number of it: where, when and how it was recorded."""
        where = self.machine.get("gpu") or self.machine["cpu"]
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"Recorded on {where}, {self.date}, {versions}; not run here. Reproduce it with: {self.command}"

    def table(self) -> pd.DataFrame:
        """Return the rows as a table."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __str__(self) -> str:
        return f"{self.what}\n{self.label}\n{self.table().to_string(index=False)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            f"<p>{html.escape(self.what)}</p>{self.table().to_html(index=False, border=0)}"
            f"<p><em>{html.escape(self.label)}</em></p>"
        )


def results_folder() -> Path:
    """Return the folder of recorded runs, ``data/results``."""
    return data_folder() / "results"


def write_recorded(name: str, rows: Sequence[Mapping[str, Any]], *, what: str, command: str) -> Path:
    """Write a recorded run with this machine, its versions and today's date; return the file.

    Args:
        name: of the file in ``data/results``, without suffix.
        rows: flat results, JSON values only, with units in the names.
        what: a sentence that says what was run.
        command: reproduces it, from the root of a checkout.

    Raises:
        ValueError: no rows, or a number that is not finite. Nothing is written then.
    """
    from deploykit.ledger import package_versions
    from deploykit.machine import machine

    if not rows:
        raise ValueError(f"nothing to record for {name}: a recorded run has at least one row")
    entry = {
        "what": what,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": machine(),
        "versions": package_versions(),
        "rows": [dict(row) for row in rows],
    }
    try:
        text = json.dumps(entry, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"{name} holds a number that is not finite: leave out what was not measured") from error
    path = results_folder() / f"{name}.json"
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def recorded(name: str) -> Recorded:
    """Return the recorded run ``data/results/<name>.json``.

    Raises:
        ValueError: no such run (the message lists those there are), or a file that is not a recorded run.
    """
    path = results_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in results_folder().glob("*.json"))) or "none yet"
        raise ValueError(f"there is no recorded run {name!r} in data/results; there are: {known}")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        fields = {key: entry[key] for key in KEYS}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"data/results/{name}.json is no recorded run ({error}); it needs {', '.join(KEYS)}: record it again"
        ) from error
    return Recorded(name=name, **{**fields, "rows": tuple(fields["rows"])})
