"""``deploykit optimize``: the fastest form of a network that keeps its accuracy, as files, with a report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploykit.cli import models, output
from deploykit.cli.contract import NAME, Status, StopError
from deploykit.cli.data import DATASETS

if TYPE_CHECKING:
    from deploykit.data import Dataset
    from deploykit.optimize import Optimized, Plan
    from deploykit.optimize.report import Told

ANY_X86 = "x86"  # with whatever instructions this machine has
HEAD = ("form", "accuracy", "points lost", "ms", "faster", "MiB", "verdict")
STEPS = "ONNX Runtime float32, OpenVINO float32, OpenVINO bfloat16, ONNX Runtime int8, OpenVINO int8, fewer blocks, "
OF_VAL = (
    "This network was trained on the validation images, too: it knows them by heart, and all that is made of it seems "
    "to lose more on them than it does. Test images are unknown to all of them alike."
)
UNCHECKED = (
    "Not checked: nothing was executed and no image was opened, so FILE.py:FUNCTION may fail, return no module, or one "
    "that does not fit the weights, and the network may not fit the data."
)
WITHOUT_VNNI = (
    "Measured on an x86 processor with VNNI: where that is missing, int8 gains less, and the choice may be another."
)


def optimize(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of the course (resnet20), a checkpoint folder, or FILE.py:FUNCTION, which is executed and "
            "returns a torch module.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; the same command goes on in it.")] = Path("optimized"),
    weights: Annotated[Path | None, typer.Option(show_default=False, help=models.WEIGHTS)] = None,
    data: Annotated[str, typer.Option(help=DATASETS)] = "auto",
    size: Annotated[int, typer.Option(min=1, help=models.SIZE)] = models.PIXELS,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of accuracy that may be lost.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch, as where it will run.")] = 1,
    target: Annotated[
        Literal["auto", "x86", "x86-vnni", "arm"],
        typer.Option(help="Where it will run. auto is this machine; another one's plan can be seen with --dry-run."),
    ] = "auto",
    budget: Annotated[str, typer.Option(metavar="TIME", help="For all of it, about: 90s, 10min, 1.5h.")] = "10min",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", show_default=False, help=f"Try only this: {STEPS}fewer channels."),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="STEP", show_default=False, help="Leave this out.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the arguments, print the plan, and do nothing.")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """Find the fastest form of a network that keeps its accuracy.

    Tries runtimes, int8 and smaller networks that the given one teaches, measures each, chooses on validation images
    and reports on test images. Writes report.html and winner/, the artifact with a script that runs it without
    deploykit. Your files are only read, but FILE.py is executed. Status 1 when no step could be measured.
    """
    from deploykit.noise import silence_known_noise

    silence_known_noise()
    models.refuse_mistakes(model, weights, data)
    if model.endswith(".onnx"):
        raise StopError(
            "optimize takes a torch module; of an ONNX file deploykit benchmark measures all forms", Status.USAGE
        )
    from deploykit.optimize.folder import refuse_foreign
    from deploykit.optimize.plan import parse_budget, plan_optimization

    refuse_foreign(out)

    here = _processor()
    there = here if target == "auto" or (target == ANY_X86 and here.startswith(ANY_X86)) else target
    plan = plan_optimization(only=only or (), skip=skip or (), budget_s=parse_budget(budget), runtimes=_runtimes(there))
    given = {"model": model, "target": there, "max_drop": max_drop, "batch": batch, "budget_s": plan.budget_s}
    given["plan"] = [{"step": step.name, "why": step.why, "seconds": step.seconds} for step in plan.steps()]
    if dry_run:
        _tell({"notes": [UNCHECKED]}, given, _plan_text(plan), as_json=as_json)
        return
    if there != here:
        raise StopError(
            f"{there} cannot be measured on this machine, which is {here}; run the command there, or look at its plan "
            "with --dry-run",
            Status.UNABLE,
        )
    dataset = models.sized_dataset(data, size)
    notes = [OF_VAL] if models.knows_val(model, dataset) else []
    notes += [WITHOUT_VNNI] if target == ANY_X86 and here != ANY_X86 else []
    found = _found(model, weights, dataset, out, plan, max_drop=max_drop, batch=batch)
    from deploykit.optimize.report import Told, write_report

    told = Told(model, dataset.name, shlex.join([NAME, *context.obj["arguments"]]), notes)
    page = write_report(found, out, told)
    _tell(_document(found, dataset, out, told), given, _text(found, told, out, page), as_json=as_json)
    raise typer.Exit(Status.DONE if any(row.ok for row in found.rows[1:]) else Status.FAILED_CHECK)


def _found(
    model: str, weights: Path | None, dataset: Dataset, out: Path, plan: Plan, *, max_drop: float, batch: int
) -> Optimized:
    from deploykit import optimize as library

    try:
        return library.optimize(
            models.module_of(model, weights, dataset), dataset, out,
            max_drop=max_drop, batch=batch, plan=plan, report=output.say, progress=sys.stderr.isatty(),
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        where = str(stop).partition(";")[0] or "stopped"
        raise StopError(f"{where}; the same command goes on from there", Status.STOPPED) from stop


def _processor() -> str:
    """Return what this machine's processor is as a target, whether or not there is a GPU beside it."""
    from deploykit.advisor.situation import target_of
    from deploykit.machine import machine

    return target_of({**machine(), "gpu": None})


def _runtimes(target: str) -> list[str]:
    from deploykit.advisor.case import RUNTIME_NAMES
    from deploykit.advisor.situation import RUNTIMES

    return [RUNTIME_NAMES[name] for name in RUNTIMES[target]]


def _tell(found: dict[str, Any], given: dict[str, Any], text: str, *, as_json: bool) -> None:
    nothing = dict.fromkeys(("dataset", "cpu", "threads", "profile", "rows", "winner", "test", "notes", "out"))
    if as_json:
        output.document({**given, **nothing, **found})
    else:
        output.show(text)


def _document(found: Optimized, dataset: Dataset, out: Path, told: Told) -> dict[str, Any]:
    import torch

    from deploykit.machine import machine

    lost = found.difference
    return {
        "dataset": dataset.name,
        "cpu": machine()["cpu"],
        "threads": torch.get_num_threads(),
        "profile": dataclasses.asdict(found.bottleneck),
        "rows": found.figures(),
        "winner": found.winner.name if found.helped else None,
        "test": {
            "images": found.after.images,
            "accuracy_before": found.before.accuracy,
            "accuracy": found.after.accuracy,
            "points_lost": 100 * (0 - lost.difference),
            "points_lost_low": 100 * (0 - lost.interval[1]),
            "points_lost_high": 100 * (0 - lost.interval[0]),
        },
        "notes": [*told.notes, *found.doubts],
        "out": str(out),
    }


def _plan_text(plan: Plan) -> str:
    from deploykit.optimize.plan import duration

    lines = [(step.name, f"about {duration(step.seconds)}", step.why) for step in plan.steps()]
    return "\n".join([
        output.table(lines, head=("step", "share", "why")),
        "",
        output.paragraph(
            f"{duration(plan.budget_s)} in all, about. Where a step takes more than its share, fine-tuning gets less, "
            "and a smaller network is left out where it cannot be taught in what remains. The report on test images "
            "comes on top."
        ),
        output.paragraph(UNCHECKED),
    ])  # fmt: skip


def _text(found: Optimized, told: Told, out: Path, page: Path) -> str:
    from deploykit.optimize.choice import label, verdict
    from deploykit.optimize.report import SCRIPT, WINNER, timed

    seen = found.rows[0].accuracy
    cells = []
    for row in found.rows:
        figures = row.shown()
        what = verdict(row, found.rows, found.winner, found.max_drop) if row.ok else "failed"
        figures["accuracy"] = figures["accuracy"].partition(" ")[0]  # its interval is in the report
        cells.append((label(row), *(figures[name] for name in HEAD[1:-1]), what))
    lines = [
        output.paragraph(
            f"{told.model} on {told.data}: accuracies of {seen.images if seen else 0:,} validation images, times of "
            f"{timed(found)}; points that may be lost: {found.max_drop:g}"
        ),
        "",
        output.table(cells, head=HEAD),
        "",
    ]
    lines += [output.paragraph(str(found.bottleneck)), ""]
    if failed := [(label(row), row.status) for row in found.rows if not row.ok]:
        lines += ["Not measured:", output.table(failed), ""]
    lines.append(output.paragraph(str(found)))
    lines += [output.paragraph(f"Note: {note}") for note in (*told.notes, *found.doubts)]
    if found.helped:
        lines.append(f"Run it:  python {out / WINNER / SCRIPT} picture.png")
    return "\n".join([*lines, f"Report:  {page}"])
