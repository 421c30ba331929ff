"""Decides which classes of arriving images are for training, and which are never trained on.

A model is judged against earlier ones, which were trained on earlier spans. So a group that was
once in the training images of any model may never be among those that judge one: it keeps the
side on which it first appeared.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from data_ingest.errors import InputError
from data_ingest.records.catalog import BACKGROUND, EVALUATION
from data_ingest.sampling.draws import Ints
from data_ingest.sampling.index import ImageIndex, Unit
from data_ingest.sampling.splits import holding_order, makes_pairs, worth_holding
from data_ingest.settings import PairSettings

Side = Literal["background", "evaluation"]
SIDES: Final[tuple[Side, Side]] = (BACKGROUND, EVALUATION)


def new_sides(
    index: ImageIndex, known: Mapping[str, Side], settings: PairSettings, *, unit: Unit
) -> dict[str, Side]:
    """Sides of the groups (or classes) that `known` does not have yet.

    As many become `evaluation` as bring its share of all known ones nearest to
    `settings.evaluation_share`, those that have only single images aside, and at least one of the
    first; which of them, depends on their names,
    the seed and whether they have enough classes for the widest trial, not on the order of files.

    Args:
      index: images of the new span.
      known: sides of those that appeared in earlier spans.
      settings: share, seed and ways.
      unit: what is divided.
    """
    names = index.groups if unit == "group" else index.classes
    fresh = index.take(index.rows_of(unit, [name for name in names if name not in known]))
    ordered = holding_order(fresh, unit, settings)
    judged = sum(side == EVALUATION for side in known.values())
    worth = worth_holding(fresh, unit)
    wanted = round(settings.evaluation_share * (len(known) + worth)) - judged
    if not judged:
        wanted = max(1, wanted)
        while wanted < len(ordered) and not makes_pairs(fresh, unit, ordered[:wanted]):
            wanted += 1
    wanted = max(0, wanted)
    return {
        name: EVALUATION if place < wanted else BACKGROUND for place, name in enumerate(ordered)
    }


def side_rows(index: ImageIndex, sides: Mapping[str, Side], unit: Unit) -> dict[Side, Ints]:
    """Rows of the images of either side, ascending."""
    return {
        side: index.rows_of(unit, [name for name, own in sides.items() if own == side])
        for side in SIDES
    }


def require_like_layout(groups: Sequence[str], known: Mapping[str, Side], unit: Unit) -> None:
    """Raises InputError where images with groups are mixed with ones without."""
    if not known:
        return
    layouts = {True: "<group>/<class>/<image>", False: "<class>/<image>"}
    had_groups = unit == "group" or any("/" in name for name in known)
    has_groups = "" not in groups
    if had_groups != has_groups:
        raise InputError(
            f"the images are laid out as {layouts[has_groups]}, those of earlier spans as "
            f"{layouts[had_groups]}: lay them out alike"
        )
