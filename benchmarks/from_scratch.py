"""How good does a ResNet get in a long training from random weights, taught by the best teachers or by labels alone?

    python benchmarks/from_scratch.py resnet56 --name resnet10-fast         # an hour and a half on a CPU
    python benchmarks/from_scratch.py resnet56 --name resnet56-sgd --widths 16 32 64 --blocks 9 9 9 --alpha 0
    python benchmarks/from_scratch.py resnet56 --name trial --images 640 --epochs 1 --rounds 1 --out build/trial

The network of the first line is drawn for the processor: few layers, widths that kernels like, and a quarter of the
pixels from the first block on. Where all kernels are used whole, the int8 form takes as long as its
multiply-accumulates say. MODEL is what the network is compared with. Stopped with Ctrl-C or killed, the same command
goes on from where it was. Writes a checkpoint folder and, unless it is a trial, data/results/NAME.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from fine_tuning import command, fewer, judged, parser_of_taught, task, trained, write_network

from deploykit.models import ResNet, ResNetConfig, load_checkpoint
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate


def taught_by(teachers: Sequence[str]) -> str:
    """Say what a network learned from."""
    mean = "the mean answer of " if len(teachers) > 1 else ""
    return f"with {mean}{' and '.join(teachers)} as teacher" if teachers else "with labels alone"


def main() -> None:
    """Train, record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=1.0, teachers=("resnet20x4", "resnet56"))
    arguments.set_defaults(peak_lr=0.02, epochs=110)
    arguments.add_argument("--name", required=True, help="of the network")
    arguments.add_argument("--start", type=Path, help="folder of an earlier training's network, to go on from")
    arguments.add_argument("--widths", type=int, nargs="+", default=[32, 32, 64, 96], help="channels of each stage")
    arguments.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2, 1], help="of each stage")
    given = arguments.parse_args()
    if given.alpha == 0:
        given.teachers = ()
    work = task(given, "designed-student")
    torch.manual_seed(given.seed)
    blocks = tuple((width,) * count for width, count in zip(given.widths, given.blocks, strict=True))
    fresh = ResNet(ResNetConfig(tuple(given.widths), blocks))
    network = cast("ResNet", load_checkpoint(given.start)) if given.start else fresh
    folder = work.out / f"{given.name}-{work.dataset.name}"
    loss = work.response_loss(given)
    log, recipe = trained(network, loss, work, folder, epochs=given.epochs, peak_lr=given.peak_lr)
    accuracy = evaluate(network, work.judging)
    rows = [fewer(work.full, network) | judged(evaluate(work.full, work.judging), accuracy, log)]
    print(rows[0], flush=True)
    described, taught = network.config.description, taught_by(given.teachers)
    write_network(
        network, folder,
        description=f"{described[0].upper()}{described[1:]}, trained from random weights {taught}.",
        recipe=recipe | ({"start": given.start.name} if given.start else {}),
        accuracy=accuracy, log=log, given=given,
    )  # fmt: skip
    if work.trial:
        print(f"a trial: network in {work.out}, nothing recorded")
        return
    what = f"{given.name} on {work.dataset.name}, trained {taught}, against {given.model}"
    write_recorded(given.name, rows, what=what, command=command())
    print(recorded(given.name))


if __name__ == "__main__":
    main()
