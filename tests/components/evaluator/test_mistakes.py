"""The classes that a model takes for each other."""

from pathlib import Path

import numpy as np
from PIL import Image

from components.evaluator.mistakes import Confusion, draw_confusions
from components.evaluator.trials import sound_images
from data_ingest.sources.layout import ImageReader, list_images
from tests.pair_records import drawing, png


def test_confusions_are_drawn_in_the_colours_that_images_have(tmp_path: Path) -> None:
    page = np.full((20, 20, 3), 255, np.uint8)
    page[5:15, 5:15] = 200, 0, 0
    for name, pixels in (("red", page), ("ink", drawing(0, 1))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(pixels))
    with ImageReader() as reader:
        images = sound_images(list(list_images(tmp_path)), reader)
        draw_confusions(
            [Confusion(("ink", "red"), 1, 1, (0, 1, 1))], images, tmp_path / "confusions.png"
        )
    with Image.open(tmp_path / "confusions.png") as picture:
        seen = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (seen == (200, 0, 0)).all(axis=1).sum() > 1000
