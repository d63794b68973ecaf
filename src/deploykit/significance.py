"""What a figure is worth: the interval of an accuracy, of a difference between two models, of a mean over rounds.

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

RESAMPLES, TRIM = 2000, 0.2  # of the bootstrap; of the values, at each end


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for an accuracy, ``correct`` of ``total`` images (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    It stays within 0 and 1 and is right for accuracies near 100 %, where the usual ± does neither.

    Raises:
        ValueError: no images, a count outside 0 to ``total``, or a confidence outside 0 to 1.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} images: total must be at least 1, and correct between 0 and it")
    z, p = _normal_quantile(confidence), correct / total
    scale = 1 / (1 + z**2 / total)
    centre = (p + z**2 / (2 * total)) * scale
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) * scale
    # Rounding must not push the interval past its own estimate at 0 and at 1.
    return min(max(0.0, centre - half), p), max(min(1.0, centre + half), p)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95")
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of model b minus that of model a, on the same images.

    Attributes:
        difference: between -1 and 1; 0.01 is one percentage point in favour of b.
        interval: of the difference.
        discordant_a: images that only a classified correctly.
        discordant_b: images that only b classified correctly.
        p_value: exact McNemar: how often models of equal accuracy would differ at least this much.
        images: how many both saw.
    """

    difference: float
    interval: tuple[float, float]
    discordant_a: int
    discordant_b: int
    p_value: float
    images: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), "
            f"{self.discordant_b} images won and {self.discordant_a} lost of {self.images}, p = {self.p_value:.2g}"
        )


def paired_difference(
    correct_a: Tensor | np.ndarray, correct_b: Tensor | np.ndarray, confidence: float = 0.95
) -> PairedDifference:
    """Compare two models on the same images: only those on which they disagree carry information.

    The interval is the adjusted Wald interval for paired proportions (Agresti and Min 2005, Statistics in Medicine
    24:729, section 3): half an observation is added to each of the four cells. The p-value is McNemar's, from the
    binomial distribution and not its approximation, so it holds for few disagreements too.

    Args:
        correct_a: bool [N], whether model a was right about image i.
        correct_b: bool [N], the same for model b, in the same order.
        confidence: of the interval.

    Raises:
        ValueError: different lengths, no images, or values that are not booleans.
    """
    from scipy.stats import binomtest

    a, b = (np.asarray(correct) for correct in (correct_a, correct_b))
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(
            f"correct_a is {list(a.shape)} and correct_b {list(b.shape)}; both must be [N] over the same images, N >= 1"
        )
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"correct_a is {a.dtype} and correct_b {b.dtype}; both must be bool: predictions == labels")
    only_a, only_b, total = int((a & ~b).sum()), int((b & ~a).sum()), a.size
    adjusted = (only_b - only_a) / (total + 2)
    half = _normal_quantile(confidence) * math.sqrt(only_a + only_b + 1 - (total + 2) * adjusted**2) / (total + 2)
    p_value = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return PairedDifference(
        difference=(only_b - only_a) / total,
        interval=(max(-1.0, adjusted - half), min(1.0, adjusted + half)),
        discordant_a=only_a,
        discordant_b=only_b,
        p_value=float(p_value),
        images=total,
    )


class MeanDifference(NamedTuple):
    """The mean of paired differences, b minus a, with its 95 % interval."""

    mean: float
    low: float
    high: float
    pairs: int


def mean_paired_difference(a: Sequence[float], b: Sequence[float]) -> MeanDifference:
    """Compare two ways of training by what they reach with the same seeds: Student's t of the paired differences.

    With few seeds the interval is wide, and honest: five seeds whose differences scatter by half a point leave
    a mean uncertain by 0.6 points.

    Args:
        a: one figure for each seed.
        b: of the same seeds in the same order.

    Raises:
        ValueError: different numbers of figures, or fewer than two.
    """
    from scipy.stats import ttest_rel

    if len(a) != len(b) or len(a) < 2:  # noqa: PLR2004 - the spread of one difference is unknown
        raise ValueError(f"{len(a)} and {len(b)} figures were given; give one of each for the same seeds, two or more")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return MeanDifference(mean, mean, mean, len(differences))
    low, high = ttest_rel(b, a).confidence_interval()
    return MeanDifference(mean, float(low), float(high), len(differences))


def trimmed_mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the 20 % trimmed mean of float [n] values and the ends of its 95 % bootstrap interval.

    The plain percentile interval is too narrow for few values; the expanded one (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", The American Statistician 69:371, section 5) takes the percentiles that correspond to
    Student's t and the unbiased variance. In simulations with normal, heavy-tailed and hiccuping rounds, 10 to 40 of
    them, it held the truth in 95 to 97 %, the plain one in 93 to 95 %.
    """
    from scipy.stats import norm, t

    count = len(values)
    tail = float(norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)))
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = int(TRIM * len(ordered))
    keep = slice(cut, len(ordered) - cut)
    drawn = np.random.default_rng(seed).integers(len(ordered), size=(RESAMPLES, len(ordered)))
    # Sorting the indices into sorted values sorts the values, and small integers sort several times faster.
    drawn = np.sort(drawn.astype(np.uint16 if len(ordered) < 2**16 else np.int64), axis=1)
    means = ordered[drawn[:, keep]].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(ordered[keep].mean()), float(low), float(high)


def decimals_allowed(value: float, spread: float) -> int:
    """Return how many decimals of ``value`` its spread leaves meaningful: up to the spread's first digit.

    3.274 with a spread of 0.41 has one decimal (3.3). Never more than four significant figures, never less than 0.
    """
    most = 3 - math.floor(math.log10(abs(value))) if value else 0
    by_spread = -math.floor(math.log10(spread)) if spread > 0 else most
    return max(0, min(most, by_spread))
