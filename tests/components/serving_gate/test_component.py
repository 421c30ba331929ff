"""What ServingGate lets through and what it refuses."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tfx import types
from tfx.components.util import model_utils
from tfx.types import artifact_utils, standard_artifacts

from components.evaluator.settings import GateSettings
from components.serving_gate.checks import GateFailure, compare_scores, hostile_images, huge_png
from components.serving_gate.component import (
    BLESSED,
    NOT_BLESSED,
    REPORT,
    ServingGate_Executor,
    gate,
)
from components.trainer.model import WeightedL1
from data_ingest.errors import InputError
from data_ingest.records.features import Pair
from serving.saved_model.contract import Preprocessing
from serving.saved_model.decoding import decode_gray
from serving.saved_model.export import export_model
from serving.saved_model.loader import LoadedModel
from serving.saved_model.preprocessing import decode_images, framed
from tests.pair_records import write_records

SIZE = 8
SETTINGS = GateSettings(compared_pairs=12, latency_requests=5)


def drawing(seed: int) -> bytes:
    pixels = np.full((20, 20, 1), 255, np.uint8)
    row, column = np.random.default_rng(seed).integers(2, 12, 2)
    pixels[row : row + 5, column : column + 2] = 0
    png: bytes = tf.io.encode_png(pixels).numpy()
    return png


def make_pair(number: int) -> Pair:
    return Pair(
        image_a=drawing(number),
        image_b=drawing(number + 1),
        label=number % 2,
        class_a="a",
        class_b="b",
        group_a="g",
        group_b="g",
        writer_a=0,
        writer_b=0,
        trial="",
        protocol="verification",
        way=0,
    )


PAIRS = [make_pair(number) for number in range(12)]


def small_model() -> keras.Model:
    """The shape of the real one (two images, embedder, head), with 8x8 images and D = 4."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Dense(4)(keras.layers.Flatten()(image))
    embedder = keras.Model(image, keras.layers.UnitNormalization()(x), name="embedder")
    inputs = {name: keras.Input((SIZE, SIZE, 1), name=name) for name in ("image_a", "image_b")}
    head = WeightedL1(name="head")
    logit = head((embedder(inputs["image_a"]), embedder(inputs["image_b"])))
    return keras.Model(inputs, logit)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proper export."""
    directory = tmp_path_factory.mktemp("good") / "Format-Serving"
    export_model(
        small_model(),
        directory,
        preprocessing=Preprocessing(SIZE),
        card={},
        warmup_images=[drawing(0), drawing(1)],
    )
    return directory


Reexport = Callable[..., Path]


@pytest.fixture
def reexport(good: Path, tmp_path: Path) -> Reexport:
    """Exports the same model again with something changed, and the extras of the good one."""

    def build(*, without: str = "", **changes: Any) -> Path:
        directory = tmp_path / "export"
        model = small_model()
        archive = keras.export.ExportArchive()
        archive.track(model)
        for name, (function, specs) in signatures(model, **changes).items():
            if name != without:
                archive.add_endpoint(name, function, input_signature=specs)
        archive.write_out(str(directory), verbose=False)
        shutil.copytree(good / "assets.extra", directory / "assets.extra")
        return directory

    return build


def signatures(
    model: keras.Model,
    *,
    decode: Callable[..., tf.Tensor] = decode_images,
    shift: float = 0.0,
) -> dict[str, Any]:
    """The four signatures, written the short way."""
    embedder, head = model.get_layer("embedder"), model.get_layer("head")

    def embed(image: tf.Tensor) -> dict[str, tf.Tensor]:
        drawings = decode(image, Preprocessing(SIZE))
        return {"embedding": tf.convert_to_tensor(head.w) * embedder(drawings)}

    def match(embedding_a: tf.Tensor, embedding_b: tf.Tensor) -> dict[str, tf.Tensor]:
        logit = head.b0 - tf.reduce_sum(tf.abs(embedding_a - embedding_b), -1) + shift
        return {"logit": logit, "score": tf.sigmoid(logit)}

    def pair(image_a: tf.Tensor, image_b: tf.Tensor) -> dict[str, tf.Tensor]:
        return match(embed(image_a)["embedding"], embed(image_b)["embedding"])

    def examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.io.FixedLenFeature([], tf.string)
        return pair(**tf.io.parse_example(examples, {"image_a": image, "image_b": image}))

    def strings(*names: str) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([None], tf.string, name=name) for name in names]

    vectors = [
        tf.TensorSpec([None, 4], tf.float32, name=name) for name in ("embedding_a", "embedding_b")
    ]
    return {
        "serving_default": (pair, strings("image_a", "image_b")),
        "embed": (embed, strings("image")),
        "match": (match, vectors),
        "examples": (examples, strings("examples")),
    }


def lenient_decode(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes whatever it is given, and what it cannot decode as an empty drawing."""

    def decode(image: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            (tf.strings.substr(image, 1, 3) == "PNG") & (tf.strings.length(image) > 60),
            lambda: decode_images(image[tf.newaxis], preprocessing)[0],
            lambda: tf.zeros([SIZE, SIZE, 1]),
        )

    return tf.map_fn(decode, images, fn_output_signature=tf.float32)


def unlimited_decode(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Does not look at the header before it decodes."""
    return tf.map_fn(
        lambda image: tf.image.resize(
            1 - tf.cast(tf.io.decode_png(image, 1), tf.float32) / 255, [SIZE, SIZE], "area"
        ),
        images,
        fn_output_signature=tf.TensorSpec([SIZE, SIZE, 1], tf.float32),
    )


def credulous_decode(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Takes blank pages for drawings."""
    return framed(images, lambda image: 1.0 - decode_gray(image), preprocessing)


def test_a_good_export_passes_and_is_measured(good: Path) -> None:
    report = gate(good, PAIRS, SETTINGS)
    assert report["reasons"] == []
    assert report["signatures"] == ["embed", "examples", "match", "serving_default"]
    assert report["warmup_requests"] == 6
    assert report["compared_pairs"] == 12
    assert max(report["score_differences"].values()) <= 1e-4
    assert set(report["hostile_images"]) == set(hostile_images(PAIRS[0].image_a))
    latency = report["latency_ms"]
    assert 0 < latency["embed_1"]["p50"] <= latency["embed_1"]["p99"]
    assert latency["embed_32"]["p50"] > 0


def test_a_keras_model_saved_by_tensorflow_alone_is_refused(good: Path, tmp_path: Path) -> None:
    model = small_model()
    tf.saved_model.save(
        model,
        str(tmp_path / "export"),
        signatures={
            name: tf.function(function, input_signature=specs)
            for name, (function, specs) in signatures(model).items()
        },
    )
    shutil.copytree(good / "assets.extra", tmp_path / "export" / "assets.extra")
    assert "embed" in tf.saved_model.load(str(tmp_path / "export")).signatures
    reasons = gate(tmp_path / "export", PAIRS, SETTINGS)["reasons"]
    assert any("Could not find variable" in reason for reason in reasons)


def test_an_export_whose_scores_differ_is_refused(reexport: Reexport) -> None:
    reasons = gate(reexport(shift=0.01), PAIRS, SETTINGS)["reasons"]
    (reason,) = reasons
    assert "differ from the trained model's" in reason


def test_the_same_model_exported_again_passes(reexport: Reexport) -> None:
    """So that the refusals here are due to what each test changes."""
    assert gate(reexport(), PAIRS, SETTINGS)["reasons"] == []


@pytest.mark.parametrize("name", ["embed", "examples"])
def test_an_export_without_a_signature_is_refused(reexport: Reexport, name: str) -> None:
    reasons = gate(reexport(without=name), PAIRS, SETTINGS)["reasons"]
    assert any(f"no signature '{name}'" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("decode", "accepted"),
    [
        (lenient_decode, "a text file"),
        (unlimited_decode, "a 11000x11000 PNG"),
        (credulous_decode, "a white page"),
    ],
)
def test_an_export_that_accepts_bad_images_is_refused(
    reexport: Reexport, decode: Callable[..., tf.Tensor], accepted: str
) -> None:
    (reason,) = gate(reexport(decode=decode), PAIRS, SETTINGS)["reasons"]
    assert reason == f"serving_default accepts {accepted}"


def test_scores_that_are_not_numbers_are_refused(good: Path) -> None:
    with LoadedModel(good) as model, pytest.raises(GateFailure, match="differ"):
        compare_scores(model, PAIRS, lambda a, b: np.full(len(a), np.nan, np.float32), 1e-4)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda extra: (extra / "tf_serving_warmup_requests").unlink(), "no warm-up requests"),
        (lambda extra: (extra / "model_card.json").unlink(), "assets.extra cannot be used"),
        (lambda extra: (extra / "model.keras").write_bytes(b"broken"), "cannot be used"),
        (lambda extra: (extra.parent / "saved_model.pb").unlink(), "loader refuses it"),
    ],
    ids=["warm-up", "card", "model.keras", "saved_model.pb"],
)
def test_an_incomplete_export_is_refused(
    good: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    shutil.copytree(good, tmp_path / "export")
    damage(tmp_path / "export" / "assets.extra")
    reasons = gate(tmp_path / "export", PAIRS, SETTINGS)["reasons"]
    assert any(expected in reason for reason in reasons)


def test_a_warmup_request_that_fails_is_refused(good: Path, tmp_path: Path) -> None:
    directory = tmp_path / "export"
    shutil.copytree(good, directory)
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "embed"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto([b"not an image"]))
    log = prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
    warmup = directory / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(warmup)) as writer:
        writer.write(log.SerializeToString())
    (reason,) = gate(directory, PAIRS, SETTINGS)["reasons"]
    assert reason.startswith("warm-up request 0 fails")


def test_a_model_too_slow_is_refused(good: Path) -> None:
    (reason,) = gate(good, PAIRS, SETTINGS.model_copy(update={"max_p99_ms": 1e-6}))["reasons"]
    assert "99th percentile" in reason


def test_nothing_to_check_with_is_a_refusal(good: Path) -> None:
    assert gate(good, [], SETTINGS)["reasons"]


def test_the_huge_image_is_small_to_send_and_a_valid_png() -> None:
    assert len(huge_png(11_000)) < 50_000
    assert tf.io.decode_png(huge_png(50)).shape == (50, 50, 1)


def examples_in(folder: Path, pairs: Sequence[Pair]) -> types.Artifact:
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "examples")
    examples.split_names = artifact_utils.encode_split_names(["train", "one_shot"])
    write_records(folder / "examples" / "Split-one_shot", list(pairs))
    return examples


def test_a_model_is_not_blamed_for_an_image_of_an_earlier_release(tmp_path: Path) -> None:
    model = standard_artifacts.Model()
    model.uri = str(tmp_path / "nowhere")
    examples = examples_in(tmp_path, [*PAIRS[:2], PAIRS[2]._replace(image_a=b"GIF89a")])
    blessing = standard_artifacts.InfraBlessing()
    settings = {"settings": SETTINGS.model_dump_json(), "source_hash": ""}
    with pytest.raises(InputError, match=f"record 2.*, class {PAIRS[2].class_a}, cannot be used"):
        ServingGate_Executor().Do(
            {"model": [model], "examples": [examples]}, {"blessing": [blessing]}, settings
        )


@pytest.mark.parametrize("blessed", [True, False])
def test_the_blessing_is_what_pusher_reads_with_a_report_beside_it(
    good: Path, tmp_path: Path, blessed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = standard_artifacts.Model()
    model.uri = str(tmp_path / "model")
    shutil.copytree(good, tmp_path / "model" / "Format-Serving")
    if not blessed:
        (tmp_path / "model" / "Format-Serving" / "saved_model.pb").unlink()
    examples = examples_in(tmp_path, PAIRS)
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(tmp_path / "blessing")
    with caplog.at_level(logging.INFO):
        ServingGate_Executor().Do(
            {"model": [model], "examples": [examples]},
            {"blessing": [blessing]},
            {"settings": SETTINGS.model_dump_json(), "source_hash": ""},
        )
    assert model_utils.is_infra_validated(blessing) == blessed
    report = json.loads((tmp_path / "blessing" / REPORT).read_text())
    assert report["blessed"] == blessed
    assert bool(report["reasons"]) != blessed
    assert (tmp_path / "blessing" / BLESSED).exists() == blessed
    assert (tmp_path / "blessing" / NOT_BLESSED).exists() != blessed
    assert ("Not servable" in caplog.text) != blessed
