"""Divides images among the splits: `train`, `eval` (chooses) and `one_shot` (reports)."""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import numpy as np

from data_ingest.errors import InputError
from data_ingest.sampling.draws import Flags, Ints, stable_hash
from data_ingest.sampling.index import ImageIndex, Unit
from data_ingest.sampling.protocols import EVAL_SPLIT, ONE_SHOT_SPLIT, TRAIN_SPLIT
from data_ingest.settings import PairSettings

FEW_CLASSES: Final = 10
"""An accuracy of fewer is of the classes that happen to be held out, and tells nothing."""
FEW_SHARE: Final = 0.2
"""Of the groups (or classes), so many at most are held out for the sake of `FEW_CLASSES`."""


class SplitRows(NamedTuple):
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
    With fewer than three groups, or ones too unequal to be divided, classes are divided instead,
    unless there are forgeries, which stay with their writer; a split then has two writers or more.
    Shares are of the groups (or classes) with two images of a class; nothing can be asked about the
    others, and they are trained on. Where the share for `eval` has fewer than `FEW_CLASSES`, more
    are held out, `FEW_SHARE` at most. Groups with enough classes for the widest trial are held out
    first; among equals the order depends on their names and the seed
    alone, so that a group seldom changes sides when others are added.

    Raises:
      InputError: too few groups or classes, or a class is both background and evaluation.
    """
    shares = {EVAL_SPLIT: settings.holdout_share}
    if evaluation is None:
        shares = {ONE_SHOT_SPLIT: settings.evaluation_share, **shares}
    else:
        shared = sorted(set(background.classes) & set(evaluation.classes))
        if shared:
            raise InputError(
                f"{len(shared)} classes, such as {shared[0]}, are among both the background and "
                "the evaluation images: remove them from one, or no figure can be trusted"
            )
    units: tuple[Unit, ...] = ("group", "class") if unit_of(background) == "group" else ("class",)
    for unit in units[:1] if background.has_forgeries else units:
        held_out = _held_out(background, unit, shares, settings)
        if held_out is not None:
            if evaluation is not None:
                held_out[ONE_SHOT_SPLIT] = np.arange(len(evaluation))
            return SplitRows(**held_out)
    usable = int(np.count_nonzero(_usable(background)))
    if background.has_forgeries:
        raise InputError(
            f"too few writers: {len(shares) + 1} splits need at least two each, and in each one "
            f"with two different genuine signatures, but there are {len(background.groups)} "
            f"({', '.join(background.groups[:5])}), {usable} of them with two. Add writers, laid "
            "out as <writer>/genuine/<image> and <writer>/forged/<image>"
        )
    raise InputError(
        f"too few classes: {len(shares) + 1} splits need at least two classes each, and in "
        f"each a class with two different images, but there are {len(background.classes)} "
        f"classes in {len(background.groups)} groups ({', '.join(background.classes[:5])}), "
        f"{usable} of them with two images. Add classes, laid out as <group>/<class>/<image>"
    )


def _held_out(
    index: ImageIndex, unit: Unit, shares: Mapping[str, float], settings: PairSettings
) -> dict[str, Ints] | None:
    """Rows by split, `train` gets the rest; None where too little is left for it."""
    left = holding_order(index, unit, settings)
    worth = worth_holding(index, unit)
    splits: dict[str, Ints] = {}
    for split, share in shares.items():
        count = max(1, round(share * worth))
        if split == EVAL_SPLIT:
            most = FEW_SHARE * worth
            while count + 1 <= most and _classes(index, unit, left[:count]) < FEW_CLASSES:
                count += 1
        while count < len(left) and not makes_pairs(index, unit, left[:count]):
            count += 1
        splits[split] = index.rows_of(unit, left[:count])
        left, worth = left[count:], max(0, worth - count)
    if not makes_pairs(index, unit, left):
        return None
    return {TRAIN_SPLIT: index.rows_of(unit, left), **splits}


def unit_of(index: ImageIndex) -> Unit:
    """What these images are to be divided by."""
    return "group" if len(index.groups) >= 3 or index.has_forgeries else "class"


def holding_order(index: ImageIndex, unit: Unit, settings: PairSettings) -> list[str]:
    """Names of all groups (or classes), those to be held out first at the front."""
    names, of_class = index.classes, np.arange(len(index.classes))
    if unit == "group":
        names, of_class = index.groups, index.class_group
    usable = np.bincount(of_class, weights=_usable(index), minlength=len(names))
    widest = max(settings.ways) if len(names) < len(index.classes) else 1

    def rank(number: int) -> tuple[float, int, str]:
        return (
            -min(float(usable[number]), float(widest)),
            stable_hash(settings.seed, f"hold out {names[number]}"),
            names[number],
        )

    return [names[number] for number in sorted(range(len(names)), key=rank)]


def worth_holding(index: ImageIndex, unit: Unit) -> int:
    """How many groups (or classes) have two images of a class; they lead the `holding_order`."""
    usable = _usable(index)
    return len(np.unique(index.class_group[usable])) if unit == "group" else int(usable.sum())


def makes_pairs(index: ImageIndex, unit: Unit, names: Collection[str]) -> bool:
    """Whether these groups (or classes) have two classes, and one of them two images.

    Forgeries do not count.
    """
    part = index.take(index.rows_of(unit, names))
    sizes = part.class_sizes[part.genuine]
    return len(sizes) >= 2 and int(sizes.max()) >= 2


def _classes(index: ImageIndex, unit: Unit, names: Collection[str]) -> int:
    """How many classes these groups (or classes) have, forgeries aside."""
    return len(index.take(index.rows_of(unit, names)).genuine)


def _usable(index: ImageIndex) -> Flags:
    """`[C]`: can pairs of this class be made?"""
    usable: Flags = (index.class_sizes >= 2) & ~index.class_forged
    return usable
