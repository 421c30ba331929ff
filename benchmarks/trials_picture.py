"""Draws the picture of the README: one-shot trials, their candidates in order of score.

    python -m benchmarks.trials_picture --model output/serving_model/siamese \\
        --images images_evaluation.zip --out docs/trials.png

The first trials of a seed that are answered right, and the first one that is not.
"""

import argparse
import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from components.evaluator.offline import find_model
from components.evaluator.recognisers import ModelRecogniser
from components.evaluator.trials import drawn_trials
from data_ingest.sources.layout import ImageReader, list_images
from serving.saved_model.loader import LoadedModel
from serving.saved_model.versions import stored_as

RIGHT: Final = 2
"""Trials answered right in the picture; one that was not comes last."""
GOOD, BAD, PLAIN = "#1a7f37", "#cf222e", "#d0d7de"


class Row(NamedTuple):
    """A trial: the query, and the candidates by falling score."""

    query: bytes
    candidates: Sequence[bytes]
    scores: Sequence[float]
    answer: int
    """Place of the query's class among the candidates."""


def rows(model: Path, images: Path, *, way: int, seed: int) -> list[Row]:
    """The trials of the picture."""
    with ImageReader(stored_as(model)) as reader:
        drawn = drawn_trials(
            list_images(images), reader, ways=(way,), shots=1, trials=400, seed=seed
        )
        trials = drawn.by_way[way]
        encoded = drawn.images.encoded
        recogniser = ModelRecogniser(LoadedModel(model), encoded, trials)
        found = []
        for trial, logits in zip(trials, recogniser(trials), strict=True):
            order = np.argsort(-logits)
            found.append(
                Row(
                    encoded(trial.query),
                    [encoded(trial.support[candidate][0]) for candidate in order],
                    [float(1 / (1 + np.exp(-logits[candidate]))) for candidate in order],
                    int(np.flatnonzero(order == trial.answer)[0]),
                )
            )
    right = islice((row for row in found if row.answer == 0), RIGHT)
    wrong = islice((row for row in found if row.answer != 0), 1)
    return [*right, *wrong]


def drawn(shown: Sequence[Row]) -> Figure:
    """The picture; its background is white, in the dark too."""
    way = len(shown[0].candidates)
    figure = Figure(figsize=(way + 1.6, 1.3 * len(shown) + 0.4), facecolor="white")
    grid = figure.add_gridspec(
        len(shown), way + 1, width_ratios=[1.25, *[1] * way], wspace=0.15, hspace=0.45
    )
    for line, row in enumerate(shown):
        _tile(figure, grid[line, 0], row.query, "what is this?" if line == 0 else "", PLAIN)
        for place, (image, score) in enumerate(zip(row.candidates, row.scores, strict=True)):
            colour = GOOD if place == row.answer else BAD if place == 0 else PLAIN
            _tile(figure, grid[line, place + 1], image, f"{score:.2f}", colour)
    return figure


def _tile(figure: Figure, where: Any, encoded: bytes, text: str, colour: str) -> None:
    axes = figure.add_subplot(where)
    pixels: npt.NDArray[np.uint8] = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.set_title(text, fontsize=10, color="black" if colour == PLAIN else colour)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1 if colour == PLAIN else 2.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", type=int, default=8, help="candidates (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    picture = drawn(
        rows(find_model(options.model), options.images, way=options.way, seed=options.seed)
    )
    picture.savefig(options.out, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
