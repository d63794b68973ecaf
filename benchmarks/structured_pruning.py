"""What does a network lose with less than half of its arithmetic, after a full budget of fine-tuning?

    python benchmarks/structured_pruning.py resnet20 --speedup 2.0                       # three arms, hours on a CPU
    python benchmarks/structured_pruning.py resnet56 --speedup 2.1 --arms distilled --epochs 20
    python benchmarks/structured_pruning.py resnet20 --arms distilled --scope sensitivity --importance l2 --inner \
        --refit 2000 --hints 12 --epochs 1 --optimizer sgd --peak-lr 0.006 --name resnet20-2x-in-a-minute
    python benchmarks/structured_pruning.py resnet8 --dataset shapes32 --images 640 --epochs 1 --out build/trial

The arms: "distilled" fine-tunes the pruned network with the unpruned one, or with --teachers, "labels" with the labels
alone, "scratch" trains the same small network from random weights with the epochs of both trainings together. Stopped
with Ctrl-C or killed, the same command goes on from where it was. Writes a checkpoint folder for each arm and, unless
it is a trial, data/results/structured-pruning-MODEL-SPEEDUPx.json.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from typing import cast

import torch
from fine_tuning import EXAMPLE, Task, command, judged, parser_of_taught, task, trained, write_network
from on_gpu import DEVICE
from torch import nn

from deploykit.cost import macs
from deploykit.data import Batches
from deploykit.distillation import DistillationLoss, FeatureLoss, FeatureTap, ResponseLoss
from deploykit.models import ResNet, resnet_like
from deploykit.pruning.channels import prune_channels
from deploykit.pruning.plan import PruningPlan
from deploykit.pruning.planning import plan_pruning
from deploykit.pruning.refit import refit_layers
from deploykit.pruning.sensitivity import pruning_sensitivity
from deploykit.recorded import recorded, write_recorded
from deploykit.training import Loss, cross_entropy, evaluate

ARMS = ("distilled", "labels", "scratch")
SCORED_IMAGES = 1024  # for the criteria that need gradients
EIGHTHS = tuple(count / 8 for count in range(1, 8))  # the shares of a group at which sensitivity is measured
FULL_LR = 0.02  # Muon's, of a training from random weights


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the small network.

    Attributes:
        network: where it starts.
        start: the same in words.
        loss: what it learns from.
        epochs: how long.
        peak_lr: highest learning rate of Muon.
    """

    network: ResNet
    start: str
    loss: Loss
    epochs: int
    peak_lr: float


def streams(network: nn.Module) -> list[str]:
    """Return the convolutions whose outputs are added up along the network."""
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    return [name for name in convolutions if not name.endswith(".conv1")]


def planned(work: Task, given: argparse.Namespace) -> PruningPlan:
    """Return what goes; where sensitivity divides the cuts, it is that of networks that were refitted."""
    train = work.dataset.train
    batches = Batches(train.take(SCORED_IMAGES), work.dataset, batch_size=128, device=DEVICE)
    sensitivity = None
    if given.scope == "sensitivity":
        few = Batches(train.take(200, seed=given.seed), work.dataset, batch_size=100, device=DEVICE)
        other = train.take(512, seed=given.seed + 1)  # augmented, so that the network does not know them by heart
        looked_at = Batches(other, work.dataset, batch_size=256, augment=True, shuffle=True, device=DEVICE)
        sensitivity = pruning_sensitivity(
            work.full, EXAMPLE, looked_at, ratios=EIGHTHS, importance=given.importance, refit=few, batches=batches,
            seed=given.seed,
        )  # fmt: skip
    return plan_pruning(
        work.full, EXAMPLE,
        target_macs=round(macs(work.full, EXAMPLE) / given.speedup), importance=given.importance,
        scope=None if given.scope == "sensitivity" else given.scope, sensitivity=sensitivity, batches=batches,
        seed=given.seed, ignore=streams(work.full) if given.inner else (),
    )  # fmt: skip


def smaller(work: Task, plan: PruningPlan, given: argparse.Namespace) -> tuple[ResNet, str]:
    """Return the network that is left, refitted where that is asked for, and what its weights are in words."""
    pruned, start = prune_channels(work.full, plan), f"the weights that pruning left of {given.model}"
    if given.refit:
        part = work.dataset.train.take(given.refit, seed=given.seed)
        shown = Batches(part, work.dataset, batch_size=128, device=DEVICE)
        pruned = refit_layers(pruned, work.full, shown, plan=plan)
        start += f", refitted on {given.refit} images"
    return resnet_like(cast("ResNet", pruned)), start


def like_the_full(pruned: ResNet, work: Task, given: argparse.Namespace) -> Loss:
    """Return the distance to the full network: of the logits, and of what the blocks of the last stage say.

    A block's weight is that of the hints over the variance of what the full network's block says, so that all count.
    """
    loss: DistillationLoss = ResponseLoss(work.full, given.temperature, given.alpha)
    count = len(pruned.blocks)
    blocks = [f"blocks.{index}" for index in range(count - len(pruned.config.block_widths[-1]), count)]
    images = Batches(work.dataset.train.take(128), work.dataset, batch_size=128, device=DEVICE)
    with FeatureTap(work.full, blocks) as tap, torch.no_grad():
        work.full(next(iter(images))[0])
    for block in blocks:
        hint = FeatureLoss(work.full, {block: block}, student=pruned, images=EXAMPLE)
        loss = loss + given.hints / tap.features[block].var().item() * hint
    return loss


def arm(name: str, left: ResNet, start: str, work: Task, given: argparse.Namespace) -> Arm:
    """Return where a way to train starts, and its recipe; ``left`` is what pruning left and is not changed."""
    pruned, labels = copy.deepcopy(left), cross_entropy(label_smoothing=0.1)
    if name == "distilled":
        loss = like_the_full(pruned, work, given) if given.hints else work.response_loss(given)
        return Arm(pruned, start, loss, given.epochs, given.peak_lr)
    if name == "labels":
        return Arm(pruned, start, labels, given.epochs, given.peak_lr)
    torch.manual_seed(given.seed)
    return Arm(ResNet(pruned.config), "random weights", labels, given.epochs + given.first_epochs, FULL_LR)


def main() -> None:
    """Prune, train one arm after the other, record and print the table."""
    arguments = parser_of_taught(__doc__, temperature=4.0)
    arguments.add_argument("--speedup", type=float, default=2.0, help="how many times fewer multiply-accumulates")
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    arguments.add_argument("--refit", type=int, default=0, help="training images for least squares before the training")
    arguments.add_argument("--importance", default="l1")
    arguments.add_argument("--scope", default="cost", choices=("global", "layer", "cost", "sensitivity"))
    arguments.add_argument("--inner", action="store_true", help="cut within blocks only, which say as much as before")
    arguments.add_argument("--hints", type=float, default=0, help="weight of what the last stage says, arm distilled")
    arguments.add_argument("--name", help="of the record and of the folders, MODEL-prunedSPEEDUPx when left out")
    arguments.add_argument("--first-epochs", type=int, default=60, help="of the unpruned network's training")
    given = arguments.parse_args()
    if given.hints and (given.teachers or not given.inner):
        arguments.error("--hints compares blocks channel by channel with MODEL's: give --inner, and no --teachers")
    work = task(given, "structured-pruning")
    plan = planned(work, given)
    print(plan, flush=True)
    left, start = smaller(work, plan, given)
    before, rows = evaluate(work.full, work.judging), []
    for name in given.arms:
        one = arm(name, left, start, work, given)
        suffix = "" if name == "distilled" else f"-{name}"
        folder = work.out / f"{given.name or f'{given.model}-pruned{given.speedup:g}x'}{suffix}-{work.dataset.name}"
        log, recipe = trained(one.network, one.loss, work, folder, epochs=one.epochs, peak_lr=one.peak_lr)
        accuracy = evaluate(one.network, work.judging)
        fewer = {
            "times_fewer_macs": round(plan.macs[0] / plan.macs[1], 2),
            "times_fewer_parameters": round(plan.parameters[0] / plan.parameters[1], 2),
        }
        rows.append({"arm": name} | fewer | judged(before, accuracy, log))
        print(rows[-1], flush=True)
        described = one.network.config.description
        write_network(
            one.network, folder,
            description=f"{described[0].upper()}{described[1:]}: {given.model} with {given.speedup:g}x fewer "
            f"multiply-accumulates, trained from {one.start}.",
            recipe={"importance": f"{given.importance}, scope {given.scope}"} | recipe,
            accuracy=accuracy, log=log, given=given,
        )  # fmt: skip
    if work.trial:
        print(f"a trial: networks in {work.out}, nothing recorded")
        return
    recorded_as = f"structured-pruning-{given.name or f'{given.model}-{given.speedup:g}x'}"
    fewer_macs = f"{plan.macs[0] / plan.macs[1]:.2f}x fewer multiply-accumulates"
    what = f"{given.model} on {work.dataset.name} with {fewer_macs}, channels removed, against the unpruned network"
    write_recorded(recorded_as, rows, what=what, command=command())
    print(recorded(recorded_as))


if __name__ == "__main__":
    main()
