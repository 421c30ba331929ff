"""The network and its head."""

from pathlib import Path

import keras
import numpy as np
import pytest

from components.trainer.model import EMBEDDER, HEAD, WeightedL1, build_model, embedding_function
from components.trainer.recipe import TrainSettings
from tests.pair_records import tiny_recipe


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    built = build_model(tiny_recipe())
    rng = np.random.default_rng(1)
    built.get_layer(HEAD).w.assign(rng.uniform(0, 5, 8).astype("float32"))
    return built


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (6, 16, 16), np.uint8)


def ink(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype("float32") / 255


def test_embeddings_are_unit_vectors(model: keras.Model, images: np.ndarray) -> None:
    embeddings = model.get_layer(EMBEDDER)(ink(images)).numpy()
    assert embeddings.shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_the_logit_is_b0_minus_the_l1_distance_of_the_weighted_embeddings(
    model: keras.Model, images: np.ndarray
) -> None:
    logits = model({"image_a": ink(images[:3]), "image_b": ink(images[3:])}).numpy()
    vectors = embedding_function(model)(images)
    b0 = float(model.get_layer(HEAD).b0)
    expected = b0 - np.abs(vectors[:3] - vectors[3:]).sum(axis=1)
    assert logits.shape == (3,)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_the_order_of_the_images_does_not_matter_and_an_image_is_most_like_itself(
    model: keras.Model, images: np.ndarray
) -> None:
    a, b = ink(images[:3]), ink(images[3:])
    forth = model({"image_a": a, "image_b": b}).numpy()
    back = model({"image_a": b, "image_b": a}).numpy()
    alone = model({"image_a": a, "image_b": a}).numpy()
    np.testing.assert_array_equal(forth, back)
    np.testing.assert_array_equal(alone, float(model.get_layer(HEAD).b0))
    assert (forth < alone).all()


def test_distances_of_a_batch_agree_with_the_head(model: keras.Model, images: np.ndarray) -> None:
    head = model.get_layer(HEAD)
    embeddings = model.get_layer(EMBEDDER)(ink(images))
    distances = head.distances(embeddings).numpy()
    for i in range(6):
        pairs = embeddings.numpy()[[i] * 6], embeddings.numpy()
        np.testing.assert_allclose(float(head.b0) - distances[i], head(pairs), atol=1e-5)


def test_the_head_starts_at_ten_over_the_root_of_the_embedding_size() -> None:
    head = WeightedL1()
    head.build([(None, 16), (None, 16)])
    np.testing.assert_allclose(head.w, 10 / 4)


def test_a_saved_model_scores_as_before(
    model: keras.Model, images: np.ndarray, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs = {"image_a": ink(images[:3]), "image_b": ink(images[3:])}
    np.testing.assert_array_equal(loaded(inputs).numpy(), model(inputs).numpy())


def test_bfloat16_leaves_weights_embeddings_and_logits_in_float32() -> None:
    mixed = build_model(tiny_recipe(), mixed_precision=True)
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    assert mixed.output.dtype == "float32"
    assert mixed.get_layer(EMBEDDER).output.dtype == "float32"
    assert mixed.get_layer(EMBEDDER).layers[1].compute_dtype == "bfloat16"


def test_the_network_of_koch_2015_has_the_published_layers_and_size() -> None:
    # Figure 4 of the paper: 64@10x10, 128@7x7, 128@4x4, 256@4x4, 4096, and 4096 + 1 in the head.
    model = build_model(TrainSettings(preset="koch2015").recipe())
    layers = [
        layer
        for layer in model.get_layer(EMBEDDER).layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D, keras.layers.Dense))
    ]
    assert model.get_layer(EMBEDDER).input.shape == (None, 105, 105, 1)
    assert [layer.output.shape[1:] for layer in layers] == [
        (96, 96, 64),
        (48, 48, 64),
        (42, 42, 128),
        (21, 21, 128),
        (18, 18, 128),
        (9, 9, 128),
        (6, 6, 256),
        (4096,),
    ]
    kernels = [layer.kernel.shape for layer in layers if layer.weights]
    assert kernels == [
        (10, 10, 1, 64),
        (7, 7, 64, 128),
        (4, 4, 128, 128),
        (4, 4, 128, 256),
        (9216, 4096),
    ]
    assert [layer.activation.__name__ for layer in layers if layer.weights] == [
        *("relu", "relu", "relu", "relu"),
        "sigmoid",
    ]
    # "About 38.9 million" by the shapes above: with its biases, exactly this many.
    assert model.count_params() == 38_951_745


def test_the_network_of_koch_2015_starts_as_published() -> None:
    # Section 3.2: kernels of deviation 0.01, those of the dense layer 0.2; biases around 0.5.
    model = build_model(TrainSettings(preset="koch2015").recipe())
    layers = [layer for layer in model.get_layer(EMBEDDER).layers if layer.weights]
    for layer in layers:
        kernel, bias = (np.asarray(weight) for weight in layer.weights)
        deviation = 0.2 if isinstance(layer, keras.layers.Dense) else 0.01
        assert kernel.std() == pytest.approx(deviation, rel=0.05)
        assert abs(kernel.mean()) < 0.1 * deviation
        assert bias.mean() == pytest.approx(0.5, abs=0.005)
        assert bias.std() == pytest.approx(0.01, rel=0.3)
