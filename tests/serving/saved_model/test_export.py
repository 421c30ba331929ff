"""The exported SavedModel, loaded as TF Serving loads it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from components.trainer.model import HEAD, build_model
from data_ingest.records.features import serialize_pair
from serving.saved_model import export
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from serving.saved_model.preprocessing import decode_images
from serving.saved_model.versions import outdated
from tests.image_variants import variants
from tests.pair_records import make_pairs, png, tiny_recipe

PAIRS = make_pairs(groups=2, classes=4, pairs=12)
IMAGES_A = np.array([pair.image_a for pair in PAIRS], object)
IMAGES_B = np.array([pair.image_b for pair in PAIRS], object)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    built = build_model(tiny_recipe())
    built.get_layer(HEAD).w.assign(np.random.default_rng(1).uniform(0, 9, 8).astype("float32"))
    return built


def write(model: keras.Model, directory: Path) -> None:
    export_model(
        model,
        directory,
        preprocessing=Preprocessing(16),
        card={"dataset": "synthetic", "metrics": {"eval": 0.5}},
        warmup_images=[PAIRS[0].image_a, PAIRS[0].image_b],
    )


@pytest.fixture(scope="module")
def directory(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "1"
    umask = os.umask(0o027)
    write(model, path)
    os.umask(umask)
    return path


class Tf1Model:
    """A SavedModel in a Session, as TF Serving holds it."""

    def __init__(self, directory: Path) -> None:
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(directory))
        self.signatures = meta.signature_def

    def __call__(self, signature: str, **inputs: object) -> dict[str, np.ndarray]:
        definition = self.signatures[signature]
        outputs = {name: info.name for name, info in definition.outputs.items()}
        feed = {definition.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run(outputs, feed)

    def close(self) -> None:
        self._session.close()


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Tf1Model]:
    loaded = Tf1Model(directory)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def expected(model: keras.Model) -> np.ndarray:
    a, b = (
        decode_images(tf.constant(list(images)), Preprocessing(16))
        for images in (IMAGES_A, IMAGES_B)
    )
    return tf.sigmoid(model({"image_a": a, "image_b": b})).numpy()


def test_who_may_read_an_export_is_what_the_umask_says(directory: Path) -> None:
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in directory.rglob("*")}
    assert modes == {(True, 0o750), (False, 0o640)}
    assert directory.stat().st_mode & 0o777 == 0o750


def test_the_four_signatures_have_the_promised_names_and_types(served: Tf1Model) -> None:
    promised = {
        "serving_default": ({"image_a", "image_b"}, {"score", "logit"}),
        "embed": ({"image"}, {"embedding"}),
        "match": ({"embedding_a", "embedding_b"}, {"score", "logit"}),
        "examples": ({"examples"}, {"score", "logit"}),
    }
    assert promised.keys() <= served.signatures.keys()
    for name, (inputs, outputs) in promised.items():
        definition = served.signatures[name]
        assert set(definition.inputs) == inputs
        assert set(definition.outputs) == outputs
        for info in [*definition.inputs.values(), *definition.outputs.values()]:
            assert info.tensor_shape.dim[0].size == -1


def test_the_tf1_loader_scores_like_the_keras_model(served: Tf1Model, expected: np.ndarray) -> None:
    outputs = served("serving_default", image_a=IMAGES_A, image_b=IMAGES_B)
    np.testing.assert_allclose(outputs["score"], expected, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs["logit"])), outputs["score"], atol=1e-5)


def test_saved_model_load_scores_like_the_keras_model(
    directory: Path, expected: np.ndarray
) -> None:
    loaded = tf.saved_model.load(directory)
    outputs = loaded.signatures["serving_default"](
        image_a=tf.constant(list(IMAGES_A)), image_b=tf.constant(list(IMAGES_B))
    )
    np.testing.assert_allclose(outputs["score"], expected, atol=1e-4)


def test_examples_and_embed_with_match_score_like_pairs_of_images(
    served: Tf1Model, expected: np.ndarray
) -> None:
    examples = served("examples", examples=[serialize_pair(pair) for pair in PAIRS])
    np.testing.assert_allclose(examples["score"], expected, atol=1e-4)
    a = served("embed", image=IMAGES_A)["embedding"]
    b = served("embed", image=IMAGES_B)["embedding"]
    match = served("match", embedding_a=a, embedding_b=b)
    np.testing.assert_allclose(match["score"], expected, atol=1e-4)


def test_embeddings_live_in_an_l1_space(model: keras.Model, served: Tf1Model) -> None:
    a = served("embed", image=IMAGES_A)["embedding"]
    b = served("embed", image=IMAGES_B)["embedding"]
    logits = served("serving_default", image_a=IMAGES_A, image_b=IMAGES_B)["logit"]
    b0 = float(model.get_layer(HEAD).b0)
    np.testing.assert_allclose(logits, b0 - np.abs(a - b).sum(axis=1), atol=1e-4)


@pytest.mark.parametrize("size", [1, 5])
def test_every_output_has_as_many_rows_as_the_inputs(served: Tf1Model, size: int) -> None:
    pair = {"image_a": IMAGES_A[:size], "image_b": IMAGES_B[:size]}
    assert served("serving_default", **pair)["score"].shape == (size,)
    assert served("embed", image=IMAGES_A[:size])["embedding"].shape == (size, 8)
    vectors = np.zeros((size, 8), np.float32)
    assert served("match", embedding_a=vectors, embedding_b=vectors)["logit"].shape == (size,)
    records = [serialize_pair(pair) for pair in PAIRS[:size]]
    assert served("examples", examples=np.array(records, object))["score"].shape == (size,)


def test_each_distinct_image_of_a_batch_is_embedded_once(model: keras.Model) -> None:
    endpoints = export._Endpoints(model, Preprocessing(16))
    embedded = []
    embed = endpoints.embed

    def counting(image: tf.Tensor) -> dict[str, tf.Tensor]:
        embedded.append(len(image))
        return embed(image)

    endpoints.embed = counting
    query, support = IMAGES_A[:1], IMAGES_B[:4]
    scores = endpoints.serving_default(
        tf.constant([query[0]] * 8), tf.constant([*support, *support])
    )["score"].numpy()
    assert embedded == [len({*query, *support})]
    np.testing.assert_array_equal(scores[:4], scores[4:])


def test_warm_up_requests_cover_three_signatures_and_run(directory: Path, served: Tf1Model) -> None:
    path = directory / "assets.extra" / "tf_serving_warmup_requests"
    seen = set()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        outputs = served(request.model_spec.signature_name, **inputs)
        assert all(np.isfinite(value).all() for value in outputs.values())
        seen.add(request.model_spec.signature_name)
    assert seen == {"serving_default", "embed", "match"}


def test_the_card_holds_the_callers_facts_and_the_models_own(directory: Path) -> None:
    card = json.loads((directory / "assets.extra" / "model_card.json").read_text())
    assert card["dataset"] == "synthetic"
    assert card["metrics"] == {"eval": 0.5}
    assert outdated(directory) == ""
    assert (card["embedding_size"], card["image_size"]) == (8, 16)
    assert card["versions"]["tensorflow"] == tf.__version__
    assert set(card["signatures"]) == {"serving_default", "embed", "match", "examples"}


def test_the_keras_model_beside_it_is_the_same_model(directory: Path, model: keras.Model) -> None:
    stored = keras.models.load_model(directory / "assets.extra" / "model.keras")
    for one, other in zip(stored.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_hostile_image_fails_the_request_cleanly(served: Tf1Model) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither PNG nor JPEG"):
        served("embed", image=[IMAGES_A[0], b"not an image"])
    assert served("embed", image=IMAGES_A[:1])["embedding"].shape == (1, 8)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_an_image_is_the_same_to_it_however_it_is_stored(served: Tf1Model, kind: str) -> None:
    chosen = [
        variant
        for variant in variants()
        if variant.looks is not None and variant.kind == kind
        if not (variant.blank or variant.broken or "CMYK" in variant.name or "YCCK" in variant.name)
    ]
    plain = [png(np.rint(variant.looks).astype(np.uint8)) for variant in chosen]
    found = served("embed", image=np.array([variant.data for variant in chosen], object))
    expected = served("embed", image=np.array(plain, object))
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=0.1)


def test_every_signature_with_images_refuses_blank_pages(served: Tf1Model) -> None:
    blank = png(np.full((20, 20), 255, np.uint8))
    pair = PAIRS[0]._replace(image_b=blank)
    for signature, inputs in {
        "embed": {"image": [IMAGES_A[0], blank]},
        "serving_default": {"image_a": IMAGES_A[:1], "image_b": [blank]},
        "examples": {"examples": [serialize_pair(pair)]},
    }.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match="nothing is drawn on it"):
            served(signature, **inputs)


def test_an_interrupted_export_leaves_the_earlier_model_and_nothing_else(
    model: keras.Model, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(directory, tmp_path / "1")
    before = (tmp_path / "1" / "saved_model.pb").read_bytes()
    monkeypatch.setattr(export, "_write_warmup", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(model, tmp_path / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == before


def test_a_negative_head_weight_is_refused(tmp_path: Path) -> None:
    broken = build_model(tiny_recipe())
    broken.get_layer(HEAD).w.assign(np.full(8, -0.1, np.float32))
    with pytest.raises(ValueError, match="negative"):
        write(broken, tmp_path / "1")
    assert list(tmp_path.iterdir()) == []
