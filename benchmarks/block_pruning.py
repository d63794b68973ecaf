"""What does a network lose with whole residual blocks, after a full budget of fine-tuning with a teacher?

    python benchmarks/block_pruning.py resnet20 --blocks 1 2 5 --epochs 15            # an hour on a CPU
    python benchmarks/block_pruning.py resnet20 --blocks 1 2 5 --split train     # to choose a recipe, judged on val
    python benchmarks/block_pruning.py resnet20 --blocks 1 --dataset shapes32 --images 640 --epochs 1 --out build/trial

Blocks of high resolution cost as many multiply-accumulates as others and more time (notebook 06). The widths stay what
kernels like. Stopped with Ctrl-C or killed, the same command goes on from where it was. Writes a checkpoint folder and,
unless it is a trial, data/results/block-pruning-MODEL.json, with --teachers block-pruning-MODEL-minusN.json.
"""

from __future__ import annotations

from typing import cast

from fine_tuning import EXAMPLE, command, fewer, judged, parser_of_taught, task, trained, write_network

from deploykit.models import ResNet, resnet_like
from deploykit.pruning.blocks import prune_blocks
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate


def main() -> None:
    """Remove the blocks, fine-tune, record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=2.0)
    arguments.add_argument("--blocks", type=int, nargs="+", required=True, help="numbers of blocks to remove, from 0")
    given = arguments.parse_args()
    work = task(given, "block-pruning")
    names = [f"blocks.{number}" for number in given.blocks]
    network = resnet_like(cast("ResNet", prune_blocks(work.full, names, example_input=EXAMPLE)))
    loss = work.response_loss(given)
    folder = work.out / f"{given.model}-minus{len(names)}blocks-{work.dataset.name}"
    before = evaluate(work.full, work.judging)
    log, recipe = trained(network, loss, work, folder, epochs=given.epochs, peak_lr=given.peak_lr)
    accuracy = evaluate(network, work.judging)
    rows = [{"blocks_removed": len(names)} | fewer(work.full, network) | judged(before, accuracy, log)]
    print(rows[0], flush=True)
    described = network.config.description
    write_network(
        network, folder,
        description=f"{described[0].upper()}{described[1:]}: {given.model} without {', '.join(names)}, fine-tuned with "
        f"{' and '.join(given.teachers or ['the unpruned network'])} as teacher.",
        recipe=recipe,
        accuracy=accuracy, log=log, given=given,
    )  # fmt: skip
    if work.trial:
        print(f"a trial: network in {work.out}, nothing recorded")
        return
    what = f"{given.model} on {work.dataset.name} without {', '.join(names)}, against the unpruned network"
    name = f"block-pruning-{given.model}" + (f"-minus{len(names)}" if given.teachers else "")
    write_recorded(name, rows, what=what, command=command())
    print(recorded(name))


if __name__ == "__main__":
    main()
