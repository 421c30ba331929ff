"""The population of the gallery's benchmark, and the answers that it takes for right."""

import io

import numpy as np
from PIL import Image

from benchmarks.gallery_databases import VectorEmbedder, image_of
from benchmarks.gallery_vectors import draw_population, made_up_drawings, positions
from data_ingest.sources.glyphs import draw_alphabet, encode_png
from serving.client.images import encode_image


def test_the_answers_are_those_of_exact_search() -> None:
    population = draw_population(made_up_drawings(), 700, newcomers=10, queries=50)
    distances = np.abs(population.queries[:, None] - population.enrolled).sum(axis=2)
    assert population.nearest.tolist() == distances.argmin(axis=1).tolist()


def test_vectors_come_back_from_their_images_which_galleries_take_as_they_are() -> None:
    vectors = draw_population(made_up_drawings(), 10, newcomers=5, queries=5).queries
    images = [image_of(vector) for vector in vectors]
    assert [encode_image(image) for image in images] == images
    embedder = VectorEmbedder(vectors.shape[1])
    np.testing.assert_array_equal(embedder.embed(images, version="1"), vectors)


def test_identities_are_as_far_from_each_other_as_drawings() -> None:
    drawings = made_up_drawings()
    population = draw_population(drawings, 3000, newcomers=10, queries=10)
    assert len(np.unique(population.enrolled, axis=0)) == 3000
    lengths = np.linalg.norm(drawings.vectors, axis=1)
    made = np.linalg.norm(np.concatenate([population.enrolled, population.newcomers]), axis=1)
    assert made.min() >= lengths.min() - 1e-4
    assert made.max() <= lengths.max() + 1e-4
    random = np.random.default_rng(1)

    def usual_distance(vectors: np.ndarray) -> float:
        one, other = vectors[random.integers(len(vectors), size=(2, 2000))]
        return float(np.median(np.abs(one - other).sum(axis=1)))

    ratio = usual_distance(population.enrolled) / usual_distance(drawings.vectors)
    assert 0.9 < ratio < 1.1


def test_a_drawing_has_eight_positions() -> None:
    image = encode_png(next(iter(draw_alphabet(1, characters=1, writers=1, seed=1)))[0])
    found = [np.asarray(Image.open(io.BytesIO(one)).convert("L")) for one in positions(image)]
    assert len(np.unique(found, axis=0)) == 8
    assert {one.sum() for one in found} == {found[0].sum()}
