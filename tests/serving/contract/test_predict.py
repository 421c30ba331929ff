"""What the signatures answer, whichever way they are asked."""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.contract.api import Api
from tests.serving.contract.images import drawings, encoded

A, B = drawings(6, writer=1), drawings(6, writer=2)
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


def pairs(api: Api, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return api.predict("serving_default", {"image_a": a, "image_b": b})


def embed(api: Api, images: np.ndarray) -> np.ndarray:
    embedding: np.ndarray = api.predict("embed", {"image": images})["embedding"]
    return embedding


def test_a_pair_gets_a_score_that_is_the_sigmoid_of_its_logit(api: Api) -> None:
    outputs = pairs(api, A, B)
    assert set(outputs) == {"score", "logit"}
    assert outputs["score"].shape == outputs["logit"].shape == (6,)
    assert ((outputs["score"] >= 0) & (outputs["score"] <= 1)).all()
    np.testing.assert_allclose(outputs["score"], 1 / (1 + np.exp(-outputs["logit"])), atol=1e-5)


def test_serving_default_is_the_signature_of_those_who_name_none(api: Api) -> None:
    unnamed = api.predict("", {"image_a": A, "image_b": B})
    np.testing.assert_allclose(unnamed["logit"], pairs(api, A, B)["logit"], **CLOSE)


def test_the_order_of_a_pair_does_not_matter(api: Api) -> None:
    np.testing.assert_allclose(pairs(api, A, B)["logit"], pairs(api, B, A)["logit"], **CLOSE)


def test_nothing_is_more_alike_than_an_image_and_itself(api: Api) -> None:
    same, other = pairs(api, A, A)["logit"], pairs(api, A, np.roll(A, 1))["logit"]
    assert (same >= other - 1e-3).all()
    np.testing.assert_allclose(same, same[0], **CLOSE)


def test_rows_do_not_depend_on_their_neighbours(api: Api) -> None:
    together = pairs(api, A, B)["logit"]
    alone = [pairs(api, A[at : at + 1], B[at : at + 1])["logit"][0] for at in range(6)]
    np.testing.assert_allclose(together, alone, **CLOSE)


def test_embeddings_are_finite_vectors_of_one_length(api: Api) -> None:
    vectors = embed(api, A)
    assert vectors.ndim == 2
    assert len(vectors) == 6
    assert np.isfinite(vectors).all()
    assert embed(api, A[:1]).shape == (1, vectors.shape[1])


def test_matching_embeddings_is_scoring_their_images(api: Api) -> None:
    a, b = embed(api, A).astype(np.float32), embed(api, B).astype(np.float32)
    matched = api.predict("match", {"embedding_a": a, "embedding_b": b})
    scored = pairs(api, A, B)
    np.testing.assert_allclose(matched["logit"], scored["logit"], **CLOSE)
    np.testing.assert_allclose(matched["score"], scored["score"], atol=1e-4)


def test_the_logit_falls_by_the_l1_distance_of_the_embeddings(api: Api) -> None:
    a, b = embed(api, A).astype(np.float32), embed(api, B).astype(np.float32)
    b0 = api.predict("match", {"embedding_a": a, "embedding_b": a})["logit"]
    logit = pairs(api, A, B)["logit"]
    np.testing.assert_allclose(logit, b0 - np.abs(a - b).sum(axis=1), **CLOSE)


def test_serialized_examples_are_scored_like_their_images(api: Api) -> None:
    examples = np.empty(len(A), object)
    for at, (a, b) in enumerate(zip(A, B, strict=True)):
        example = tf.train.Example()
        example.features.feature["image_a"].bytes_list.value.append(a)
        example.features.feature["image_b"].bytes_list.value.append(b)
        examples[at] = example.SerializeToString()
    outputs = api.predict("examples", {"examples": examples})
    np.testing.assert_allclose(outputs["logit"], pairs(api, A, B)["logit"], **CLOSE)


@pytest.mark.parametrize("rows", [33, 100])
def test_large_batches_of_images_are_answered_whole_and_in_order(api: Api, rows: int) -> None:
    order = np.arange(rows) % len(A)
    np.testing.assert_allclose(embed(api, A[order]), embed(api, A)[order], **CLOSE)


def test_a_thousand_embeddings_are_matched_in_order(api: Api) -> None:
    size = embed(api, A[:1]).shape[1]
    a = np.random.default_rng(1).uniform(0, 1, (1000, size)).astype(np.float32)
    zero = np.zeros_like(a)
    outputs = api.predict("match", {"embedding_a": a, "embedding_b": zero})
    b0 = api.predict("match", {"embedding_a": zero[:1], "embedding_b": zero[:1]})["logit"]
    np.testing.assert_allclose(outputs["logit"], b0 - a.sum(axis=1), **CLOSE)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_a_drawing_may_come_in_any_kind_of_png(api: Api, mode: str) -> None:
    image = np.array([encoded(mode, "png")], object)
    gray = np.array([encoded("L", "png")], object)
    np.testing.assert_allclose(embed(api, image), embed(api, gray), atol=0.1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_drawing_may_come_as_a_jpeg(api: Api, mode: str) -> None:
    assert np.isfinite(embed(api, np.array([encoded(mode, "jpeg")], object))).all()


@pytest.mark.parametrize("size", [(1, 50), (300, 7), (4096, 2)])
def test_a_drawing_may_have_any_size(api: Api, size: tuple[int, int]) -> None:
    assert np.isfinite(embed(api, np.array([encoded("L", "png", size=size)], object))).all()


def test_zero_bytes_are_carried(api: Api) -> None:
    padded = np.array([A[0] + b"\0\0\0"], object)
    np.testing.assert_allclose(embed(api, padded), embed(api, A[:1]), **CLOSE)


def test_a_request_may_be_larger_than_grpcs_usual_four_megabytes(api: Api) -> None:
    padded = np.array([A[0] + bytes(6_000_000)], object)
    np.testing.assert_allclose(embed(api, padded), embed(api, A[:1]), **CLOSE)


def test_nan_is_answered_with_nan(api: Api) -> None:
    size = embed(api, A[:1]).shape[1]
    nan, zero = np.full((1, size), np.nan, np.float32), np.zeros((1, size), np.float32)
    outputs = api.predict("match", {"embedding_a": nan, "embedding_b": zero})
    assert np.isnan(outputs["logit"]).all()
    assert np.isnan(outputs["score"]).all()
