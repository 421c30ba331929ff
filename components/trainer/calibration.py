"""Fits Platt scaling on held-out groups, and its correction by cross-fitting."""

import logging
from dataclasses import replace
from typing import Final, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from components.trainer.devices import Accelerator
from components.trainer.fit import fit_stages
from components.trainer.model import HEAD, pair_logits
from components.trainer.pair_data import PairData
from components.trainer.recipe import Recipe
from data_ingest.errors import InputError
from data_ingest.progress import counted
from data_ingest.sampling.pairs import PairSampler

SHARE_OF_STEPS: Final = 8
"""A training of a fold is as many times shorter than that of the model."""
GROUPS_A_FOLD: Final = 2
"""A fold of fewer groups has no different pairs between groups."""

Floats = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


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
        _log.warning("Calibration skipped: same pairs do not score above different ones.")
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
        _log.warning("Calibration skipped: same pairs do not score above different ones.")
        return UNCHANGED
    return Platt(float(scale), float(shift))


class Calibration(NamedTuple):
    """How the head is to be scaled, and what its scores are then worth on held-out pairs."""

    scale: float
    shift: float
    correction_scale: float
    """Of that, what is due to other groups than the held-out ones: `cross_fitted_correction`."""
    correction_shift: float
    pairs: int
    accuracy: float
    """Share of the pairs on the right side of score 0.5."""

    @property
    def platt(self) -> Platt:
        return Platt(self.scale, self.shift)


def calibrate(model: keras.Model, held_out: PairData, correction: Platt = UNCHANGED) -> Calibration:
    """How to scale the head of `model` so that its scores are probabilities.

    Args:
      correction: from those of the held-out pairs to those of groups in general.
    """
    logits = pair_logits(model, held_out)
    platt = fit_platt(logits, held_out.labels).then(correction)
    right = (platt.scale * logits + platt.shift >= 0) == (held_out.labels == 1)
    return Calibration(*platt, *correction, len(right), float(right.mean()))


def scale_head(model: keras.Model, platt: Platt) -> None:
    """Makes `platt.scale * logit + platt.shift` of every logit of `model`."""
    head = model.get_layer(HEAD)
    w, b0 = platt.fold(np.asarray(head.w, np.float64), float(head.b0))
    head.w.assign(w.astype(np.float32))
    head.b0.assign(b0)


def cross_fitted_correction(
    recipe: Recipe,
    train: PairData,
    held_out: PairData,
    everything: PairData | None = None,
    *,
    accelerator: Accelerator,
) -> Platt:
    """Fits what makes logits calibrated on the held-out groups right for groups in general.

    Each of `recipe.calibration_folds` trainings is calibrated on `held_out` and, where the recipe
    asks for it, refitted, as the model is. Then it judges pairs of the groups that it did not see,
    sampled as those of `held_out` were. One Platt scaling of all these logits is the result.
    Random choices depend on `recipe.seed` alone.

    Args:
      everything: the images of both, for refits; None: there is none.

    Returns:
      What is to follow the calibration; `UNCHANGED` where folds are off, where `train` has fewer
      than two groups a fold or a fold has no pairs, or where `held_out` cannot calibrate.
    """
    folds = recipe.calibration_folds
    if not folds:
        return UNCHANGED
    groups = len(train.index.groups)
    fold_of_group = np.random.default_rng(recipe.seed).permutation(groups) % folds
    fold_of_row = fold_of_group[train.index.row_group]
    try:
        if groups < GROUPS_A_FOLD * folds:
            raise InputError(f"{folds} folds need {GROUPS_A_FOLD * folds} groups, found {groups}")
        unseen = [
            _with_pairs_like(
                held_out,
                train.take(np.flatnonzero(fold_of_row == fold)),
                where=f"images of fold {fold + 1}",
                seed=recipe.seed,
            )
            for fold in range(folds)
        ]
    except InputError as error:
        held_out_classes = len(held_out.index.classes)
        _log.info(f"Calibration rests on {held_out_classes} held-out classes alone: {error}")
        return UNCHANGED
    steps = max(1, recipe.steps // SHARE_OF_STEPS)
    short = recipe.model_copy(update={"steps": steps})
    logits = []
    for fold, strangers in enumerate(counted(unseen, "Calibrating by trainings", folds)):
        _log.info(
            f"Calibration, training {fold + 1} of {folds}: {steps} steps without "
            f"{len(strangers.index.groups)} of {groups} groups"
        )
        rest = train.take(np.flatnonzero(fold_of_row != fold))
        others = None
        if everything is not None:
            known = {*everything.index.classes} - {*strangers.index.classes}
            others = everything.take(everything.index.rows_of("class", known))
        fits = fit_stages(short, rest, held_out, others, accelerator=accelerator)
        platt = calibrate(fits[0].model, held_out).platt
        if platt == UNCHANGED:
            return UNCHANGED
        logits.append(platt.scale * pair_logits(fits[-1].model, strangers) + platt.shift)
    return fit_platt(np.concatenate(logits), np.concatenate([data.labels for data in unseen]))


def _with_pairs_like(example: PairData, data: PairData, *, where: str, seed: int) -> PairData:
    """As many pairs of the images of `data` as `example` has, with its mixture of them.

    Raises:
      InputError: `data`, which are `where`, have no pair of one class.
    """
    group_a, group_b = example.index.row_group[example.pairs].T
    different = example.labels == 0
    within = float((group_a == group_b)[different].mean()) if different.any() else 0.0
    sampler = PairSampler(data.index, seed, "pairs/fold", within)
    sampler.check(where)
    drawn = sampler.pairs(0, len(example.labels))
    return replace(
        data,
        pairs=np.stack([drawn.row_a, drawn.row_b], axis=1).astype(np.int32),
        labels=drawn.label.astype(np.int32),
    )


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _loss(x: Floats, targets: Floats, scale: float, shift: float) -> float:
    z = scale * x + shift
    return float((targets * np.logaddexp(0, -z) + (1 - targets) * np.logaddexp(0, z)).sum())
