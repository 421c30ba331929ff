"""Platt scaling of the head, so that scores are probabilities."""

import logging
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]


class Platt(NamedTuple):
    """`probability = sigmoid(scale * logit + shift)`, scale > 0."""

    scale: float
    shift: float

    def fold(self, w: Floats, b0: float) -> tuple[Floats, float]:
        """The head (w, b0) that gives calibrated logits and is still `b0 - sum_k w_k |d_k|`."""
        return self.scale * w, self.scale * b0 + self.shift

    def then(self, other: "Platt") -> "Platt":
        """Both, this one first."""
        return Platt(other.scale * self.scale, other.scale * self.shift + other.shift)


UNCHANGED: Final = Platt(1.0, 0.0)


def fit_platt(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Platt:
    """Fits scale and shift by maximum likelihood (Platt 1999, with its smoothed targets).

    Newton's method in the form of Lin, Lin and Weng 2007, which cannot diverge. Where same pairs
    do not score above different ones a positive scale does not exist: then, with a warning, the
    logits stay as they are.

    Args:
      logits: `[P]`.
      labels: `[P]`, 1 same class, 0 different.
    """
    x = np.asarray(logits, np.float64)
    y = np.asarray(labels, np.float64)
    positives = float(y.sum())
    negatives = float(len(y)) - positives
    if positives == 0 or negatives == 0 or x[y == 1].mean() <= x[y == 0].mean():
        logger.warning("Calibration skipped: same pairs do not score above different ones.")
        return UNCHANGED
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale, shift = 0.0, float(np.log((positives + 1) / (negatives + 1)))
    loss = _loss(x, targets, scale, shift)
    for _ in range(100):
        p = _sigmoid(scale * x + shift)
        residual, weight = p - targets, p * (1 - p)
        gradient = np.array([residual @ x, residual.sum()])
        hessian = np.array([[weight @ (x * x), weight @ x], [weight @ x, weight.sum()]])
        if np.abs(gradient).max() < 1e-8 * len(x):
            break
        step = np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(2), -gradient)
        length = 1.0
        while length > 1e-10:
            at = scale + length * step[0], shift + length * step[1]
            new = _loss(x, targets, *at)
            if new <= loss + 1e-4 * length * float(gradient @ step):
                (scale, shift), loss = at, new
                break
            length /= 2
        else:
            break
    if scale <= 0:
        logger.warning("Calibration skipped: same pairs do not score above different ones.")
        return UNCHANGED
    return Platt(float(scale), float(shift))


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _loss(x: Floats, targets: Floats, scale: float, shift: float) -> float:
    z = scale * x + shift
    return float((targets * np.logaddexp(0, -z) + (1 - targets) * np.logaddexp(0, z)).sum())
