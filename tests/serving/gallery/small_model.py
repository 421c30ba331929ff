"""A recogniser trained in seconds, on generated glyphs or on Omniglot: small, but a real one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from components.trainer.calibration import calibrate, scale_head
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit
from components.trainer.pair_data import PairData, read_pair_data
from components.trainer.recipe import TrainSettings
from components.trainer.run_fn import impostors
from data_ingest.records.features import Pair
from data_ingest.sources.glyphs import draw_alphabet, encode_png
from data_ingest.sources.layout import ImageFile, ImageReader, list_images
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from tests.pair_records import write_records

SETTINGS = TrainSettings(
    steps=300,
    image_size=28,
    widths=(16, 32, 64),
    embedding_size=48,
    classes_per_batch=16,
    images_per_class=4,
    validate_every=150,
    ema=0.97,
    quarter_turns=False,
)
WRITERS = 8
TRAIN = range(19)
HELD_OUT = range(19, 22)
Drawings = Callable[[int, int], list[list[bytes]]]
"""From an alphabet's number and a number of characters to images by character and writer."""


def glyphs(alphabet: int, characters: int) -> list[list[bytes]]:
    """Images by character and writer."""
    return [
        [encode_png(ink) for ink in drawings]
        for drawings in draw_alphabet(alphabet, characters=characters, writers=WRITERS, seed=1)
    ]


def omniglot_drawings(images: Path) -> Drawings:
    """Alphabets of an archive of Omniglot, or of a folder; in order of their names."""
    classes: dict[str, dict[str, list[ImageFile]]] = {}
    for file in list_images(images):
        classes.setdefault(file.group, {}).setdefault(file.class_name, []).append(file)

    def drawings(alphabet: int, characters: int) -> list[list[bytes]]:
        with ImageReader() as reader:
            return [
                [reader.read(file) for file in files[:WRITERS]]
                for files in list(classes[sorted(classes)[alphabet]].values())[:characters]
            ]

    return drawings


def train_and_export(folder: Path, *, seed: int = 1, drawings: Drawings = glyphs) -> None:
    """Writes a version; `folder` is its place under the base path."""
    work = folder.parent.parent / f"training-{folder.name}"
    recipe = SETTINGS.model_copy(update={"seed": seed}).recipe()
    train = _pairs(work / "train", TRAIN, recipe.image_size, drawings)
    held_out = _pairs(work / "held_out", HELD_OUT, recipe.image_size, drawings)
    accelerator = choose_accelerator(mixed_precision="off", xla="off")
    model = fit(recipe, train, held_out, accelerator=accelerator).model
    scale_head(model, calibrate(model, held_out).platt)
    export_model(
        model,
        folder,
        preprocessing=Preprocessing(recipe.image_size),
        card={},
        warmup_images=held_out.samples,
        impostors=impostors(model, held_out),
    )


def _pairs(folder: Path, alphabets: range, size: int, drawings: Drawings) -> PairData:
    random = np.random.default_rng(alphabets.start)
    pairs = []
    for alphabet in alphabets:
        characters = drawings(alphabet, 12)
        for number in range(12 * WRITERS):
            a = number // WRITERS
            b = a if number % 2 else int((a + random.integers(1, 12)) % 12)
            writers = random.permutation(WRITERS)[:2]
            pairs.append(
                Pair(
                    image_a=characters[a][writers[0]],
                    image_b=characters[b][writers[1]],
                    label=int(a == b),
                    class_a=f"alphabet{alphabet:02d}/character{a:02d}",
                    class_b=f"alphabet{alphabet:02d}/character{b:02d}",
                    group_a=f"alphabet{alphabet:02d}",
                    group_b=f"alphabet{alphabet:02d}",
                    writer_a=int(writers[0]) + 1,
                    writer_b=int(writers[1]) + 1,
                    trial="",
                    protocol="train",
                    way=0,
                )
            )
    return read_pair_data([write_records(folder, pairs)], Preprocessing(size))
