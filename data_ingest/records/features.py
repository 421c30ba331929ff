"""The record that passes from ingestion to training and evaluation: one Example a pair.

This module is the only place where feature names and types are written down; the values of
`protocol` are in `data_ingest.sampling.protocols`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import tensorflow as tf

IMAGE_A: Final = "image_a"
IMAGE_B: Final = "image_b"
LABEL: Final = "label"
CLASS_A: Final = "class_a"
CLASS_B: Final = "class_b"
GROUP_A: Final = "group_a"
GROUP_B: Final = "group_b"
WRITER_A: Final = "writer_a"
WRITER_B: Final = "writer_b"
TRIAL: Final = "trial"
PROTOCOL: Final = "protocol"
WAY: Final = "way"

BYTES_FEATURES: Final = (
    IMAGE_A,
    IMAGE_B,
    CLASS_A,
    CLASS_B,
    GROUP_A,
    GROUP_B,
    TRIAL,
    PROTOCOL,
)
INT_FEATURES: Final = (LABEL, WRITER_A, WRITER_B, WAY)


class Pair(NamedTuple):
    """One record. Fields as in the table of features; text is str here, UTF-8 in the record."""

    image_a: bytes
    image_b: bytes
    label: int
    class_a: str
    class_b: str
    group_a: str
    group_b: str
    writer_a: int
    writer_b: int
    trial: str
    protocol: str
    way: int


def feature_spec() -> dict[str, tf.io.FixedLenFeature]:
    """Every feature is a required scalar: `string[]` or `int64[]`."""
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in BYTES_FEATURES}
    spec |= {name: tf.io.FixedLenFeature([], tf.int64) for name in INT_FEATURES}
    return spec


FEATURE_SPEC: Final = feature_spec()


def serialize_pair(pair: Pair) -> bytes:
    """Encodes a pair as a `tf.train.Example`, the same bytes for the same pair.

    Zeros and empty strings are written like any other value: a reader with `FEATURE_SPEC`
    refuses a record that lacks a feature.
    """
    example = tf.train.Example()
    features = example.features.feature
    for name, value in zip(Pair._fields, pair, strict=True):
        if isinstance(value, bytes):
            features[name].bytes_list.value.append(value)
        elif isinstance(value, str):
            features[name].bytes_list.value.append(value.encode())
        else:
            features[name].int64_list.value.append(value)
    encoded: bytes = example.SerializeToString(deterministic=True)
    return encoded


def parse_pairs(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Decodes `string[N]` serialized Examples into a dict of `[N]` tensors (in graph or eager).

    Images stay encoded.

    Raises:
      tf.errors.InvalidArgumentError: a record is damaged or lacks a feature.
    """
    parsed: dict[str, tf.Tensor] = tf.io.parse_example(serialized, FEATURE_SPEC)
    return parsed


def pair_from_example(serialized: bytes) -> Pair:
    """Decodes one record on the host, without TensorFlow operations.

    Raises:
      ValueError: a feature is missing or does not hold exactly one value.
    """
    example = tf.train.Example.FromString(serialized)
    features = example.features.feature
    values: dict[str, bytes | str | int] = {}
    for name in (*BYTES_FEATURES, *INT_FEATURES):
        kind = "int64_list" if name in INT_FEATURES else "bytes_list"
        held = list(getattr(features[name], kind).value) if name in features else []
        if len(held) != 1:
            raise ValueError(f"feature {name}: {len(held)} values in its {kind}, expected one")
        value = held[0]
        is_text = name not in INT_FEATURES and name not in (IMAGE_A, IMAGE_B)
        values[name] = value.decode() if is_text else value
    return Pair(**values)  # type: ignore[arg-type]


def read_pairs(split: Path) -> Iterator[Pair]:
    """The records of a split: a folder of gzip TFRecords, as ingestion writes it; in file order.

    Raises:
      ValueError: as `pair_from_example`.
    """
    files = sorted(str(path) for path in split.iterdir() if path.is_file())
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        yield pair_from_example(record)
