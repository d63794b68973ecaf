"""Whether packages and CIFAR-10 could be fetched. Nothing needs it once both are there."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from deploykit.doctor.finding import LIMITED, OK, Finding

PATIENCE_S = 2.0
PACKAGES = "https://pypi.org/"


def network() -> Finding:
    """Knock at the package index (that of ``$PIP_INDEX_URL``, if set) and at CIFAR-10's server; fetch nothing."""
    from deploykit.cifar10 import URL

    hosts = {"the package index": os.environ.get("PIP_INDEX_URL") or PACKAGES, "CIFAR-10's server": URL}
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = dict(zip(hosts, pool.map(_answers, hosts.values()), strict=True))
    silent = [host for host, answered in answers.items() if not answered]
    if not silent:
        return Finding("network", OK, f"{' and '.join(hosts)} answer")
    found = f"no answer from {' and '.join(silent)} within {PATIENCE_S:g} s"
    costs = {
        "the package index": "missing packages cannot be installed",
        "CIFAR-10's server": "CIFAR-10 cannot be downloaded: without a copy the course runs on the drawn shapes32",
    }
    cost = "; ".join(costs[host] for host in silent) + "; what is here already works offline"
    mend = "join a network, or set HTTPS_PROXY where one needs a proxy; --offline leaves this out"
    return Finding("network", LIMITED, found, cost, mend)


def _answers(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (https, or what the reader set for pip)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # whoever refuses has answered
    except (OSError, ValueError):
        return False
