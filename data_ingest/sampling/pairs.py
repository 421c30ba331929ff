"""Samples pairs of images: half of one class, half of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_ingest.errors import InputError
from data_ingest.sampling.draws import Ints, Raw, below, raw_draws
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import TRAIN_SPLIT
from data_ingest.settings import PairSettings


class Pairs(NamedTuple):
    """Pairs of rows of an index, as columns of one length."""

    row_a: Ints
    row_b: Ints
    label: Ints
    """1 where both are of one class, else 0."""
    trial: Sequence[str]
    """Of the one-shot trial that a pair is part of; empty where it is of none."""


@dataclass(frozen=True)
class PairSampler:
    """Pair `i` of a stream as a pure function of (index, seed, stream, i).

    Even `i` is a pair of one class: a class drawn evenly among those with two images, two
    different images of it. Odd `i` is of two classes; of these, evenly spread, the share
    `different_within_group` has both classes in one group, as far as the index has groups of two
    classes (then at least some) and two groups (then at most some).

    Forgeries make no pair of one class and meet the signatures of their own writer alone: of a
    writer's genuine and forged ones the pairs within a group are all between the two.
    """

    index: ImageIndex
    seed: int
    stream: str
    different_within_group: float

    def check(self, where: str) -> None:
        """Raises InputError, naming `where` the images are from, if it cannot sample."""
        if len(self.index.classes) < 2:
            found = f"only {self.index.classes[0]}" if self.index.classes else "none"
            raise InputError(
                f"{where}: at least two classes are needed to make pairs, found {found}"
            )
        genuine = self.index.genuine
        if not np.any(self.index.class_sizes[genuine] >= 2):
            raise InputError(
                f"{where}: none of the {len(genuine)} classes, such as "
                f"{self.index.classes[genuine[0]]}, has two different images: add images, "
                "laid out as <group>/<class>/<image>"
            )

    def pairs(self, start: int, stop: int) -> Pairs:
        """Pairs `start` to `stop`; `check` must have passed."""
        numbers = np.arange(start, stop, dtype=np.int64)
        words = raw_draws(self.seed, self.stream, start, stop)
        label = (numbers % 2 == 0).astype(np.int64)
        row_a = np.empty_like(numbers)
        row_b = np.empty_like(numbers)
        sizes, starts = self.index.class_sizes, self.index.class_start

        same = label == 1
        word = words[same]
        pairable = np.flatnonzero((sizes >= 2) & ~self.index.class_forged)
        class_number = pairable[below(word[:, 0], len(pairable))]
        first = below(word[:, 1], sizes[class_number])
        second = below(word[:, 2], sizes[class_number] - 1)
        second += second >= first
        row_a[same] = starts[class_number] + first
        row_b[same] = starts[class_number] + second

        word = words[~same]
        class_a, class_b = self._two_classes(numbers[~same] // 2, word)
        row_a[~same] = starts[class_a] + below(word[:, 2], sizes[class_a])
        row_b[~same] = starts[class_b] + below(word[:, 3], sizes[class_b])
        return Pairs(row_a, row_b, label, [""] * len(numbers))

    def _two_classes(self, numbers: Ints, words: Raw) -> tuple[Ints, Ints]:
        index, genuine = self.index, self.index.genuine
        crowded = genuine[index.group_sizes[index.class_group[genuine]] >= 2]
        share = self.different_within_group if len(index.groups) >= 2 else 1.0
        share = share if len(crowded) else 0.0
        within = np.floor((numbers + 1) * share) > np.floor(numbers * share)

        class_a = genuine[below(words[:, 0], len(genuine))]
        if len(crowded):
            class_a = np.where(within, crowded[below(words[:, 0], len(crowded))], class_a)
        group = index.class_group[class_a]
        group_start, group_size = index.group_start[group], index.group_sizes[group]
        # Within: any other class of the group. Between: any genuine one, stepping over the group.
        first = np.searchsorted(genuine, group_start)
        own = np.searchsorted(genuine, group_start + group_size) - first
        others = np.where(within, group_size - 1, len(genuine) - own)
        choice = below(words[:, 1], others)
        near = group_start + choice
        near += near >= class_a
        far = genuine[np.where(within, 0, np.where(choice < first, choice, choice + own))]
        return class_a, np.where(within, near, far)


def pair_sampler(index: ImageIndex, settings: PairSettings, *, split: str) -> PairSampler:
    """The sampler of a split's pairs, to train on or to verify, over the index of its classes."""
    stream = "pairs/train" if split == TRAIN_SPLIT else f"pairs/verification/{split}"
    return PairSampler(index, settings.seed, stream, settings.different_within_group)
