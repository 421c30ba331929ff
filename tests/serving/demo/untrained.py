"""Networks that nobody has trained: they know a picture again, and that is all."""

from pathlib import Path
from typing import Final

import keras

from components.trainer.model import build_model
from data_ingest.sources.glyphs import draw_alphabet, encode_png
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from tests.pair_records import tiny_recipe

OLD: Final = "1700000000"
NEW: Final = "1700000005"


def glyph(character: int) -> bytes:
    """A drawing of none of those that the demo begins with."""
    drawn = list(draw_alphabet(9, characters=character + 1, writers=1, seed=7))
    return encode_png(drawn[character][0])


def push(folder: Path, *, seed: int) -> None:
    keras.utils.set_random_seed(seed)
    export_model(
        build_model(tiny_recipe()),
        folder,
        preprocessing=Preprocessing(16),
        card={},
        warmup_images=[glyph(0)],
    )
