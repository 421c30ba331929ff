"""Computes the figures that the evaluation reports, and their 95 % intervals."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

Z95 = 1.959963984540054
BOOTSTRAP_REPLICATES = 200
BOOTSTRAP_SEED = 20150706
CALIBRATION_BINS = 15
FALSE_ACCEPTS = 0.01
"""Share of different pairs that may be accepted where true accepts are counted."""
NO_INTERVAL: Interval = (math.nan, math.nan)


def wilson_interval(successes: float, n: int) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22:209).

    Args:
      successes: successes among `n`; fractional where ties shared the credit.
      n: trials. 0 gives NaN.
    """
    if n == 0:
        return NO_INTERVAL
    share = successes / n
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    centre = share + Z95**2 / (2 * n)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def hanley_mcneil_interval(area: float, positives: int, negatives: int) -> Interval:
    """Normal interval of an area under the ROC curve (Hanley & McNeil 1982, Radiology 143:29).

    Uses their closed-form standard error (equations 1 and 2), clipped to [0, 1]. It is zero wide
    at an area of exactly 1 or 0.
    """
    q1 = area / (2 - area)
    q2 = 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    ) / (positives * negatives)
    return normal_interval(area, math.sqrt(max(0.0, variance)))


def trial_credit(
    labels: npt.NDArray[np.int64],
    logits: npt.NDArray[np.floating[Any]],
    way: int,
) -> float | None:
    """Credit in [0, 1] that a model earns in one trial, or None for a malformed trial.

    Args:
      labels, logits: [N], the pairs of one trial.
      way: how many there should be.
    """
    if way != len(labels) or np.count_nonzero(labels == 1) != 1:
        return None
    if np.isnan(logits).any():
        return 0.0
    best = logits == logits.max()
    return 1.0 / np.count_nonzero(best) if best[labels == 1][0] else 0.0


class ScoredPairs:
    """Logits of same-class and different-class pairs as counts per distinct logit.

    Everything derived from it depends on the pairs as a set, not on the order in which workers
    delivered them: float64 sums run over the sorted logits.

    Attributes:
      logits: float64[V], distinct and ascending.
      same, different: float64[V], how many pairs of either kind have that logit.
    """

    def __init__(self, logits: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Args: logits: float[N], NaN not allowed; labels: {0, 1}[N]."""
        self.logits, cells = np.unique(np.asarray(logits, np.float64), return_inverse=True)
        positive = np.asarray(labels, np.float64)
        cell_count = len(self.logits)
        self.same = np.bincount(cells, positive, cell_count).astype(np.float64)
        self.different = np.bincount(cells, 1 - positive, cell_count).astype(np.float64)

    @property
    def n(self) -> int:
        return int(self.same.sum() + self.different.sum())

    def verification_accuracy(self) -> tuple[float, Interval]:
        """Share of pairs on the right side of logit 0 (score 0.5; on it counts as same)."""
        said_same = self.logits >= 0
        right = float(self.same[said_same].sum() + self.different[~said_same].sum())
        return right / self.n if self.n else math.nan, wilson_interval(right, self.n)

    def auc(self) -> tuple[float, Interval]:
        """Area under the ROC curve: P(same above different), ties half (Mann & Whitney 1947)."""
        positives, negatives = float(self.same.sum()), float(self.different.sum())
        if positives == 0 or negatives == 0:
            return math.nan, NO_INTERVAL
        area = area_under_roc(self.same, self.different)
        return area, hanley_mcneil_interval(area, int(positives), int(negatives))

    def eer(self) -> tuple[float, Interval]:
        """Equal error rate, with a bootstrap interval."""
        if self.same.sum() == 0 or self.different.sum() == 0:
            return math.nan, NO_INTERVAL
        return self._with_bootstrap("eer")

    def tar_at_1pct_far(self) -> tuple[float, Interval]:
        """True accept rate at a false accept rate of 1 %, with a bootstrap interval."""
        if self.same.sum() == 0 or self.different.sum() == 0:
            return math.nan, NO_INTERVAL
        return self._with_bootstrap("tar_at_1pct_far")

    def ece(self) -> tuple[float, Interval]:
        """Expected calibration error of the score, with a bootstrap interval."""
        if self.n == 0:
            return math.nan, NO_INTERVAL
        return self._with_bootstrap("ece")

    def _with_bootstrap(self, name: str) -> tuple[float, Interval]:
        value = self._statistics[name](self.same, self.different)
        return value, normal_interval(value, self._deviations[name])

    @cached_property
    def _statistics(self) -> dict[str, Callable[[Floats, Floats], float]]:
        return {
            "eer": equal_error_rate,
            "tar_at_1pct_far": true_accept_rate,
            "ece": partial(calibration_error, expit(self.logits)),
        }

    @cached_property
    def _deviations(self) -> dict[str, float]:
        """Standard errors of these, by resampling the pairs with replacement.

        Efron & Tibshirani 1993, ch. 6. The seed is fixed: the same pairs give the same interval.
        Replicates that drew one kind of pair only are left out. NaN where fewer than two are left.
        """
        generator = np.random.default_rng(BOOTSTRAP_SEED)
        cells = np.concatenate([self.same, self.different])
        share = cells / cells.sum()
        values = []
        for _ in range(BOOTSTRAP_REPLICATES):
            drawn = generator.multinomial(self.n, share)
            same: Floats = drawn[: len(self.same)].astype(np.float64)
            different: Floats = drawn[len(self.same) :].astype(np.float64)
            if same.any() and different.any():
                values.append(
                    [statistic(same, different) for statistic in self._statistics.values()]
                )
        if len(values) < 2:
            return dict.fromkeys(self._statistics, math.nan)
        columns = zip(*values, strict=True)
        deviations = [float(np.std(column, ddof=1)) for column in columns]
        return dict(zip(self._statistics, deviations, strict=True))


def equal_error_rate(same: Floats, different: Floats) -> float:
    """Where the ROC curve's false-accept and false-reject rates meet, between points linearly.

    Args:
      same, different: float[V], pairs of either kind per distinct logit, ascending.
    """
    rejected, accepted = error_rates(same, different)
    return float(np.interp(0.0, rejected - accepted, rejected))


def error_rates(same: Floats, different: Floats) -> tuple[Floats, Floats]:
    """False rejects and false accepts, as shares `[V + 1]`, of pairs as `equal_error_rate` takes.

    Entry `i` is of the rule that everything from the i-th distinct logit up is called "same".
    """
    rejected = np.concatenate([[0.0], np.cumsum(same)]) / same.sum()
    accepted = 1 - np.concatenate([[0.0], np.cumsum(different)]) / different.sum()
    return rejected, accepted


def area_under_roc(same: Floats, different: Floats) -> float:
    """P(same above different), ties half (Mann & Whitney 1947); takes what the EER does."""
    below = np.cumsum(different) - different
    return float(same @ (below + different / 2)) / (float(same.sum()) * float(different.sum()))


def true_accept_rate(same: Floats, different: Floats) -> float:
    """Share of same pairs above the lowest logit at which `FALSE_ACCEPTS` or less are accepted.

    Args:
      same, different: float[V], pairs of either kind per distinct logit, ascending.
    """
    accepted = (different.sum() - np.cumsum(different)) / different.sum()
    first = int(np.argmax(accepted <= FALSE_ACCEPTS)) + 1
    return float(same[first:].sum() / same.sum())


def calibration_error(scores: Floats, same: Floats, different: Floats) -> float:
    """Expected calibration error over equal-width bins (Naeini 2015; Guo 2017, section 2).

    The binary form: each bin compares the mean score with the share of same-class pairs.
    """
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count = same + different
    scored = np.bincount(bins, weights=count * scores, minlength=CALIBRATION_BINS)
    found = np.bincount(bins, weights=same, minlength=CALIBRATION_BINS)
    return float(np.abs(scored - found).sum() / count.sum())


def normal_interval(value: float, deviation: float) -> Interval:
    """Interval of a share by its standard deviation, clipped to [0, 1]."""
    return max(0.0, value - Z95 * deviation), min(1.0, value + Z95 * deviation)
