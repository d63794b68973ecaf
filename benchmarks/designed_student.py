"""How good is a small network that was drawn for the processor, when it is taught for long by the best teachers?

    python benchmarks/designed_student.py resnet56 --name resnet10-fast     # an hour and a half on a CPU
    python benchmarks/designed_student.py resnet56 --name trial --images 640 --epochs 1 --rounds 1 --out build/trial

Few layers, widths that kernels like, and a quarter of the pixels from the first block on: where all kernels are used
whole, the int8 form takes as long as its multiply-accumulates say. Starts from random weights and learns from the mean
answer of several teachers. Stopped with Ctrl-C or killed, the same command goes on from where it was. Writes a
checkpoint folder and, unless it is a trial, data/results/NAME.json.
"""

from __future__ import annotations

import torch
from fine_tuning import command, fewer, judged, parser_of_taught, task, trained, write_network

from deploykit.models import ResNet, ResNetConfig
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate


def main() -> None:
    """Train, record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=1.0, teachers=("resnet20x4", "resnet56"))
    arguments.set_defaults(peak_lr=0.02, epochs=110)
    arguments.add_argument("--name", required=True, help="of the student")
    arguments.add_argument("--widths", type=int, nargs="+", default=[32, 32, 64, 96], help="channels of each stage")
    arguments.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2, 1], help="of each stage")
    given = arguments.parse_args()
    work = task(given, "designed-student")
    torch.manual_seed(given.seed)
    blocks = tuple((width,) * count for width, count in zip(given.widths, given.blocks, strict=True))
    network = ResNet(ResNetConfig(tuple(given.widths), blocks))
    folder = work.out / f"{given.name}-{work.dataset.name}"
    loss = work.response_loss(given)
    log, recipe = trained(network, loss, work, folder, epochs=given.epochs, peak_lr=given.peak_lr)
    accuracy = evaluate(network, work.judging)
    rows = [fewer(work.full, network) | judged(evaluate(work.full, work.judging), accuracy, log)]
    print(rows[0], flush=True)
    described = network.config.description
    write_network(
        network, folder,
        description=f"{described[0].upper()}{described[1:]}, drawn for the speed of its int8 form and trained from "
        f"random weights, with the mean answer of {' and '.join(given.teachers)} as teacher.",
        recipe=recipe,
        accuracy=accuracy, log=log, given=given,
    )  # fmt: skip
    if work.trial:
        print(f"a trial: network in {work.out}, nothing recorded")
        return
    what = f"{given.name} on {work.dataset.name}, taught by {' and '.join(given.teachers)}, against {given.model}"
    write_recorded(given.name, rows, what=what, command=command())
    print(recorded(given.name))


if __name__ == "__main__":
    main()
