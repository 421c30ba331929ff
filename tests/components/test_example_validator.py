"""The schema lets good pairs through and stops broken ones, readably."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import json_utils

from components.example_validator import (
    ANOMALIES_FILE,
    Executor,
    anomalies_message,
    curated_schema,
    schema_text,
    stats_options,
)
from data_ingest.errors import InputError
from data_ingest.records.features import Pair, serialize_pair

PNG = tf.io.encode_png(np.zeros((4, 4, 1), np.uint8)).numpy()


def good_pair(number: int = 0) -> Pair:
    return Pair(
        image_a=PNG,
        image_b=PNG,
        label=number % 2,
        class_a="Greek/character01",
        class_b="Greek/character02",
        group_a="",
        group_b="Greek",
        writer_a=0,
        writer_b=20,
        trial="",
        protocol="verification",
        way=0,
    )


def without(record: bytes, name: str) -> bytes:
    example = tf.train.Example.FromString(record)
    del example.features.feature[name]
    result: bytes = example.SerializeToString()
    return result


GOOD = [serialize_pair(good_pair(n)) for n in range(200)]

Validate = Callable[[Iterable[bytes]], str | None]


@pytest.fixture
def validate(tmp_path: Path) -> Validate:
    """Statistics of records, then our ExampleValidator's executor on them."""

    def run(records: Iterable[bytes]) -> str | None:
        data = tmp_path / "data.gz"
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(data), options) as writer:
            for record in records:
                writer.write(record)
        options = stats_options()
        options.schema = curated_schema()
        statistics = tfdv.generate_statistics_from_tfrecord(str(data), stats_options=options)
        split = tmp_path / "statistics" / "Split-train"
        split.mkdir(parents=True)
        (split / "FeatureStats.pb").write_bytes(statistics.SerializeToString())
        (tmp_path / "schema").mkdir()
        (tmp_path / "schema" / "schema.pbtxt").write_text(schema_text())
        artifacts = {
            "statistics": standard_artifacts.ExampleStatistics(),
            "schema": standard_artifacts.Schema(),
            "anomalies": standard_artifacts.ExampleAnomalies(),
        }
        for name, artifact in artifacts.items():
            artifact.uri = str(tmp_path / name)
        artifacts["statistics"].split_names = artifact_utils.encode_split_names(["train"])
        try:
            Executor().Do(
                {name: [artifacts[name]] for name in ("statistics", "schema")},
                {"anomalies": [artifacts["anomalies"]]},
                {"exclude_splits": json_utils.dumps([])},
            )
        except InputError as error:
            return str(error)
        assert anomalies_message(str(tmp_path / "anomalies")) is None
        assert (tmp_path / "anomalies" / "Split-train" / ANOMALIES_FILE).exists()
        assert PNG[:8] not in statistics.SerializeToString()
        return None

    return run


def test_good_pairs_pass_zeros_and_empty_strings_included(validate: Validate) -> None:
    assert validate(GOOD) is None


def test_names_of_several_words_and_dates_are_names(validate: Validate) -> None:
    names = {"class_a": "red fox cub", "class_b": "2019-03-01", "group_a": "Лиса и журавль"}
    assert validate(serialize_pair(good_pair(n)._replace(**names)) for n in range(200)) is None


def test_broken_pairs_stop_the_run_and_every_fault_is_named(validate: Validate) -> None:
    surprising = tf.train.Example.FromString(GOOD[0])
    surprising.features.feature["surprise"].int64_list.value.append(1)
    broken = {
        "label": serialize_pair(good_pair()._replace(label=7)),
        "way": serialize_pair(good_pair()._replace(way=-1)),
        "protocol": serialize_pair(good_pair()._replace(protocol="odd")),
        "image_b": serialize_pair(good_pair()._replace(image_b=b"no image")),
        "image_a": without(GOOD[0], "image_a"),
        "trial": without(GOOD[0], "trial"),
        "surprise": surprising.SerializeToString(),
    }
    message = validate([*GOOD, *broken.values()])
    assert message is not None
    _, *lines = message.splitlines()
    assert {line.split(": ")[1] for line in lines} == set(broken)
    assert all(line.startswith("  train: ") for line in lines)


def test_an_empty_split_stops_the_run(validate: Validate) -> None:
    assert validate([]) == "The split train has no image pairs: give more images"
