"""A recogniser trained in seconds on generated glyphs: small, but a real one."""

from pathlib import Path

import numpy as np

from components.devices import choose_accelerator
from components.fitting import fit
from components.train_data import PairData, read_pair_data
from components.train_settings import TrainSettings
from components.trainer import calibrate
from data_ingest.features import Pair
from data_ingest.glyphs import draw_alphabet, encode_png
from serving.export import export_model
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


def glyphs(alphabet: int, characters: int) -> list[list[bytes]]:
    """Images by character and writer."""
    return [
        [encode_png(ink) for ink in drawings]
        for drawings in draw_alphabet(alphabet, characters=characters, writers=WRITERS, seed=1)
    ]


def train_and_export(folder: Path, *, seed: int = 1) -> None:
    """Writes a version; `folder` is its place under the base path."""
    work = folder.parent.parent / f"training-{folder.name}"
    recipe = SETTINGS.model_copy(update={"seed": seed}).recipe()
    train = _pairs(work / "train", range(1, 20), recipe.image_size)
    held_out = _pairs(work / "held_out", range(30, 33), recipe.image_size)
    accelerator = choose_accelerator(mixed_precision="off", xla="off")
    model = fit(recipe, train, held_out, accelerator=accelerator).model
    calibrate(model, held_out)
    export_model(
        model,
        folder,
        image_size=recipe.image_size,
        polarity="auto",
        card={},
        warmup_images=[glyphs(20, 1)[0][0]],
    )


def _pairs(folder: Path, alphabets: range, size: int) -> PairData:
    random = np.random.default_rng(alphabets.start)
    pairs = []
    for alphabet in alphabets:
        characters = glyphs(alphabet, 12)
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
    return read_pair_data([write_records(folder, pairs)], size=size, polarity="auto")
