"""What ingestion keeps of an image is to a model what the image itself is."""

import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFilter

from components.trainer.model import EMBEDDER, HEAD, build_model
from components.trainer.recipe import TrainSettings
from data_ingest.sources.images import stored_form
from data_ingest.sources.kinds import KINDS, Form, Kind, form_of
from serving.saved_model.export import export_model
from serving.saved_model.loader import LoadedModel
from serving.saved_model.preprocessing import decode_images
from serving.saved_model.versions import stored_as
from tests.drawn_face import drawn_face

SCORE_BOUND = {"drawing": 0.02, "photo": 0.02, "signature": 0.1}
"""Most that the score of two originals differs from that of their stored forms, where it is near
0.5 and so changes most. The box around a signature's ink moves by a pixel."""
SEEN_BOUND = {"drawing": 0.01, "photo": 0.005, "signature": 0.03}
"""Most that what the network sees differs, in the mean over pixels in [0, 1]."""


def originals(kind: Kind) -> list[bytes]:
    """Larger pictures than are stored, as cameras and scanners make them."""
    rng = np.random.default_rng(3)
    images = []
    for number in range(3):
        if kind == "photo":
            patches = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
            page = patches.resize([(1600, 1200), (900, 1200)][number % 2], Image.Resampling.BICUBIC)
        else:
            width, height = (1000, 360) if kind == "signature" else (800, 900)
            page = Image.new("RGB", (width, height), (236, 232, 226))
            places = rng.uniform(0.2, 0.8, (8, 2)) * (width, height)
            line = [tuple(place) for place in places]
            ImageDraw.Draw(page).line(line, fill=(30, 30, 60), width=9, joint="curve")
            page = page.filter(ImageFilter.GaussianBlur(1))
        grain = Image.effect_noise(page.size, 15).convert("RGB")
        stream = io.BytesIO()
        Image.blend(page, grain, 0.1).save(stream, "JPEG" if number < 2 else "PNG", quality=90)
        images.append(stream.getvalue())
    return images


@pytest.mark.parametrize("kind", KINDS)
def test_an_original_scores_like_its_stored_form(kind: Kind, tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    recipe = TrainSettings(widths=(8, 16), embedding_size=16).recipe(kind)
    model = build_model(recipe)
    images = originals(kind)
    stored = [stored_form(image, form_of(kind)) for image in images]
    assert all(one != image for one, image in zip(stored, images, strict=True))
    preprocessing = recipe.preprocessing
    seen, kept = (decode_images(tf.constant(ones), preprocessing) for ones in (images, stored))
    assert np.abs(seen - kept).mean() < SEEN_BOUND[kind]

    rows, columns = np.triu_indices(len(images), 1)
    head = model.get_layer(HEAD)
    apart = head.distances(model.get_layer(EMBEDDER)(kept)).numpy()[rows, columns]
    head.b0.assign(np.median(apart))  # where a score changes most
    export_model(
        model,
        tmp_path / "1",
        preprocessing=preprocessing,
        card={"kind": kind},
        warmup_images=stored[:2],
    )
    assert stored_as(tmp_path / "1") == form_of(kind)
    with LoadedModel(tmp_path / "1") as served:
        scores = [
            served.run(
                "serving_default",
                {
                    "image_a": np.array(ones, object)[rows],
                    "image_b": np.array(ones, object)[columns],
                },
            )["score"]
            for ones in (images, stored)
        ]
    assert np.ptp(scores[0]) > 0.1
    np.testing.assert_allclose(*scores, atol=SCORE_BOUND[kind])


def test_a_face_that_stands_elsewhere_scores_like_its_aligned_twin(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    recipe = TrainSettings(widths=(8, 16), embedding_size=16).recipe("photo")
    model = build_model(recipe)
    form = form_of("photo", crop="face")

    def stored(photo: Image.Image, form: Form) -> bytes:
        stream = io.BytesIO()
        photo.save(stream, "PNG")
        return stored_form(stream.getvalue(), form)

    photo, twin = drawn_face(), drawn_face(turn=-12.0, radius=70.0, at=(165, 140))
    other = stored(Image.effect_noise((300, 300), 80).convert("RGB"), form_of("photo"))
    head = model.get_layer(HEAD)
    whole = [stored(one, form_of("photo")) for one in (photo, twin)]
    cut = [stored(one, form) for one in (photo, twin)]
    seen = decode_images(tf.constant([*whole, *cut, other]), recipe.preprocessing)
    vectors = model.get_layer(EMBEDDER)(seen)
    apart = head.distances(vectors).numpy()
    head.b0.assign(apart[2, 4])  # where a score changes most
    export_model(
        model,
        tmp_path / "1",
        preprocessing=recipe.preprocessing,
        card={"kind": "photo", "crop": "face"},
        warmup_images=cut,
    )
    with LoadedModel(tmp_path / "1") as served:
        images = {"image_a": np.array(cut, object), "image_b": np.array([other] * 2, object)}
        scores = served.run("serving_default", images)["score"]
    assert abs(scores[0] - scores[1]) < 0.05
    # Of the whole photos the twin is another image.
    assert apart[2, 3] < 0.5 * apart[0, 1]
