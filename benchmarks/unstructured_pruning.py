"""What does a network lose when most of its weights become 0, after a full budget of training?

    python benchmarks/unstructured_pruning.py resnet20                            # 80 and 90 %, hours on a CPU
    python benchmarks/unstructured_pruning.py resnet20 --sparsities 0.9 --start FOLDER/resnet20-sparse80-cifar10
    python benchmarks/unstructured_pruning.py resnet8 --dataset shapes32 --images 640 --epochs 2 --out build/trial

The sparsity rises along a cubic schedule while the network is fine-tuned with its dense self, or --teachers, as
teacher: from 0, or from that of the network in the folder --start. Stopped with Ctrl-C or killed, the same command goes
on from where it was. Writes for each sparsity a checkpoint folder, with the zeros in its weights, and, unless it is a
trial, the record data/results/unstructured-pruning-MODEL-PERCENT.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from fine_tuning import command, judged, parser_of_taught, task, trained, write_network

from deploykit.models import Network, load_checkpoint
from deploykit.pruning.masks import make_permanent
from deploykit.pruning.schedule import GradualPruning, SparsitySchedule, prepare_gradual_pruning
from deploykit.pruning.sparsity import sparsity_report
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate


def main() -> None:
    """Train one sparsity after the other, each from the same network; record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=4.0)
    arguments.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    arguments.add_argument("--start", type=Path, help="folder of a network with fewer zeros, to go on from")
    given = arguments.parse_args()
    work = task(given, "unstructured-pruning")
    before = evaluate(work.full, work.judging)
    start = load_checkpoint(given.start) if given.start else work.full
    initial = sparsity_report(start).sparsity
    for sparsity in given.sparsities:
        folder = work.out / f"{given.model}-sparse{100 * sparsity:g}-{work.dataset.name}"
        loss = GradualPruning(
            SparsitySchedule(sparsity, initial),
            steps=given.epochs * len(work.batches),
            loss=work.response_loss(given),
        )
        masked = prepare_gradual_pruning(start).to(memory_format=torch.channels_last)
        log, recipe = trained(masked, loss, work, folder, epochs=given.epochs, peak_lr=given.peak_lr)
        network = cast("Network", make_permanent(masked))
        accuracy, reached = evaluate(network, work.judging), sparsity_report(network).sparsity
        rows = [{"sparsity": round(reached, 4)} | judged(before, accuracy, log)]
        print(rows[0], flush=True)
        write_network(
            network, folder,
            description=f"{given.model} with {reached:.1%} of the weights of its convolutions and its linear layer at "
            "0, as dense tensors; `deploykit.pruning.sparse_files` makes a small file of it.",
            recipe=recipe | ({"start": given.start.name} if given.start else {}),
            accuracy=accuracy, log=log, given=given,
        )  # fmt: skip
        if work.trial:
            print(f"a trial: network in {folder}, nothing recorded")
            continue
        name = f"unstructured-pruning-{given.model}-{100 * sparsity:g}"
        what = (
            f"{given.model} on {work.dataset.name}, single weights pruned along a cubic schedule, against the dense one"
        )
        write_recorded(name, rows, what=what, command=command())
        print(recorded(name))


if __name__ == "__main__":
    main()
