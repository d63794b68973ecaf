"""``deploykit doctor``: is this machine ready for the course, and what can be mended?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import output
from deploykit.cli.contract import Status

if TYPE_CHECKING:
    from deploykit.doctor import Finding

INDENT = 9  # the longest status and a gap


def doctor(
    *,
    workshop: Annotated[
        bool, typer.Option("--workshop", help="See also whether several readers can work here at once.")
    ] = (False),
    offline: Annotated[bool, typer.Option("--offline", help="Contact nobody; the network is then not examined.")] = (
        False
    ),
    as_json: output.Json = False,
) -> None:
    """Examine whether this machine is ready for the course.

    Says what is there, what is missing or limited, what that costs you, and how to mend it. Ends with status 1 when
    something is missing; what is limited only takes something away.
    """
    from deploykit.doctor import examine, healthy

    findings = examine(workshop=workshop, online=not offline)
    well = healthy(findings)
    if as_json:
        output.document({
            "healthy": well,
            "workshop": workshop,
            "findings": [finding.to_dict() for finding in findings],
        })  # fmt: skip
    else:
        output.show(_report(findings, well=well))
    raise typer.Exit(Status.DONE if well else Status.FAILED_CHECK)


def _report(findings: list[Finding], *, well: bool) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(output.hanging(f"{finding.status:<{INDENT}}{finding.name:<{width}}  ", finding.found))
        told = (("cost", finding.cost), ("mend", finding.mend))
        lines += [output.hanging(f"{'':{INDENT}}{what}: ", text) for what, text in told if text]
    counts = Counter(finding.status for finding in findings)
    counted = ", ".join(f"{count} {status}" for status, count in counts.items())
    verdict = "ready for the course" if well else "not ready, see what is missing"
    return "\n".join([*lines, "", f"{verdict}: {counted}"])
