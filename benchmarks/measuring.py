"""Measure the measuring: does deploykit.measure agree with its references, and are its intervals honest?

    python benchmarks/measuring.py                # every part, about 15 minutes on an idle machine
    python benchmarks/measuring.py same planted   # these parts only
    python benchmarks/measuring.py same --at-most-s 120   # stop after 2 minutes; the next run goes on from there

Each part replaces its own rows in data/results/measuring.json. Two parts repeat a comparison (`same` 200 times,
`planted` 60 times) and add to what an earlier, interrupted run has done; --again starts them anew.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from deploykit.cost import macs, parameters
from deploykit.free_speed import keep_freed_memory
from deploykit.measure import Predictor, compare, measure
from deploykit.models import resnet
from deploykit.recorded import recorded, results_folder, write_recorded

Row = dict[str, Any]

COMMAND = "python benchmarks/measuring.py"
SLOW_DOWN = 0.03
BLOCKS = 7
LITERATURE_MMACS = {20: 40.8, 56: 125.5}


def batch_of(size: int) -> Tensor:
    """Return normally distributed images, float32 [size, 3, 32, 32]."""
    return torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def judged(found: float, low: float, high: float) -> Row:
    """Return a figure beside what is wanted of it."""
    return {"found": round(found, 4), "wanted": f"{low:g} to {high:g}", "holds": low <= found <= high}


def timer_rows() -> Iterator[Row]:
    """Time ResNet-20 by torch.utils.benchmark and by measure() in turns; the ratio of neighbours should be 1."""
    model, threads = resnet(20).eval(), torch.get_num_threads()
    for batch in (1, 64):
        images, ours, theirs = batch_of(batch), [], []
        timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
        with torch.inference_mode():
            for _ in range(12):
                theirs.append(1000 * timer.blocked_autorange(min_run_time=1.0).median)
                ours.append(measure(model, images, budget_s=1.0).median_ms)
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        yield {
            "check": f"measure / torch.utils.benchmark, ResNet-20, batch {batch}",
            **judged(ratio, 0.97, 1.03),
            "measure_ms": round(statistics.median(ours), 4),
            "timer_ms": round(statistics.median(theirs), 4),
        }


def count_rows() -> Iterator[Row]:
    """Count multiply-accumulates and compare with the literature."""
    for depth, literature in LITERATURE_MMACS.items():
        model = resnet(depth)
        found = macs(model, batch_of(1)) / 1e6
        yield {
            "check": f"MMACs of ResNet-{depth} ({parameters(model):,} parameters)",
            **judged(found, 0.995 * literature, 1.005 * literature),
        }


def sleep_rows() -> Iterator[Row]:
    """Measure a predictor that sleeps for 5 ms, and lets the operating system wake it a little later."""
    logits, slept_s = torch.zeros(1, 10), []

    def predict(_: Tensor) -> Tensor:
        began = time.perf_counter()
        time.sleep(0.005)
        slept_s.append(time.perf_counter() - began)
        return logits

    found = measure(predict, batch_of(1), budget_s=5)
    own_ms = 1000 * statistics.median(slept_s)
    yield {
        "check": "a predictor that sleeps 5 ms, measured / by its own clock",
        **judged(found.median_ms / own_ms, 0.99, 1.01),
        "measured_ms": round(found.median_ms, 4),
        "own_ms": round(own_ms, 4),
    }


def runtimes(model: nn.Module, folder: Path) -> dict[str, Predictor]:
    """Return the model in the runtimes that are installed, with their threads spinning as they do by default."""
    try:
        import onnxruntime
        import openvino
    except ImportError as error:
        print(f"{error.name} is not installed; the comparison with a block goes without runtimes whose threads spin")
        return {}
    path = folder / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.onnx.export(
        model, (batch_of(2),), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(path, "CPU", settings)
    return {
        "onnxruntime, spinning": lambda images: session.run(None, {"images": images.numpy()})[0],
        "openvino": lambda images: compiled(images.numpy())[0].copy(),
    }


def block_rows() -> Iterator[Row]:
    """Measure contestants in turns, and each alone in a block before and after, several times over.

    The times should be the same; the median over the repetitions leaves out those between which the machine changed.
    """
    model = resnet(20).eval()
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Predictor] = {"eager": model, "eager ResNet-8": resnet(8).eval()}
        contestants |= runtimes(model, Path(folder))
        for batch in (1, 64):
            images = batch_of(batch)
            alone, turns = [_alone_ms(contestants, images)], []
            for seed in range(BLOCKS):
                taken = compare(contestants, images, budget_s=4, seed=seed).measurements
                turns.append({name: taken[name].median_ms for name in contestants})
                alone.append(_alone_ms(contestants, images))
            for name in contestants:
                ratios = [
                    2 * turn[name] / (before[name] + after[name])
                    for turn, (before, after) in zip(turns, itertools.pairwise(alone), strict=True)
                ]
                yield {
                    "check": f"in turns / alone in a block, {name}, batch {batch}",
                    **judged(statistics.median(ratios), 0.9, 1.1),
                    "lowest": round(min(ratios), 4),
                    "highest": round(max(ratios), 4),
                    "turns_ms": round(statistics.median(turn[name] for turn in turns), 4),
                }


def _alone_ms(contestants: dict[str, Predictor], images: Tensor) -> dict[str, float]:
    return {name: measure(predictor, images, budget_s=0.7).median_ms for name, predictor in contestants.items()}


@dataclass(frozen=True)
class Repetition:
    """A comparison of "first" and "second", made again and again.

    Attributes:
        comparisons: how many.
        seconds: budget of each.
        is_hit: says of an interval (low, high) whether it is the right one.
    """

    comparisons: int
    seconds: float
    is_hit: Callable[[float, float], bool]

    def go_on(self, contestants: dict[str, Predictor], earlier: Row, at_most_s: float) -> Row:
        """Add comparisons to those of an earlier run, made with the same budget, until there are enough."""
        if earlier.get("seconds_per_comparison") != self.seconds:
            earlier = {}
        done, hits, widths = (earlier.get(key, 0) for key in ("comparisons", "hits", "sum_of_half_widths"))
        images, began = batch_of(1), time.perf_counter()
        while done < self.comparisons and time.perf_counter() - began < at_most_s:
            _, low, high = compare(contestants, images, budget_s=self.seconds, seed=done).ratio("second")
            hits += self.is_hit(low, high)
            widths += (high - low) / 2
            done += 1
        return {
            "comparisons": done,
            "hits": hits,
            "sum_of_half_widths": round(widths, 5),
            "seconds_per_comparison": self.seconds,
        }


# A false alarm does not depend on the budget, so many short comparisons tell most; a small difference needs a longer
# one, and 60 are enough to tell 95 % found from 85 %.
SAME = Repetition(200, 0.7, lambda low, high: low <= 1 <= high)
PLANTED = Repetition(60, 10.0, lambda _, high: high < 1)


def same_row(earlier: Row, at_most_s: float) -> Row:
    """Compare ResNet-20 with itself: the interval should hold 1 in 95 % of the comparisons."""
    model = resnet(20).eval()
    row = SAME.go_on({"first": model, "second": model}, earlier, at_most_s)
    return {"check": "compare(x, x): intervals with 1", **judged(row["hits"] / row["comparisons"], 0.93, 0.97), **row}


def planted_row(earlier: Row, at_most_s: float) -> Row:
    """Compare ResNet-20 with itself and a busy-wait of 3 % of each call: the interval should lie below 1."""
    model = resnet(20).eval()

    def slower(images: Tensor) -> Tensor:
        began = time.perf_counter()
        logits = model(images)
        until = began + (1 + SLOW_DOWN) * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
        return logits

    row = PLANTED.go_on({"first": model, "second": slower}, earlier, at_most_s)
    return {"check": "a slow-down of 3 % found", **judged(row["hits"] / row["comparisons"], 0.95, 1), **row}


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "timer": timer_rows,
    "counts": count_rows,
    "sleep": sleep_rows,
    "blocks": block_rows,
}
REPEATED: dict[str, Callable[[Row, float], Row]] = {"same": same_row, "planted": planted_row}


def main() -> None:
    """Run the parts that are asked for, record each when it is done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join((*PARTS, *REPEATED))}; default: all")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--at-most-s", type=float, default=3600, help="seconds for each of the repeated parts")
    parser.add_argument("--again", action="store_true", help="forget what earlier runs of these parts have done")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = arguments.parts or [*PARTS, *REPEATED]
    if unknown := set(chosen) - PARTS.keys() - REPEATED.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join((*PARTS, *REPEATED))}")
    keep_freed_memory()  # or a contestant's time would depend on what others have left in the heap, by up to a third
    rows = list(recorded("measuring").rows) if (results_folder() / "measuring.json").exists() else []
    for part in chosen:
        if part in PARTS:
            found = list(PARTS[part]())
        else:
            earlier = {} if arguments.again else next((row for row in rows if row["part"] == part), {})
            found = [REPEATED[part](dict(earlier), arguments.at_most_s)]
        ran = {"threads": torch.get_num_threads(), "date": datetime.now(UTC).date().isoformat()}
        rows = [row for row in rows if row["part"] != part] + [{"part": part, **row, **ran} for row in found]
        write_recorded("measuring", rows, what="deploykit.measure against its references", command=COMMAND)
    columns = ["part", "check", "found", "wanted", "holds", "comparisons"]
    print(recorded("measuring").table().reindex(columns=columns).to_string(index=False, na_rep=""))


if __name__ == "__main__":
    main()
