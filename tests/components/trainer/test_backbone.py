"""Networks that are there already, under the head."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from components.trainer import backbone as backbones
from components.trainer import fit as fitting
from components.trainer.backbone import Backbone
from components.trainer.checkpoints import FitCheckpoint
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit
from components.trainer.model import EMBEDDER, build_model, changing, trained_before
from components.trainer.muon import BACKBONE_RATE, Muon
from components.trainer.pretrained import APPLICATIONS, exported_folder, fingerprint, model_file
from components.trainer.recipe import Recipe, TrainSettings
from data_ingest.errors import InputError
from tests.pair_records import tiny_data, tiny_recipe

SIDE = 16


def images(count: int = 4, channels: int = 1, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(1).random((count, side, side, channels)).astype("float32")


def tower(channels: int | None = 1, side: int | None = SIDE) -> keras.Model:
    """From images to 6 numbers: two resolutions, batch statistics and dropout."""
    keras.utils.set_random_seed(2)
    x = image = keras.Input((side, side, channels))
    for width in (4, 5):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(6)(x))


def saved(network: keras.Model, folder: Path, name: str = "tower.keras") -> str:
    network.save(folder / name)
    return str(folder / name)


def under_the_head(model: keras.Model) -> Backbone:
    return model.get_layer(EMBEDDER).get_layer("backbone")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications with random weights, which need no download."""
    for name in APPLICATIONS:
        whole = getattr(keras.applications, name)

        def untrained(whole: Callable[..., Any] = whole, **given: Any) -> keras.Model:
            assert given["weights"] == "imagenet"
            return whole(**given | {"weights": None})

        monkeypatch.setattr(keras.applications, name, untrained)


@pytest.mark.parametrize(("trainable", "count"), [("frozen", 0), ("last", 6), ("all", 10)])
def test_the_last_blocks_are_those_of_the_coarsest_resolution(
    trainable: str, count: int, tmp_path: Path
) -> None:
    model = build_model(
        tiny_recipe(backbone=saved(tower(), tmp_path), backbone_trainable=trainable)
    )
    layers = under_the_head(model).network.layers
    # A kernel and a bias each of convolutions and of the linear layer; scale and shift of others.
    assert [weight.path for weight in trained_before(model)] == [
        weight.path for layer in layers for weight in layer.trainable_weights
    ]
    assert len(trained_before(model)) == count
    first = next(layer for layer in layers if layer.weights)
    assert bool(first.trainable_weights) == (trainable == "all")


def test_a_backbone_runs_as_in_inference(tmp_path: Path) -> None:
    model = build_model(tiny_recipe(backbone=saved(tower(), tmp_path), backbone_trainable="all"))
    network = under_the_head(model)
    before = [np.asarray(weight) for weight in network.weights]
    outputs = [model.get_layer(EMBEDDER)(images(), training=mode).numpy() for mode in (True, False)]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_array_equal(network(images()), tower()(images(), training=False))
    for weight, was in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, was)


def test_the_embedding_starts_with_the_distances_of_the_features(tmp_path: Path) -> None:
    recipe = tiny_recipe(backbone=saved(tower(), tmp_path))
    features = tower()(images()).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    embeddings = build_model(recipe).get_layer(EMBEDDER)(images()).numpy()
    assert embeddings.shape == (4, recipe.embedding_size)
    np.testing.assert_allclose(embeddings @ embeddings.T, features @ features.T, atol=1e-5)


def test_training_changes_the_last_blocks_and_keeps_and_averages_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, Any]] = []

    class Watched(FitCheckpoint):
        def __init__(self, *args: Any, variables: dict[str, Any], **kwargs: Any) -> None:
            held.append(variables)
            super().__init__(*args, variables=variables, **kwargs)

    monkeypatch.setattr(fitting, "FitCheckpoint", Watched)
    named = saved(tower(), tmp_path)
    recipe = tiny_recipe(backbone=named, backbone_trainable="last", learning_rate=0.1, steps=2)
    before = [np.asarray(weight) for weight in under_the_head(build_model(recipe)).weights]
    data = tiny_data(tmp_path / "train"), tiny_data(tmp_path / "eval", first=7)
    how = {"accelerator": choose_accelerator(), "checkpoint_dir": tmp_path / "checkpoints"}
    done = fit(recipe, *data, **how)
    changed = {
        weight.path
        for weight, was in zip(under_the_head(done.model).weights, before, strict=True)
        if not np.array_equal(weight, was)
    }
    # Batch statistics are those that the network came with.
    assert changed == {weight.path for weight in trained_before(done.model)}
    # Those, the linear layer's and the head's.
    count = len(changed) + 4
    assert len(changing(done.model)) == count
    assert [len(held[0][name]) for name in ("student", "average", "best")] == [count] * 3
    again = fit(recipe, *data, **how)
    assert again.facts.resumed_from_step == 2
    for weight, was in zip(again.model.weights, done.model.weights, strict=True):
        np.testing.assert_array_equal(weight, was)


def test_weights_of_before_are_trained_slowly() -> None:
    fresh, before = (keras.Variable(np.eye(3, dtype=np.float32)) for _ in range(2))
    optimizer = Muon(0.1, decay=0.5, slow=[before])
    optimizer.build([fresh, before])
    gradient = np.arange(9.0, dtype="float32").reshape(3, 3)
    optimizer.apply([gradient, gradient], [fresh, before])
    moved = [np.asarray(variable) - np.eye(3) for variable in (fresh, before)]
    np.testing.assert_allclose(moved[1], BACKBONE_RATE * moved[0], atol=1e-6)


def test_a_model_of_ours_gives_its_embedder_of_one_view(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    ours = build_model(tiny_recipe(views=True))
    (extra := tmp_path / "1" / "assets.extra").mkdir(parents=True)
    file = saved(ours, extra, "model.keras")
    one_view = build_model(tiny_recipe())
    one_view.set_weights(ours.get_weights())
    expected = one_view.get_layer(EMBEDDER)(images()).numpy()
    embedder = saved(ours.get_layer(EMBEDDER), tmp_path, "embedder.keras")
    for named in (str(tmp_path / "1"), file, embedder):
        model = build_model(tiny_recipe(backbone=named))
        np.testing.assert_allclose(under_the_head(model)(images()), expected, atol=1e-5)
    assert exported_folder(str(tmp_path / "1")) == exported_folder(file) == tmp_path / "1"
    assert exported_folder(embedder) is None
    # And one that was put under the head of another goes on from there.
    over = saved(build_model(tiny_recipe(backbone=file)), tmp_path, "over.keras")
    last = build_model(tiny_recipe(backbone=over, backbone_trainable="last"))
    assert 0 < len(trained_before(last)) < len(under_the_head(last).weights)


def test_a_saved_model_scores_as_before_and_keeps_what_is_frozen(tmp_path: Path) -> None:
    named = saved(tower(), tmp_path)
    model = build_model(tiny_recipe(backbone=named, backbone_trainable="last", views=True))
    file = saved(model, tmp_path, "model.keras")
    Path(named).unlink()
    loaded = keras.saving.load_model(file)
    pair = {"image_a": images(), "image_b": images()[::-1]}
    np.testing.assert_array_equal(loaded(pair), model(pair))
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    shapes = [[weight.shape for weight in one.weights] for one in (loaded, model)]
    assert shapes[0] == shapes[1]


def test_bfloat16_changes_a_backbone_by_its_rounding_alone(tmp_path: Path) -> None:
    recipe = tiny_recipe(backbone=saved(tower(), tmp_path))
    exact, mixed = build_model(recipe), build_model(recipe, mixed_precision=True)
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    assert under_the_head(mixed).network.layers[1].compute_dtype == "bfloat16"
    embeddings = [model.get_layer(EMBEDDER)(images()).numpy() for model in (exact, mixed)]
    np.testing.assert_allclose(*embeddings, atol=0.03)
    assert not np.array_equal(*embeddings)


def test_grayscale_is_repeated_for_a_network_that_looks_at_colours(tmp_path: Path) -> None:
    colours = tower(channels=3)
    model = build_model(tiny_recipe(backbone=saved(colours, tmp_path)))
    expected = colours(np.repeat(images(), 3, axis=-1))
    np.testing.assert_allclose(under_the_head(model)(images()), expected, atol=1e-6)


def test_a_network_for_images_of_any_size_takes_those_of_the_recipe(tmp_path: Path) -> None:
    named = saved(tower(side=None), tmp_path)
    assert build_model(tiny_recipe(backbone=named)).get_layer(EMBEDDER)(images()).shape == (4, 8)
    with pytest.raises(InputError, match="do not say at which resolution"):
        build_model(tiny_recipe(backbone=named, backbone_trainable="last"))


def maps() -> keras.Model:
    image = keras.Input((SIDE, SIDE, 1))
    return keras.Model(image, keras.layers.Conv2D(2, 3)(image))


def two_images() -> keras.Model:
    pair = [keras.Input((SIDE, SIDE, 1)) for _ in range(2)]
    return keras.Model(pair, keras.layers.Flatten()(keras.layers.Add()(pair)))


def own_code() -> keras.Model:
    image = keras.Input((SIDE, SIDE, 1))
    return keras.Model(
        image, keras.layers.Flatten()(keras.layers.Lambda(lambda x: 2 * x, name="own")(image))
    )


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: tower(side=20), "takes images of 20, 20, 1 .* set train.image_size"),
        (lambda: tower(channels=2), "takes images of 16, 16, 2 .* and train.color_mode"),
        (maps, ".*, not one vector an image; end it in a layer such as GlobalAveragePooling2D"),
        (two_images, r".*; a backbone takes one batch of images, \(None, 16, 16, 1\)"),
        (own_code, "cannot be read: .*unsafe"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    network: Callable[[], keras.Model], said: str, tmp_path: Path
) -> None:
    named = saved(network(), tmp_path)
    with pytest.raises(InputError, match=f"(?s)train.backbone: {named} {said}"):
        build_model(tiny_recipe(backbone=named))


def test_files_that_are_none_are_refused_and_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "net.keras"
    with pytest.raises(InputError, match=f"train.backbone: {file} does not exist; name a .keras"):
        model_file(str(file))
    assert fingerprint(str(file)) == str(file)
    file.write_bytes(b"no network")
    with pytest.raises(InputError, match="cannot be read"):
        build_model(tiny_recipe(backbone=str(file)))
    first = fingerprint(str(file))
    file.write_bytes(b"another")
    assert fingerprint(str(file)) != first
    assert (fingerprint(None), fingerprint("ResNet50")) == ("", "ResNet50")
    with pytest.raises(InputError, match=r"assets.extra/model.keras does not exist"):
        model_file(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "VGG16"}, "there is no VGG16, but MobileNetV3Small, .*, ConvNeXtTiny, and p"),
        ({"backbone": "MobileNetV3Small", "image_size": 31}, "MobileNetV3Small needs 32 pixels"),
        ({"backbone": "a.keras", "preset": "koch2015"}, "must be null with preset koch2015"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainSettings(**options)


def small_photos(name: str, **options: Any) -> Recipe:
    return TrainSettings(backbone=name, image_size=32, **options).recipe("photo")


def test_an_application_brings_its_weights_and_its_scaling(offline: None) -> None:
    model = build_model(small_photos("MobileNetV3Small", backbone_trainable="last", aspect=1.5))
    embedder = model.get_layer(EMBEDDER)
    assert embedder.input.shape == (None, 32, 48, 3)
    trained, constant = trained_before(model), under_the_head(model).non_trainable_weights
    assert trained
    assert constant
    network = under_the_head(model).network
    photos = np.random.default_rng(1).random((2, 32, 48, 3)).astype("float32")
    seen = under_the_head(model)(photos)
    np.testing.assert_allclose(seen, network(255 * photos, training=False), atol=1e-5)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_pixels_are_scaled_as_the_application_wants_them(name: str, offline: None) -> None:
    photos = images(2, 3, 32)
    modules = {
        "MobileNetV3Small": "mobilenet_v3",
        "MobileNetV3Large": "mobilenet_v3",
        "EfficientNetV2B0": "efficientnet_v2",
        "DenseNet121": "densenet",
        "ResNet50": "resnet",
        "ResNet50V2": "resnet_v2",
        "ConvNeXtTiny": "convnext",
    }
    family = getattr(keras.applications, modules[name])
    expected = family.preprocess_input((255 * photos).copy())
    np.testing.assert_allclose(backbones._scaled(photos, name), expected, rtol=1e-5, atol=1e-4)
    # And what Keras leaves to the network is in it.
    network = getattr(keras.applications, name)(
        include_top=False, weights="imagenet", input_shape=(32, 32, 3), pooling="avg"
    )
    kinds = {type(layer) for layer in network.layers}
    within = bool(kinds & {keras.layers.Rescaling, keras.layers.Normalization})
    assert within == (APPLICATIONS[name].scaling == "included")
    assert network.output_shape[1] > 500


def test_without_a_network_one_sentence_says_where_the_weights_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        build_model(small_photos("MobileNetV3Small"))
    said = str(caught.value)
    file = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
    assert "the weights of MobileNetV3Small cannot be downloaded" in said
    assert f"/{file} as {tmp_path}/models/{file}, which KERAS_HOME moves" in said
    assert "save the network as a .keras file" in said
