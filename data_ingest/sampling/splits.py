"""Divides images among the splits: `train`, `eval` (chooses) and `one_shot` (reports)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_ingest.errors import InputError
from data_ingest.sampling.draws import Ints, stable_hash
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import EVAL_SPLIT, ONE_SHOT_SPLIT, TRAIN_SPLIT
from data_ingest.settings import PairSettings

Unit = Literal["group", "class"]
"""What is kept together: whole groups, or, where there are fewer than three, classes."""


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


def unit_of(index: ImageIndex) -> Unit:
    """What these images are to be divided by."""
    return "group" if len(index.groups) >= 3 else "class"


def unit_rows(index: ImageIndex, unit: Unit, names: Collection[str]) -> Ints:
    """Rows of the images of these groups (or classes), ascending."""
    names = set(names)
    return index.rows_of(groups=names) if unit == "group" else index.rows_of(classes=names)


def holding_order(index: ImageIndex, unit: Unit, settings: PairSettings) -> list[str]:
    """Names of all groups (or classes), those to be held out first at the front."""
    names, of_class = index.classes, np.arange(len(index.classes))
    if unit == "group":
        names, of_class = index.groups, index.class_group
    usable = np.bincount(of_class, weights=index.class_sizes >= 2, minlength=len(names))
    widest = max(settings.ways) if len(names) < len(index.classes) else 1

    def rank(number: int) -> tuple[float, int, str]:
        return (
            -min(float(usable[number]), float(widest)),
            stable_hash(settings.seed, f"hold out {names[number]}"),
            names[number],
        )

    return [names[number] for number in sorted(range(len(names)), key=rank)]


def makes_pairs(index: ImageIndex, unit: Unit, names: Collection[str]) -> bool:
    """Whether these groups (or classes) have two classes, and one of them two images."""
    sizes = index.take(unit_rows(index, unit, names)).class_sizes
    return len(sizes) >= 2 and int(sizes.max()) >= 2


def _hold_out(
    index: ImageIndex, shares: Sequence[tuple[str, float]], settings: PairSettings
) -> dict[str, Ints]:
    unit = unit_of(index)
    left = holding_order(index, unit, settings)
    held_out: dict[str, Ints] = {}
    for split, share in shares:
        count = max(1, round(share * len(left)))
        while count < len(left) and not makes_pairs(index, unit, left[:count]):
            count += 1
        held_out[split] = unit_rows(index, unit, left[:count])
        left = left[count:]
    if not makes_pairs(index, unit, left):
        raise InputError(_too_little(index, splits=len(shares) + 1))
    return {**held_out, TRAIN_SPLIT: unit_rows(index, unit, left)}


def _too_little(index: ImageIndex, *, splits: int) -> str:
    usable = int(np.count_nonzero(index.class_sizes >= 2))
    return (
        f"too few classes: {splits} splits need at least two classes each, and in each a class "
        f"with two different images, but there are {len(index.classes)} classes in "
        f"{len(index.groups)} groups ({', '.join(index.classes[:5])}), {usable} of them with two "
        "images. Add classes, laid out as <group>/<class>/<image>"
    )
