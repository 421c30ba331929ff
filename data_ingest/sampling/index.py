"""Lists the images that there are in sorted columns, without their bytes."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from data_ingest.sampling.draws import Flags, Ints
from data_ingest.sources.layout import ImageFile, forged_classes

Unit = Literal["group", "class"]
"""What is kept together: whole groups, or, where there are fewer than three, classes."""


class ImageRef(NamedTuple):
    """An image by name. `key` tells it from the others of its class, wherever the data lies."""

    group: str
    class_name: str
    writer: int
    key: str

    @classmethod
    def of(cls, file: ImageFile) -> "ImageRef":
        return cls(file.group, file.class_name, file.writer, file.uri)


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images as rows, sorted by group, class and key: the order of the files has no influence.

    The images of a class are the rows `class_start[c]:class_start[c + 1]`, the classes of a
    group are `group_start[g]:group_start[g + 1]`. About 16 bytes an image, besides the names of
    groups and classes.
    """

    groups: tuple[str, ...]
    """Names, sorted."""
    classes: tuple[str, ...]
    """Names, sorted within their group."""
    class_group: Ints
    """`[C]`: the group of each class, non-decreasing."""
    class_forged: Flags
    """`[C]`: are these forgeries of the signatures of their group? They are nobody's positives."""
    row_class: Ints
    """`[N]`: the class of each image, non-decreasing."""
    row_writer: Ints
    """`[N]`: the writer of each image, 0 where unknown."""

    @classmethod
    def build(cls, refs: Iterable[ImageRef]) -> "ImageIndex":
        """Builds the index; rows are in the order of `sort_order(refs)`.

        Raises:
          ValueError: two images of a class share a key, or two groups share a class name.
        """
        refs = list(refs)
        ordered = [refs[position] for position in sort_order(refs)]
        for before, ref in itertools.pairwise(ordered):
            if _order(before) == _order(ref):
                raise ValueError(f"two images of {ref.class_name} have the key {ref.key}")
        group_of: dict[str, str] = {}
        for ref in ordered:
            if group_of.setdefault(ref.class_name, ref.group) != ref.group:
                raise ValueError(f"two groups have a class named {ref.class_name}")
        group_number = {name: number for number, name in enumerate(sorted(set(group_of.values())))}
        class_number = {name: number for number, name in enumerate(group_of)}
        forged = forged_classes(group_of)
        return cls(
            tuple(group_number),
            tuple(class_number),
            class_group=np.array([group_number[group] for group in group_of.values()], np.int64),
            class_forged=np.array([name in forged for name in group_of], bool),
            row_class=np.array([class_number[ref.class_name] for ref in ordered], np.int64),
            row_writer=np.array([ref.writer for ref in ordered], np.int64),
        )

    @cached_property
    def genuine(self) -> Ints:
        """The classes that are no forgeries, ascending: all where there are none."""
        return np.flatnonzero(~self.class_forged)

    @property
    def has_forgeries(self) -> bool:
        return bool(self.class_forged.any())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.row_class)

    @cached_property
    def class_start(self) -> Ints:
        """`[C + 1]`: first row of each class."""
        return np.searchsorted(self.row_class, np.arange(len(self.classes) + 1)).astype(np.int64)

    @cached_property
    def group_start(self) -> Ints:
        """`[G + 1]`: first class of each group."""
        return np.searchsorted(self.class_group, np.arange(len(self.groups) + 1)).astype(np.int64)

    @property
    def row_group(self) -> Ints:
        """`[N]`: the group of each image."""
        return self.class_group[self.row_class]

    @property
    def class_sizes(self) -> Ints:
        """`[C]`: images of each class, all at least 1."""
        return np.diff(self.class_start)

    @property
    def group_sizes(self) -> Ints:
        """`[G]`: classes of each group, all at least 1."""
        return np.diff(self.group_start)

    def class_rows(self, class_number: int) -> range:
        return range(int(self.class_start[class_number]), int(self.class_start[class_number + 1]))

    def group_classes(self, group_number: int) -> range:
        return range(int(self.group_start[group_number]), int(self.group_start[group_number + 1]))

    def class_name(self, row: int) -> str:
        return self.classes[int(self.row_class[row])]

    def group_name(self, row: int) -> str:
        return self.groups[int(self.class_group[self.row_class[row]])]

    def writer(self, row: int) -> int:
        return int(self.row_writer[row])

    def rows_of(self, unit: Unit, names: Collection[str]) -> Ints:
        """Rows of the images of these groups (or classes), ascending."""
        wanted, group = set(names), unit == "group"
        keep = [name in wanted for name in (self.groups if group else self.classes)]
        return np.flatnonzero(np.array(keep, bool)[self.row_group if group else self.row_class])

    def take(self, rows: Sequence[int] | Ints) -> "ImageIndex":
        """The index of these rows alone; row `i` of it is row `rows[i]` of this one.

        Raises:
          ValueError: `rows` is not strictly ascending.
        """
        chosen = np.asarray(rows, np.int64)
        if np.any(np.diff(chosen) <= 0):
            raise ValueError("rows must be strictly ascending")
        class_numbers, row_class = np.unique(self.row_class[chosen], return_inverse=True)
        group_numbers, class_group = np.unique(self.class_group[class_numbers], return_inverse=True)
        return ImageIndex(
            tuple(self.groups[number] for number in group_numbers),
            tuple(self.classes[number] for number in class_numbers),
            class_group=class_group.astype(np.int64),
            class_forged=self.class_forged[class_numbers],
            row_class=row_class.astype(np.int64),
            row_writer=self.row_writer[chosen],
        )


def sort_order(refs: Sequence[ImageRef]) -> list[int]:
    """Positions of the images in the order in which an index of them has its rows."""
    return sorted(range(len(refs)), key=lambda at: _order(refs[at]))


def _order(ref: ImageRef) -> tuple[str, str, str]:
    return (ref.group, ref.class_name, ref.key)
