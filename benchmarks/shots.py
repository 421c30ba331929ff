"""Compares ways to combine several support images of a class, on alphabets held out of training.

    python -m benchmarks.shots --model output/serving_model/siamese/<version> \\
        --images images_background.zip

All ways of combining them answer the same trials, so that what one is right in and another wrong
decides. The alphabets are those that `oneshot run` with the default seed holds out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from components.evaluator.recognisers import answer, embed
from components.evaluator.statistics import wilson_interval
from components.evaluator.trials import sound_images
from data_ingest.sampling.index import ImageIndex, ImageRef
from data_ingest.sampling.protocols import PROTOCOL_WITHIN
from data_ingest.sampling.splits import split_index
from data_ingest.sampling.trials import Trial, draw_trials
from data_ingest.settings import PairSettings
from data_ingest.sources.layout import ImageFile, ImageReader, list_images
from serving.saved_model.loader import LoadedModel

Floats = npt.NDArray[np.floating[Any]]

TRIALS_A_SEED: Final = 4000
BOOTSTRAP_REPLICATES: Final = 2000
COMBINATIONS: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    # Of a query `[D]` and support images `[way, shots, D]`.
    "mean embedding": lambda query, many: -np.abs(query - many.mean(axis=1)).sum(axis=-1),
    "nearest": lambda query, many: -np.abs(query - many).sum(axis=-1).min(axis=1),
    "mean logit": lambda query, many: -np.abs(query - many).sum(axis=-1).mean(axis=1),
}


def held_out(files: Sequence[ImageFile]) -> list[ImageFile]:
    """The images of the groups that the default settings keep out of training."""
    background = ImageIndex.build([ImageRef.of(file) for file in files])
    rows = split_index(background, ImageIndex.build([]), PairSettings()).eval
    groups = {background.group_name(int(row)) for row in rows}
    return [file for file in files if file.group in groups]


def credits_by_set(
    trials: Sequence[Trial], vectors: Floats, combine: Callable[[Floats, Floats], Floats]
) -> Floats:
    """`[sets, way]`: what each trial earned."""

    def recogniser(asked: Sequence[Trial]) -> Iterator[Floats]:
        for trial in asked:
            yield combine(vectors[trial.query], vectors[np.array(trial.support)])

    earned = np.array(answer(recogniser, trials).earned)
    return earned.reshape(-1, trials[0].way)


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """95 % interval of the mean, by drawing sets with replacement: their trials share images."""
    draws = np.random.default_rng(0).integers(
        len(differences), size=(BOOTSTRAP_REPLICATES, len(differences))
    )
    low, high = np.percentile(differences.mean(axis=1)[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--way", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--seeds", type=int, default=3, help="sets of 4,000 trials (%(default)s)")
    arguments = parser.parse_args()
    with ImageReader() as reader, LoadedModel(arguments.model) as model:
        images = sound_images(held_out(list_images(arguments.images)), reader)
        vectors = embed(model, images.encoded, range(len(images.index)))
    table = Table(title=f"{arguments.way}-way, {', '.join(images.index.groups)}")
    for heading in (
        "shots",
        "combined by",
        "accuracy",
        "95 % interval",
        "n",
        "mean embedding gains",
    ):
        table.add_column(heading)
    for shots in arguments.shots:
        trials = [
            trial
            for seed in range(1, arguments.seeds + 1)
            for trial in draw_trials(
                images.index,
                PROTOCOL_WITHIN,
                way=arguments.way,
                trials=TRIALS_A_SEED,
                seed=seed,
                shots=shots,
            )
        ]
        earned = {
            name: credits_by_set(trials, vectors, combine) for name, combine in COMBINATIONS.items()
        }
        ours = next(iter(earned.values()))
        for name, credit in earned.items():
            low, high = wilson_interval(float(credit.sum()), credit.size)
            gain = 100 * (ours - credit)
            least, most = bootstrap_interval(gain)
            table.add_row(
                str(shots),
                name,
                f"{100 * credit.mean():.2f} %",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{credit.size:,}",
                "" if credit is ours else f"{gain.mean():+.2f} ({least:+.2f} to {most:+.2f})",
            )
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
