"""Python and the packages, as their records say: none of them is imported."""

from __future__ import annotations

import platform
import struct
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from deploykit.doctor.finding import MISSING, OK, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# The extras that readers need, with what each is for. The others serve the project: its tests and its book.
EXTRAS = {
    "": "nothing of the course runs",
    "notebooks": "no notebook can be opened or run",
    "onnx": "no model is exported to ONNX, and nothing runs in ONNX Runtime",
    "openvino": "nothing runs in OpenVINO, and NNCF quantizes nothing",
    "compression": "no torchao quantization and no structured pruning",
    "training": "no student is trained: the optimizer of notebooks 08 and 09 is missing",
    "serving": "nothing is served: notebook 14 cannot start its services",
}
GROUPS = tuple(f"packages: {extra}" if extra else "packages" for extra in EXTRAS)
SHOWN = 4  # packages with their versions; the rest are counted


def python() -> Finding:
    """Compare the running Python with what deploykit asks for."""
    from packaging.specifiers import SpecifierSet

    needed, bits = metadata.metadata("deploykit")["Requires-Python"] or "", 8 * struct.calcsize("P")
    version = platform.python_version()
    if sys.version_info.releaselevel != "final":
        version += " (a pre-release)"
    found = f"{version}, {bits} bit, {platform.python_implementation()}"
    if not SpecifierSet(needed).contains(platform.python_version(), prereleases=True) or bits < 64:  # noqa: PLR2004
        cost = "torch has no build for it, so nothing of the course runs"
        return Finding("Python", MISSING, found, cost, f"install a 64-bit Python {needed} and make a new .venv with it")
    return Finding("Python", OK, found)


def packages() -> list[Finding]:
    """Compare what is installed with what deploykit and its extras ask for: one finding for each group."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("deploykit") or []]
    groups: dict[str, list[Requirement]] = {extra: [] for extra in EXTRAS}
    for requirement in requirements:
        for extra, group in groups.items():
            if requirement.marker is None:
                wanted = not extra
            else:
                # A marker without an extra holds for the empty one as well, so the core's come first and win.
                wanted = requirement.marker.evaluate({"extra": extra}) and requirement not in groups[""]
            if wanted:
                group.append(requirement)
    return [_group(name, extra, group) for name, (extra, group) in zip(GROUPS, groups.items(), strict=True)]


def _group(name: str, extra: str, requirements: list[Requirement]) -> Finding:
    there, absent, amiss = [], [], []
    # torch decides about most of what follows, so it is among those shown.
    for requirement in sorted(requirements, key=lambda wanted: (not wanted.name.startswith("torch"), wanted.name)):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            absent.append(requirement.name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            there.append(f"{requirement.name} {version}")
        else:
            amiss.append(f"{requirement.name} {version} is installed, {requirement.specifier} is needed")
    if absent:
        amiss.insert(0, f"not installed: {', '.join(absent)}")
    if amiss:
        install = f"pip install -e '.[{extra}]'" if extra else "pip install -e ."
        mend = f"python make.py cookbook makes a .venv with everything; by hand, in the checkout: {install}"
        return Finding(name, MISSING, "; ".join(amiss), EXTRAS[extra], mend)
    more = [f"and {len(there) - SHOWN} more"] if len(there) > SHOWN else []
    return Finding(name, OK, ", ".join(there[:SHOWN] + more))
