"""Measures what a change of the training recipe is worth, on held-out classes.

    python -m benchmarks.search --data images_background.zip --results search.json \\
        --name "learning rate 0.01" --set learning_rate=0.01 --seeds 1 2 3

Trains a preset with some fields of its recipe changed, once a seed, and measures one-shot trials
(within alphabets, where there are alphabets) and verification, on classes that no training here
saw; of Omniglot, evaluation alphabets are never looked at. `--kind photo` and `--kind signature`
take the preset for these, and any zip or folder of images. What is in the results file already is
not trained again. Without `--name` it only prints the table.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console
from rich.table import Table

from components.evaluator.statistics import ScoredPairs, equal_error_rate, true_accept_rate
from components.trainer.devices import choose_accelerator
from components.trainer.fit import OneShotValidation, fit
from components.trainer.model import embed_all, embedding_function
from components.trainer.pair_data import PairData, image_decoder
from components.trainer.recipe import Preset, Recipe, TrainSettings
from data_ingest.durable import write_atomically
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from data_ingest.sampling.splits import split_index
from data_ingest.settings import PairSettings
from data_ingest.sources.kinds import KINDS, Kind
from data_ingest.sources.layout import ImageReader, list_images

HELD_OUT_SHARE: Final = 0.2
VERIFIED: Final = 1500
"""Most images whose pairs, all of them, are verified."""
RATES: Final = ("eer", "tar")
TRIALS: Final = 8000
NEVER: Final = 10**7
BATCH: Final = 512


def recipe_of(
    preset: Preset,
    changes: Mapping[str, Any],
    *,
    seed: int,
    steps: int | None = None,
    kind: Kind = "drawing",
    classes: int | None = None,
) -> Recipe:
    """The preset, for so many classes to train on, with changed fields.

    Raises:
      ValidationError: there is no such field, or it cannot have that value.
    """
    given = TrainSettings(preset=preset).recipe(kind, classes=classes)
    values = {**dict(given if steps is None else given.lasting(steps)), "seed": seed, **changes}
    if kind == "drawing" and "polarity" not in changes:
        values["polarity"] = "dark_on_light"
    # The last weights are judged, not the best of several looks at the held-out alphabets.
    values["validate_every"] = NEVER
    return Recipe(**values)


def classes_to_train(container: Path, held_out: float) -> int:
    """About how many classes are trained on, where a share of them is held out."""
    return round((1 - held_out) * len({file.class_name for file in list_images(container)}))


def split(
    container: Path, recipe: Recipe, *, share: float = HELD_OUT_SHARE
) -> tuple[PairData, PairData]:
    """Images to train on and to judge by, of different alphabets or, where there are none, classes.

    Args:
      container: zip or folder.
      recipe: how they are seen.
      share: of the alphabets or classes, how many are held out.
    """
    files = list_images(container)
    refs = [ImageRef.of(f) for f in files]
    order = sort_order(refs)

    decode = image_decoder(recipe.preprocessing)
    decoded = []
    with ImageReader() as reader:
        for start in range(0, len(order), BATCH):
            encoded = [reader.image(files[at]) for at in order[start : start + BATCH]]
            decoded.append(decode(encoded))
    images = np.concatenate(decoded)
    index = ImageIndex.build(refs)
    rows = split_index(index, index.take([]), PairSettings(holdout_share=share))
    return _data(index, images, rows.train), _data(index, images, rows.eval)


def _data(
    index: ImageIndex, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]
) -> PairData:
    nothing = np.empty(0, np.int32)
    return PairData(
        index=index.take(rows),
        images=images[rows],
        pairs=nothing.reshape(0, 2),
        labels=nothing,
        fingerprint=str(len(rows)),
        samples=(),
        digests=np.zeros(len(rows), np.uint64),
    )


def measure(
    recipe: Recipe, container: Path, *, trials: int = TRIALS, share: float = HELD_OUT_SHARE
) -> dict[str, Any]:
    """Trains once and judges the last weights: figures in [0, 1], and what they cost."""
    train, held_out = split(container, recipe, share=share)
    cores, wall = time.process_time(), time.monotonic()
    fitted = fit(recipe, train, held_out, accelerator=choose_accelerator())
    cores, wall = time.process_time() - cores, time.monotonic() - wall
    validation = OneShotValidation(held_out, trials=trials)
    embed = embedding_function(fitted.model)
    return {
        "accuracy": validation.accuracy(embed),
        **verification(embed_all(embed, held_out.images), held_out.index.row_class),
        "trials": trials,
        "way": validation.way,
        "core_seconds": round(cores, 1),
        "seconds": round(wall, 1),
        "parameters": fitted.facts.parameters,
        "alphabets": list(held_out.index.groups),
        "classes": len(held_out.index.classes),
    }


def verification(
    vectors: npt.NDArray[np.float32], classes: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Equal error rate, and true accept rate at 1 % false accepts, of all pairs of images.

    Of more than `VERIFIED` images, so many are drawn.

    Args:
      vectors: `float32[n, D]`, weighted embeddings.
      classes: `int64[n]`.
    """
    if len(vectors) > VERIFIED:
        drawn = np.random.default_rng(0).choice(len(vectors), VERIFIED, replace=False)
        vectors, classes = vectors[drawn], classes[drawn]
    logits, same = [], []
    for at in range(1, len(vectors)):
        logits.append(-np.abs(vectors[:at] - vectors[at]).sum(axis=1))
        same.append(classes[:at] == classes[at])
    logit, is_same = np.concatenate(logits), np.concatenate(same)
    pairs = ScoredPairs(logit, is_same)
    return {
        "eer": equal_error_rate(pairs.same, pairs.different),
        "tar": true_accept_rate(pairs.same, pairs.different),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a change, in the order in which they were tried."""
    shown = Table()
    figures = ("accuracy", "sd", "EER", "TAR at 1 % FAR")
    for heading in ("change", "seeds", *figures, "core-seconds", "parameters"):
        shown.add_column(heading, justify="left" if heading == "change" else "right")
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        accuracies = [100 * row["accuracy"] for row in own]
        shown.add_row(
            name,
            str(len(own)),
            f"{statistics.mean(accuracies):.2f} %",
            f"{statistics.stdev(accuracies):.2f}" if len(own) > 1 else "",
            *(f"{100 * statistics.mean(row[name] for row in own):.1f} %" for name in RATES),
            f"{statistics.mean(row['core_seconds'] for row in own):.0f}",
            f"{own[0]['parameters']:,}",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("--data", type=Path, help="background images, zip or folder")
    parser.add_argument("--results", type=Path, default=Path("search.json"))
    parser.add_argument("--name", help="of the change, as it appears in the table")
    parser.add_argument("--preset", default="fast", choices=get_args(Preset))
    parser.add_argument("--kind", default="drawing", choices=KINDS)
    parser.add_argument("--held-out", type=float, default=HELD_OUT_SHARE, help="share of classes")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args(argv)
    if options.name and options.data is None:
        parser.error("--name needs --data, the images to train on")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    changes = {
        field: yaml.safe_load(value)
        for field, _, value in (change.partition("=") for change in options.changes)
    }
    classes = classes_to_train(options.data, options.held_out) if options.name else 0
    for seed in options.seeds if options.name else ():
        recipe = recipe_of(
            options.preset,
            changes,
            seed=seed,
            steps=options.steps,
            kind=options.kind,
            classes=classes,
        )
        document = recipe.model_dump(mode="json")
        known = _read(options.results)
        data = str(options.data)
        if any((row["recipe"], row.get("data", data)) == (document, data) for row in known):
            continue
        found = measure(recipe, options.data, trials=options.trials, share=options.held_out)
        row = {"name": options.name, "recipe": document, "data": data, **found}
        write_atomically(options.results, json.dumps([*known, row], indent=1) + "\n")
    Console(width=110).print(table(_read(options.results)))
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
