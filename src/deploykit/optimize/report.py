"""The report of an optimization: one HTML page that needs nothing else, with the table and the picture beside it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.ledger import package_versions
from deploykit.machine import machine, usable_threads
from deploykit.optimize.choice import label, verdict
from deploykit.optimize.plan import duration
from deploykit.optimize.result import SCRIPT, WINNER, Optimized
from deploykit.places import atomic_write
from deploykit.rows import Row

if TYPE_CHECKING:
    from deploykit.figures import Plot

TEMPLATE = "report.html.jinja"
REPORT, TABLE, PICTURE = "report.html", "table.csv", "pareto.png"
DPI = 200  # screens of phones have several pixels for a point
NEEDED = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
KIB = 1024


@dataclass(frozen=True)
class Told:
    """What a report says beside what was found.

    Attributes:
        model: what was optimised, in the words of whoever did.
        data: name of the data.
        command: that does it again.
        notes: what a reader should know, one sentence or two each.
    """

    model: str
    data: str
    command: str
    notes: Sequence[str] = ()


def write_report(found: Optimized, folder: Path, told: Told) -> Path:
    """Write ``report.html``, ``table.csv`` and ``pareto.png`` into the folder and return the page's path.

    Args:
        found: from :func:`~.run.optimize`.
        folder: of the run.
        told: what else the page says.
    """
    from deploykit.figures import style

    plot = picture(found)
    with atomic_write(folder / PICTURE) as partial, style():  # ticks are created while drawing
        plot.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    with atomic_write(folder / TABLE) as partial:
        found.table().to_csv(partial, index=False)
    with atomic_write(folder / REPORT) as partial:
        partial.write_text(page(found, told, plot.alt, (folder / PICTURE).read_bytes()), encoding="utf-8")
    return folder / REPORT


def picture(found: Optimized) -> Plot:
    """Return accuracy on val against time, all rows that were measured, with the accuracy that was demanded."""
    import pandas as pd

    from deploykit.plots import pareto

    shown = [row for row in found.rows if row.ok and row.accuracy and row.latency and row.size_mib]
    columns: dict[str, list[float]] = {
        "accuracy": [row.accuracy.accuracy for row in shown if row.accuracy],
        "latency_ms": [row.latency.median_ms for row in shown if row.latency],
        "size_kib": [KIB * row.size_mib for row in shown if row.size_mib],
    }
    table = pd.DataFrame(columns, index=[row.name for row in shown])
    least = columns["accuracy"][0] - found.max_drop / 100
    return pareto(table, least_accuracy=least, chosen=found.winner.name)


def page(found: Optimized, told: Told, alt: str, png: bytes) -> str:
    """Return the page: everything in it, nothing fetched."""
    import jinja2

    text = resources.files("deploykit.optimize").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    seen = found.rows[0].accuracy
    return environment.from_string(text).render(
        found=found, told=told, alt=alt,
        picture=base64.b64encode(png).decode("ascii"),
        groups=_groups(found),
        plan=[(step.name, step.why, duration(step.seconds)) for step in found.plan.steps()],
        budget=duration(found.plan.budget_s),
        notes=[*told.notes, *found.doubts],
        before=_result(found.rows[0], found.before),
        after=_result(found.winner, found.after),
        val_images=f"{seen.images:,}" if seen else "no",
        test_images=f"{found.after.images:,}",
        timed=timed(found),
        run=f"python {WINNER}/{SCRIPT} picture.png",
        package=NEEDED.get(found.winner.runtime),
        here=_here(),
    )  # fmt: skip


def timed(found: Optimized) -> str:
    """Say what one call is."""
    return "one image" if found.batch == 1 else f"a batch of {found.batch} images"


def _groups(found: Optimized) -> list[dict[str, Any]]:
    """Return the rows of the table by network, as text."""
    groups = []
    for network, rows in itertools.groupby(found.rows, lambda row: row.network):
        lines = [
            {
                "name": "not made" if label(row) == row.network else f"{row.runtime} {row.precision}",
                "verdict": verdict(row, found.rows, found.winner, found.max_drop),
                "chosen": row is found.winner,
                "ok": row.ok,
                **{name.replace(" ", "_"): text for name, text in row.shown().items()},
            }
            for row in rows
        ]
        groups.append({"network": network, "done": found.done.get(network, ""), "rows": lines})
    return groups


def _result(row: Row, accuracy: Any) -> dict[str, str]:
    low, high = accuracy.interval
    texts = row.shown()
    return {
        "name": row.name,
        "accuracy": f"{accuracy.accuracy:.2%}",
        "between": f"{low:.2%} to {high:.2%}",
        "ms": texts["ms"],
        "MiB": texts["MiB"],
        "faster": texts["faster"],
        "faster_between": texts["between"],
    }


def _here() -> dict[str, str]:
    facts = machine()
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    features = ", ".join(facts["features"]) or "none that matters here"
    return {
        "processor": f"{facts['cpu']} ({features})",
        "threads": str(usable_threads()),
        "memory": f"{facts['memory_gib']} GiB",
        "system": facts["os"],
        "versions": versions,
    }
