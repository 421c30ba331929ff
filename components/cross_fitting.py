"""What scores are worth on groups in general, learnt by cross-fitting.

A few held-out groups (alphabets) are easily not typical: calibrated on three of them, scores can be
off for all others, however many pairs the three give. So some short trainings each leave a part of
the training groups out, and how wrong a calibration on the held-out groups is for *those* corrects
that of the model itself. As in stacking (Wolpert 1992) and scikit-learn's `CalibratedClassifierCV`,
no pair is judged by a training that saw its classes.
"""

import logging
from dataclasses import replace
from typing import Final

import numpy as np

from components.calibration import UNCHANGED, Platt, fit_platt
from components.devices import Accelerator
from components.fitting import fit, refit
from components.train_data import PairData
from components.train_settings import Recipe
from components.validation import pair_logits
from data_ingest.errors import InputError
from data_ingest.pair_sampling import PairSampler

logger = logging.getLogger(__name__)

SHARE_OF_STEPS: Final = 8
"""A training of a fold is as many times shorter than that of the model."""
GROUPS_A_FOLD: Final = 2
"""A fold of fewer groups has no different pairs between groups."""


def groups_in_general(
    recipe: Recipe,
    train: PairData,
    held_out: PairData,
    everything: PairData | None = None,
    *,
    accelerator: Accelerator,
) -> Platt:
    """The map from logits calibrated on the held-out groups to such as are for groups in general.

    Each of `recipe.calibration_folds` trainings is calibrated on `held_out` and, where the recipe
    asks for it, refitted, as the model is. Then it judges pairs of the groups that it did not see,
    sampled as those of `held_out` were. One Platt scaling of all these logits together is the map.
    Random choices depend on `recipe.seed` alone.

    Args:
      everything: the images of both, for refits; None: there is none.

    Returns:
      The map; it changes nothing where folds are off, where `train` has fewer than two groups a
      fold or a fold has no pairs, or where `held_out` cannot calibrate.
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
        logger.info(f"Calibration rests on {held_out_classes} held-out classes alone: {error}")
        return UNCHANGED
    steps = max(1, recipe.steps // SHARE_OF_STEPS)
    first, last = recipe.model_copy(update={"steps": steps}).stages()
    logits = []
    for fold, strangers in enumerate(unseen):
        logger.info(
            f"Calibration, training {fold + 1} of {folds}: {steps} steps without "
            f"{len(strangers.index.groups)} of {groups} groups"
        )
        rest = train.take(np.flatnonzero(fold_of_row != fold))
        model = fit(first, rest, held_out, accelerator=accelerator).model
        platt = fit_platt(pair_logits(model, held_out), held_out.labels)
        if platt == UNCHANGED:
            return UNCHANGED
        if last is not None and everything is not None:
            known = {*everything.index.classes} - {*strangers.index.classes}
            others = everything.take(everything.index.rows_of(classes=known))
            model = refit(last, model.get_weights(), others, accelerator=accelerator).model
        logits.append(platt.scale * pair_logits(model, strangers) + platt.shift)
    return fit_platt(np.concatenate(logits), np.concatenate([data.labels for data in unseen]))


def _with_pairs_like(example: PairData, data: PairData, *, where: str, seed: int) -> PairData:
    """As many pairs of the images of `data` as `example` has, with its mixture of them.

    Raises:
      PairsImpossible: `data`, which are `where`, have no pair of one class.
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
