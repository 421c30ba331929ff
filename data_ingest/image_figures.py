"""Figures of all images of some spans, in ranges, and how much they differ by nature."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from data_ingest.draws import Draws, stable_hash
from data_ingest.image_statistics import ImageStatistics, bin_of, image_statistics
from data_ingest.layout import ImageFile, ImageReader, list_images

FIGURES: Final = (*ImageStatistics._fields, "class_size")
_DRAWS: Final = 100
_FEWEST_UNITS: Final = 4
"""With fewer groups, classes show how much images differ by nature."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageFigures:
    """A column a figure, all of one length."""

    groups: tuple[str, ...]
    classes: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    """`FIGURES`, each value the name of a range."""

    def __len__(self) -> int:
        return len(self.groups)

    def share(self, figure: str) -> dict[str, float]:
        """Share of the images by value."""
        counts = Counter(self.columns[figure])
        return {value: count / len(self) for value, count in sorted(counts.items())}


def measure_images(spans: Sequence[Sequence[Path]], *, limit: int) -> ImageFigures:
    """Measures the images of some spans; of more than `limit`, always the same ones.

    Args:
      spans: the zips of each. `class_size` counts within a span.
      limit: most images that are measured.
    """
    listed: list[tuple[ImageFile, int]] = []
    for containers in spans:
        files = [file for container in containers for file in list_images(container)]
        sizes = Counter(file.class_name for file in files)
        listed += [(file, sizes[file.class_name]) for file in files]
    listed.sort(key=lambda item: (stable_hash(0, item[0].uri), item[0].container))
    kept: list[ImageFile] = []
    rows: list[list[str]] = []
    with ImageReader() as reader:
        for file, size in listed[:limit]:
            data, reason = reader.read_checked(file)
            if reason is None:
                measured = {**image_statistics(data)._asdict(), "class_size": size}
                rows.append([bin_of(name, measured[name]) for name in FIGURES])
                kept.append(file)
    columns = zip(*rows, strict=True) if rows else [()] * len(FIGURES)
    return ImageFigures(
        tuple(file.group for file in kept),
        tuple(file.class_name for file in kept),
        dict(zip(FIGURES, (tuple(column) for column in columns), strict=True)),
    )


def natural_divergences(reference: ImageFigures, *, like: ImageFigures) -> dict[str, float]:
    """How far, in each figure, a few of the reference's groups can be from its other groups.

    New groups differ from known ones without anything being wrong, one alone more than many
    together. So as many groups as `like` has, half of the reference's at most, are drawn a hundred
    times; the greatest divergence from the rest is what counts. 0 where there are too few.
    """
    units, count = reference.groups, len(set(like.groups))
    if len(set(units)) < _FEWEST_UNITS:
        units, count = reference.classes, len(set(like.classes))
    names = sorted(set(units))
    if len(names) < _FEWEST_UNITS:
        return dict.fromkeys(reference.columns, 0.0)
    count = min(count, len(names) // 2)
    drawn = np.zeros((_DRAWS, len(names)), bool)
    for number, row in enumerate(drawn):
        row[Draws(0, f"natural divergence/{count}", number).order(len(names))[:count]] = True
    greatest = {}
    for figure, column in reference.columns.items():
        table = _table(units, column, names)
        greatest[figure] = float(divergence(drawn @ table, ~drawn @ table).max())
    return greatest


def divergence(one: Floats, other: Floats) -> Floats:
    """Jensen-Shannon divergence (Lin 1991, equation 4.1, base 2), in [0, 1].

    Args:
      one, other: `[..., V]`, counts of the same values, not all of them zero.

    Returns:
      `[...]`.
    """
    p = one / one.sum(axis=-1, keepdims=True)
    q = other / other.sum(axis=-1, keepdims=True)
    between = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(between, 0.0)


def _entropy(shares: Floats) -> Floats:
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logarithms).sum(axis=-1)
    return entropy


def _table(units: Iterable[str], values: Sequence[str], names: Sequence[str]) -> Floats:
    """`[units, values]` counts."""
    row = {name: number for number, name in enumerate(names)}
    column = {value: number for number, value in enumerate(sorted(set(values)))}
    table = np.zeros((len(row), len(column)))
    places = [(row[unit], column[value]) for unit, value in zip(units, values, strict=True)]
    np.add.at(table, tuple(np.array(places).T), 1)
    return table
