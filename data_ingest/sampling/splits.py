"""Which images train, which choose (`eval`) and which report (`one_shot`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_ingest.errors import InputError
from data_ingest.sampling.draws import stable_hash
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import EVAL_SPLIT, ONE_SHOT_SPLIT, TRAIN_SPLIT
from data_ingest.settings import PairSettings

Ints = npt.NDArray[np.int64]

FEWEST_GROUPS = 3
"""With fewer groups, splits hold out classes instead of whole groups."""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Rows of the images of each split, ascending."""

    train: Ints
    eval: Ints
    one_shot: Ints
    """Rows of the evaluation index where there is one, else of the only index."""


def split_index(
    background: ImageIndex, evaluation: ImageIndex | None, settings: PairSettings
) -> SplitRows:
    """Divides the images so that no class, and no group where groups are held out, is in two.

    With evaluation images, those are `one_shot`, and a share of the background's groups is held
    out as `eval`. Without, a share of the groups becomes `one_shot` and a share of the rest `eval`.
    With fewer than three groups, classes are divided instead. Groups with enough classes for the
    widest trial are held out first; among equals the order depends on their names and the seed
    alone, so that a group seldom changes sides when others are added.

    Raises:
      InputError: too few groups or classes, or a class is both background and evaluation.
    """
    if evaluation is not None:
        shared = sorted(set(background.classes) & set(evaluation.classes))
        if shared:
            raise InputError(
                f"{len(shared)} classes, such as {shared[0]}, are among both the background and "
                "the evaluation images: remove them from one, or no figure can be trusted"
            )
        shares = [(EVAL_SPLIT, settings.holdout_share)]
    else:
        shares = [
            (ONE_SHOT_SPLIT, settings.evaluation_share),
            (EVAL_SPLIT, settings.holdout_share),
        ]
    held_out = _hold_out(background, shares, settings)
    one_shot = held_out.get(ONE_SHOT_SPLIT)
    return SplitRows(
        train=held_out[TRAIN_SPLIT],
        eval=held_out[EVAL_SPLIT],
        one_shot=one_shot if one_shot is not None else np.arange(len(evaluation or ())),
    )


def _hold_out(
    index: ImageIndex, shares: Sequence[tuple[str, float]], settings: PairSettings
) -> dict[str, Ints]:
    by_group = len(index.groups) >= FEWEST_GROUPS
    unit_of_class = index.class_group if by_group else np.arange(len(index.classes))
    names = index.groups if by_group else index.classes
    left = holding_order(index, unit_of_class, names, settings)
    held_out: dict[str, Ints] = {}
    for split, share in shares:
        count = max(1, round(share * len(left)))
        while count < len(left) and not makes_pairs(index, unit_of_class, left[:count]):
            count += 1
        held_out[split] = _rows(index, unit_of_class, left[:count])
        left = left[count:]
    held_out[TRAIN_SPLIT] = _rows(index, unit_of_class, left)
    if not makes_pairs(index, unit_of_class, left):
        raise InputError(_too_little(index, splits=len(shares) + 1))
    return held_out


def holding_order(
    index: ImageIndex, unit_of_class: Ints, names: Sequence[str], settings: PairSettings
) -> list[int]:
    """Units, those to be held out first at the front."""
    usable = np.bincount(unit_of_class, weights=index.class_sizes >= 2, minlength=len(names))
    widest = max(settings.ways) if len(names) < len(index.classes) else 1

    def rank(unit: int) -> tuple[float, int, str]:
        return (
            -min(float(usable[unit]), float(widest)),
            stable_hash(settings.seed, f"hold out {names[unit]}"),
            names[unit],
        )

    return sorted(range(len(names)), key=rank)


def makes_pairs(index: ImageIndex, unit_of_class: Ints, units: Sequence[int]) -> bool:
    chosen = np.isin(unit_of_class, np.array(units, np.int64))
    return bool(np.count_nonzero(chosen) >= 2 and np.any(index.class_sizes[chosen] >= 2))


def _rows(index: ImageIndex, unit_of_class: Ints, units: Sequence[int]) -> Ints:
    chosen = np.isin(unit_of_class, np.array(units, np.int64))
    return np.flatnonzero(chosen[index.row_class])


def _too_little(index: ImageIndex, *, splits: int) -> str:
    usable = int(np.count_nonzero(index.class_sizes >= 2))
    return (
        f"too few classes: {splits} splits need at least two classes each, and in each a class "
        f"with two different images, but there are {len(index.classes)} classes in "
        f"{len(index.groups)} groups ({', '.join(index.classes[:5])}), {usable} of them with two "
        "images. Add classes, laid out as <group>/<class>/<image>"
    )
