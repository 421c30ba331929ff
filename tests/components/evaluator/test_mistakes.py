"""The worst mistakes of a model on the trials of an Examples artifact."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluator import mistakes
from components.evaluator.mistakes import Confusion, draw_confusions, hardest_mistakes
from components.evaluator.trials import sound_images
from data_ingest.sources.layout import ImageReader, list_images
from tests.pair_records import drawing, png, trial_records, write_records

SPLIT = "Split-one_shot"


def test_mistakes_are_told_by_logit_the_worst_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(drawing(0, 1))
    names = ("right", "saturated", "tied", "worst")
    write_records(
        tmp_path / SPLIT,
        [pair for name in names for pair in trial_records(name, [image] * 2, query=image)],
    )
    # Two logits a trial, the right candidate's first; in float32 both scores of 40 and 41 are 1.
    logits = np.array([3, 1, 40, 41, 2, 2, -5, 5], np.float32)

    class Model:
        def __init__(self, path: Path) -> None: ...

        def __enter__(self) -> "Model":
            return self

        def __exit__(self, *error: object) -> None: ...

        def run(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, object]:
            if signature == "embed":
                return {"embedding": np.zeros((len(inputs["image"]), 1))}
            return {"logit": logits}

    monkeypatch.setattr(mistakes, "LoadedModel", Model)
    found = hardest_mistakes(model=tmp_path, examples=tmp_path, most=2)
    assert [mistake.trial for mistake in found] == ["worst", "saturated"]
    assert found[1].chosen_score == found[1].correct_score == 1.0
    everything = hardest_mistakes(model=tmp_path, examples=tmp_path, most=10)
    assert [mistake.trial for mistake in everything] == ["worst", "saturated", "tied"]


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
