"""Measures how often `drift`'s limits are wrong, on new alphabets and on spoiled drawings.

    python -m benchmarks.drift_limits /data/omniglot/images_background.zip

Alphabets are divided at random into a reference and a span, again and again. A span of drawings as
they are should not be found; one whose drawings were spoiled, all or a third of them, should be.
"""

import argparse
import io
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from components.evaluator.statistics import wilson_interval
from data_ingest.sources.layout import ImageFile, ImageReader, list_images
from data_ingest.spans.image_figures import FIGURES, ImageFigures, measure_images
from pipeline.retraining.drift import compare_figures, compare_turns
from pipeline.settings import DriftSettings

Gray = npt.NDArray[np.uint8]
SPOILED: Final = (
    "inverted",
    "specks on 2 %",
    "left half blank",
    "strokes thicker",
    "blurred, sigma 1",
    "blurred, sigma 2",
    "turned by 90°",
    "turned by 180°",
)


def spoil(name: str, data: bytes) -> bytes:
    """A drawing as it would be after something went wrong."""
    with Image.open(io.BytesIO(data)) as image:
        gray: Gray = np.asarray(image.convert("L")).copy()
    if name == "inverted":
        gray = 255 - gray
    elif name == "specks on 2 %":
        specks = np.random.default_rng(zlib.crc32(data)).random(gray.shape) < 0.02
        gray[specks] = 255 - gray[specks]
    elif name == "left half blank":
        left, right = np.array_split(gray, 2, axis=1)
        # A page that is blank altogether would be rejected.
        left[:] = 255 if np.ptp(right) else left
    elif name == "strokes thicker":
        gray = np.asarray(Image.fromarray(gray).filter(ImageFilter.MinFilter(3)))
    elif name.startswith("blurred"):
        blur = ImageFilter.GaussianBlur(int(name.split()[-1]))
        gray = np.asarray(Image.fromarray(gray).filter(blur))
    elif name.startswith("turned"):
        gray = np.rot90(gray, 2 if "180" in name else 1)
    stream = io.BytesIO()
    # Not 1-bit as they came: what is blurred would be found by how it is stored.
    Image.fromarray(gray).save(stream, "PNG")
    return stream.getvalue()


def by_group(figures: ImageFigures) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(figures.groups):
        rows.setdefault(group, []).append(row)
    return rows


def part(figures: ImageFigures, rows: Sequence[int]) -> ImageFigures:
    def chosen(column: Sequence[str]) -> tuple[str, ...]:
        return tuple(column[row] for row in rows)

    columns = {name: chosen(figures.columns[name]) for name in FIGURES}
    strokes = figures.strokes[list(rows)]
    return ImageFigures(chosen(figures.groups), chosen(figures.classes), columns, strokes)


def mixed(clean: ImageFigures, bad: ImageFigures, every: int) -> ImageFigures:
    """Every so many rows are those of `bad`."""
    columns = {
        name: tuple(
            bad.columns[name][row] if row % every == 0 else value
            for row, value in enumerate(clean.columns[name])
        )
        for name in FIGURES
    }
    strokes = clean.strokes.copy()
    strokes[::every] = bad.strokes[::every]
    return ImageFigures(clean.groups, clean.classes, columns, strokes)


def spans_of(sides: Mapping[str, ImageFigures], rows: Sequence[int]) -> dict[str, ImageFigures]:
    """These rows as they are, spoiled, and a third of them spoiled."""
    clean = part(sides["clean"], rows)
    spans = {"as they are": clean}
    for name in SPOILED:
        bad = part(sides[name], rows)
        spans[name] = bad
        spans[f"{name}, a third"] = mixed(clean, bad, every=3)
    return spans


def findings(
    sides: Mapping[str, ImageFigures], *, reference: int, span: int, divisions: int
) -> Counter[str]:
    """In how many of the divisions something was found, by what was done to the span."""
    rows = by_group(sides["clean"])
    names = sorted(rows)
    generator = np.random.default_rng(1)
    found: Counter[str] = Counter()
    for _ in range(divisions):
        order = [names[at] for at in generator.permutation(len(names))]
        old = part(sides["clean"], [row for name in order[:reference] for row in rows[name]])
        chosen = order[reference : reference + span]
        for name, new in spans_of(sides, [row for one in chosen for row in rows[one]]).items():
            settings = DriftSettings()
            compared = compare_figures(new, old, settings) + compare_turns(new, old)
            found[name] += any(one.exceeded for one in compared)
    return found


def measured(files: Sequence[ImageFile], folder: Path) -> dict[str, ImageFigures]:
    sides: dict[str, ImageFigures] = {}
    for name in ("clean", *SPOILED):
        archive = folder / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as target, ImageReader() as reader:
            for file in files:
                target.writestr(file.uri, spoil(name, reader.read(file)))
        # The rows of all sides are in the same order: that of the images' names.
        sides[name] = measure_images([[archive]], limit=len(files))
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path, help="Omniglot's background archive")
    parser.add_argument(
        "--division",
        nargs="+",
        default=["7+1", "7+3", "7+7", "21+3"],
        help="alphabets of the reference and of the span (%(default)s)",
    )
    parser.add_argument("--divisions", type=int, default=50, help="of each kind (%(default)s)")
    parser.add_argument("--writers", type=int, default=5, help="of the 20 (%(default)s)")
    arguments = parser.parse_args()
    files = [file for file in list_images(arguments.images) if file.writer <= arguments.writers]
    with tempfile.TemporaryDirectory() as folder:
        sides = measured(files, Path(folder))
    table = Table("span", *arguments.division)
    columns = []
    for division in arguments.division:
        reference, span = map(int, division.split("+"))
        columns.append(
            findings(sides, reference=reference, span=span, divisions=arguments.divisions)
        )
    for name in columns[0]:
        cells = []
        for column in columns:
            low, high = wilson_interval(column[name], arguments.divisions)
            cells.append(
                f"{column[name]} of {arguments.divisions} ({100 * low:.0f} to {100 * high:.0f} %)"
            )
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
