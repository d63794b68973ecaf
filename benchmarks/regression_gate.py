"""How often does the gate against slower releases raise the alarm: rightly, and for nothing?

    python benchmarks/regression_gate.py        # 40 runs of each of three cases, 8 minutes; leave the machine alone

ResNet-20 in int8 in OpenVINO against the same file loaded once more: as it is, with a slow-down of five percent
planted, and with one of three. Every run loads the files anew, so that their place in memory differs from run to run.
Writes data/results/regression-gate.json. Ends with status 1 where more than one run in twenty of the same file raises
the alarm, or fewer than nineteen in twenty find the five percent.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from deploykit.data import Batches, load_dataset
from deploykit.export import export_onnx
from deploykit.machine import usable_threads
from deploykit.measure import Predictor
from deploykit.models import load_pretrained
from deploykit.quantization.onnx import quantize_onnx
from deploykit.recorded import recorded, write_recorded
from deploykit.regression import SLOWER, check_regression
from deploykit.runtimes import onnxruntime, openvino
from deploykit.significance import wilson_interval

PLANTED = {"the same file": 0.0, "3 % planted": 0.03, "5 % planted": 0.05}
FALSE_ALARMS, FOUND = 0.05, 0.95  # at most, and at least
CALIBRATION, BATCH = 256, 64


def slowed(predictor: Predictor, share: float) -> Predictor:
    """Return a predictor that takes longer by a share of its time: it goes on to keep its core busy."""

    def call(images: Tensor) -> Tensor:
        begun = time.perf_counter()
        logits = predictor(images)
        end = time.perf_counter() + share * (time.perf_counter() - begun)
        while share and time.perf_counter() < end:
            pass
        return logits

    return call


def main() -> int:
    """Run the gate again and again; record and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--budget-s", type=float, default=3.5, help="of one run of one case")
    given = parser.parse_args()
    torch.set_num_threads(usable_threads())
    dataset = load_dataset("cifar10")
    calibration = Batches(dataset.train.take(CALIBRATION, seed=0), dataset, batch_size=BATCH)
    images = next(iter(calibration))[0].contiguous()
    proto = export_onnx(load_pretrained("resnet20", dataset.name), images)
    outcomes: dict[str, Counter[str]] = {case: Counter() for case in PLANTED}
    slowdowns: dict[str, list[float]] = {case: [] for case in PLANTED}
    with tempfile.TemporaryDirectory() as folder:
        file = onnxruntime.save(quantize_onnx(proto, calibration).model, Path(folder) / "int8.onnx")
        for number in range(given.runs):
            for case, share in PLANTED.items():
                found = check_regression(
                    openvino.load(file), slowed(openvino.load(file), share), images,
                    budget_s=given.budget_s, seed=number,
                )  # fmt: skip
                outcomes[case][found.outcome] += 1
                slowdowns[case].append(found.slowdown)
                print(f"{number + 1} of {given.runs}, {case}: {found}", flush=True)
    rows = []
    for case, counted in outcomes.items():
        low, high = wilson_interval(counted[SLOWER], given.runs)
        ordered = sorted(slowdowns[case])
        rows.append({
            "case": case, "runs": given.runs, "alarms": counted[SLOWER], "undecided": counted["undecided"],
            "passed": counted["not slower"], "alarm_rate_low": round(low, 3), "alarm_rate_high": round(high, 3),
            "slowdown_median_percent": round(100 * ordered[len(ordered) // 2], 2),
            "slowdown_least_percent": round(100 * ordered[0], 2),
            "slowdown_most_percent": round(100 * ordered[-1], 2),
        })  # fmt: skip
    what = (
        f"the gate of deploykit.regression, {given.runs} runs of each case, {given.budget_s:g} s a run: ResNet-20 in "
        f"int8 in OpenVINO, batch {BATCH}, two percent allowed; the rates are of alarms, with 95 % intervals"
    )
    command = shlex.join(["python", "benchmarks/regression_gate.py", *sys.argv[1:]])
    write_recorded("regression-gate", rows, what=what, command=command)
    print(recorded("regression-gate"))
    false, right = (outcomes[case][SLOWER] / given.runs for case in ("the same file", "5 % planted"))
    return int(false > FALSE_ALARMS or right < FOUND)


if __name__ == "__main__":
    sys.exit(main())
