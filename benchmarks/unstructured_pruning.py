"""What does a network lose when most of its weights become 0, after a full budget of training?

    python benchmarks/unstructured_pruning.py resnet20                                   # 80 and 90 %, hours on a CPU
    python benchmarks/unstructured_pruning.py resnet8 --dataset shapes32 --images 640 --epochs 2 --out build/trial

The sparsity rises along a cubic schedule while the network is fine-tuned with its dense self, or --teachers, as
teacher. Stopped with Ctrl-C or killed, the same command goes on from where it was. Writes a checkpoint folder for each
sparsity, with the zeros in its weights, and, unless it is a trial, data/results/unstructured-pruning-MODEL.json.
"""

from __future__ import annotations

from typing import cast

import torch
from fine_tuning import command, judged, parser_of_taught, task, trained, write_network

from deploykit.models import Network
from deploykit.pruning.masks import make_permanent
from deploykit.pruning.schedule import GradualPruning, SparsitySchedule, prepare_gradual_pruning
from deploykit.pruning.sparsity import sparsity_report
from deploykit.recorded import recorded, write_recorded
from deploykit.training import evaluate


def main() -> None:
    """Train one sparsity after the other, each from the dense network; record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=4.0)
    arguments.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    given = arguments.parse_args()
    work = task(given, "unstructured-pruning")
    before, rows = evaluate(work.full, work.judging), []
    for sparsity in given.sparsities:
        folder = work.out / f"{given.model}-sparse{100 * sparsity:g}-{work.dataset.name}"
        loss = GradualPruning(
            SparsitySchedule(sparsity),
            steps=given.epochs * len(work.batches),
            loss=work.response_loss(given),
        )
        masked = prepare_gradual_pruning(work.full).to(memory_format=torch.channels_last)
        log, recipe = trained(masked, loss, work, folder, epochs=given.epochs, peak_lr=given.peak_lr)
        network = cast("Network", make_permanent(masked))
        accuracy, reached = evaluate(network, work.judging), sparsity_report(network).sparsity
        rows.append({"sparsity": round(reached, 4)} | judged(before, accuracy, log))
        print(rows[-1], flush=True)
        write_network(
            network, folder,
            description=f"{given.model} with {reached:.1%} of the weights of its convolutions and its linear layer at "
            "0, as dense tensors; `deploykit.pruning.sparse_files` makes a small file of it.",
            recipe=recipe,
            accuracy=accuracy, log=log, given=given,
        )  # fmt: skip
    if work.trial:
        print(f"a trial: networks in {work.out}, nothing recorded")
        return
    name = f"unstructured-pruning-{given.model}"
    what = (
        f"{given.model} on {work.dataset.name}, single weights pruned along a cubic schedule, against the dense network"
    )
    write_recorded(name, rows, what=what, command=command())
    print(recorded(name))


if __name__ == "__main__":
    main()
