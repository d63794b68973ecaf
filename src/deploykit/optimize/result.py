"""What an optimization found, and the winner as files: the artifact with the script that runs it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contestants import Setting
from deploykit.data import Dataset
from deploykit.evaluation import Accuracy
from deploykit.measurement import VERY_UNSTABLE_SPREAD
from deploykit.optimize.bottleneck import Bottleneck
from deploykit.optimize.choice import is_doubtful, verdict
from deploykit.optimize.plan import Plan
from deploykit.places import atomic_write
from deploykit.rows import Row
from deploykit.significance import PairedDifference, paired_difference
from deploykit.standalone import script_for

if TYPE_CHECKING:
    import pandas as pd

WINNER, SCRIPT = "winner", "run.py"


@dataclass(frozen=True, repr=False)
class Optimized:
    """What :func:`~.run.optimize` found.

    Attributes:
        plan: what was to be tried.
        rows: the baseline, and each step; accuracies are of val.
        winner: of the rows; the baseline where no step helped.
        before: accuracy of the baseline on test.
        after: that of the winner.
        max_drop: points that were allowed.
        batch: images in a batch.
        classes: that are told apart.
        folder: holds ``winner/`` with the artifact and ``run.py``; None where the baseline won, which is the model.
        done: what was done to make each smaller network, by its name.
        bottleneck: what the network waits for as it was given.
    """

    plan: Plan
    rows: tuple[Row, ...]
    winner: Row
    before: Accuracy
    after: Accuracy
    max_drop: float
    batch: int
    classes: int
    folder: Path | None
    done: Mapping[str, str] = field(default_factory=dict)
    bottleneck: Bottleneck = field(default_factory=Bottleneck)

    @property
    def difference(self) -> PairedDifference:
        """The winner's accuracy minus the baseline's, on the same test images."""
        return paired_difference(self.before.correct, self.after.correct)

    @property
    def helped(self) -> bool:
        """Whether a step won."""
        return self.winner is not self.rows[0]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What a reader should know before trusting the choice."""
        found = []
        seen = self.rows[0].accuracy
        if seen is not None and seen.interval[0] <= 1 / self.classes:
            found.append(
                f"The network is right for {seen.accuracy:.1%} of the validation images, which may be chance: look at "
                "its weights, and whether it takes images normalised by the mean and deviation of these data."
            )
        if self.helped and seen is not None and is_doubtful(self.winner, self.max_drop):
            few = f"{seen.images:,} validation images are too few to be sure of the limit"
            found.append(f"{few}: the interval of the points that the winner loses reaches beyond {self.max_drop:g}.")
        times = [row.latency for row in self.rows if row.latency is not None]
        if unsteady := sum(time.iqr_ms > VERY_UNSTABLE_SPREAD * time.median_ms for time in times):
            found.append(
                f"The machine was busy: the times of {unsteady} of {len(times)} forms scattered widely. Run it again "
                "when the machine is at rest; what is finished is not made again."
            )
        return tuple(found)

    def figures(self) -> list[dict[str, Any]]:
        """Return each row flat, with its network and what became of it first."""
        return [
            {
                "network": row.network or "as given",
                "verdict": verdict(row, self.rows, self.winner, self.max_drop),
                **row.figures(),
            }
            for row in self.rows
        ]

    def table(self) -> pd.DataFrame:
        """Return one row for each form, see :meth:`figures`."""
        import pandas as pd

        return pd.DataFrame(self.figures())

    def __str__(self) -> str:
        if not self.helped:
            return f"no step helped: the network stays as it is, {self.before}"
        return f"{self.winner.name}, {self.winner.ratio} as fast; on test {self.difference}"

    __repr__ = __str__


def write_winner(winner: Row, setting: Setting, dataset: Dataset, folder: Path) -> None:
    """Copy the artifact of a row into ``folder/winner``, beside the script that runs it.

    Args:
        winner: with an artifact.
        setting: in which it was made.
        dataset: whose classes it tells apart.
        folder: of the whole run.
    """
    forget_winner(folder)
    target = folder / WINNER
    shutil.copytree(setting.artifact(winner.runtime, winner.precision).parent, target)
    side = setting.calibration.shape[-1]
    with atomic_write(target / SCRIPT) as partial:
        partial.write_text(script_for(winner.runtime, winner.precision, dataset, side), encoding="utf-8")


def forget_winner(folder: Path) -> None:
    """Remove the winner of an earlier call."""
    if (folder / WINNER).exists():
        shutil.rmtree(folder / WINNER)
