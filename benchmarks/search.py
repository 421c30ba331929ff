"""Measures what a change of the training recipe is worth, on held-out background alphabets.

    python -m benchmarks.search --data images_background.zip --results search.json \\
        --name "learning rate 0.01" --set learning_rate=0.01 --seeds 1 2 3

Trains a preset with some fields of its recipe changed, once a seed, and measures within-alphabet
trials of background alphabets that no training here saw; evaluation alphabets are never looked at.
What is in the results file already is not trained again. Without `--name` it only prints the table.
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

from components.trainer.devices import choose_accelerator
from components.trainer.fit import OneShotValidation, fit
from components.trainer.model import embedding_function
from components.trainer.pair_data import PairData, image_decoder
from components.trainer.recipe import Preset, Recipe, TrainSettings
from data_ingest.durable import write_atomically
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from data_ingest.sampling.splits import split_index
from data_ingest.settings import PairSettings
from data_ingest.sources.layout import ImageReader, list_images

HELD_OUT_SHARE: Final = 0.2
TRIALS: Final = 8000
NEVER: Final = 10**7
BATCH: Final = 512


def recipe_of(
    preset: Preset, changes: Mapping[str, Any], *, seed: int, steps: int | None = None
) -> Recipe:
    """The preset with changed fields.

    Raises:
      ValidationError: there is no such field, or it cannot have that value.
    """
    given = dict(TrainSettings(preset=preset).recipe())
    values = {**given, "polarity": "dark_on_light", "seed": seed, **changes}
    if steps is not None:
        values["steps"] = steps
    # The last weights are judged, not the best of several looks at the held-out alphabets.
    values["validate_every"] = NEVER
    return Recipe(**values)


def split(container: Path, recipe: Recipe) -> tuple[PairData, PairData]:
    """Images to train on and to judge by, of different alphabets, as the recipe sees them."""
    files = list_images(container)
    refs = [ImageRef.of(f) for f in files]
    order = sort_order(refs)

    decode = image_decoder(recipe.preprocessing)
    decoded = []
    with ImageReader() as reader:
        for start in range(0, len(order), BATCH):
            encoded = [reader.read(files[at]) for at in order[start : start + BATCH]]
            decoded.append(decode(encoded))
    images = np.concatenate(decoded)
    index = ImageIndex.build(refs)
    rows = split_index(index, index.take([]), PairSettings(holdout_share=HELD_OUT_SHARE))
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


def measure(recipe: Recipe, container: Path, *, trials: int = TRIALS) -> dict[str, Any]:
    """Trains once and judges the last weights: `accuracy` in [0, 1], and what that cost."""
    train, held_out = split(container, recipe)
    cores, wall = time.process_time(), time.monotonic()
    fitted = fit(recipe, train, held_out, accelerator=choose_accelerator())
    cores, wall = time.process_time() - cores, time.monotonic() - wall
    validation = OneShotValidation(held_out, trials=trials)
    return {
        "accuracy": validation.accuracy(embedding_function(fitted.model)),
        "trials": trials,
        "way": validation.way,
        "core_seconds": round(cores, 1),
        "seconds": round(wall, 1),
        "parameters": fitted.facts.parameters,
        "alphabets": list(held_out.index.groups),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a change, in the order in which they were tried."""
    shown = Table()
    for heading in ("change", "seeds", "accuracy", "sd", "core-seconds", "parameters"):
        shown.add_column(heading, justify="left" if heading == "change" else "right")
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        accuracies = [100 * row["accuracy"] for row in own]
        shown.add_row(
            name,
            str(len(own)),
            f"{statistics.mean(accuracies):.2f} %",
            f"{statistics.stdev(accuracies):.2f}" if len(own) > 1 else "",
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
    for seed in options.seeds if options.name else ():
        recipe = recipe_of(options.preset, changes, seed=seed, steps=options.steps)
        document = recipe.model_dump(mode="json")
        known = _read(options.results)
        if any(row["recipe"] == document for row in known):
            continue
        found = measure(recipe, options.data, trials=options.trials)
        row = {"name": options.name, "recipe": document, **found}
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
