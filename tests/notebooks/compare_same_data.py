"""A plugin for nbval: outputs about CIFAR-10 are compared with a run on CIFAR-10 only.

A cell tagged ``cifar10`` whose output is checked is run in any case. Where the banner of this run names other data than
the committed banner does, its output is not compared, and that is reported as a skip with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from nbval.plugin import IPyNbCell

TAG = "cifar10"
DATASET = re.compile(r"^dataset\s+(.+)$", re.MULTILINE)


def dataset(outputs: list[dict]) -> str | None:
    """Return what a banner among ``outputs`` says about the dataset in use."""
    for output in outputs:
        if found := DATASET.search(output.get("data", {}).get("text/plain", "") or output.get("text", "")):
            return found.group(1).strip()
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Switch the comparison off where the data differ, run the cell, then say so."""
    reason = _other_data(item) if isinstance(item, IPyNbCell) else None
    if reason:
        item.options["check"] = False
    result = yield
    if reason:
        pytest.skip(reason)
    return result


def _other_data(item: IPyNbCell) -> str | None:
    if not item.options["check"] or TAG not in item.cell.metadata.get("tags", []):
        return None
    cells = [cell for cell in item.session.items if cell.parent is item.parent]
    committed = next(filter(None, (dataset(cell.cell.outputs) for cell in cells)), None)
    here = next(filter(None, (dataset(cell.test_outputs or []) for cell in cells)), None)
    if committed == here:
        return None
    return f"not compared: it is committed for {committed}, this run has {here}; set DEPLOYKIT_DATA to CIFAR-10"
