"""Encodes and decodes the records that ingestion hands to training and evaluation: pairs.

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
GROUP_A: Final = "group_a"
WRITER_A: Final = "writer_a"
WRITER_B: Final = "writer_b"
TRIAL: Final = "trial"
PROTOCOL: Final = "protocol"
WAY: Final = "way"


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


INT_FEATURES: Final = tuple(name for name, kind in Pair.__annotations__.items() if kind is int)
BYTES_FEATURES: Final = tuple(name for name in Pair._fields if name not in INT_FEATURES)
FEATURE_SPEC: Final = {
    name: tf.io.FixedLenFeature([], tf.int64 if name in INT_FEATURES else tf.string)
    for name in Pair._fields
}
"""Every feature is a required scalar: `string[]` or `int64[]`."""


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
    for name, kind in Pair.__annotations__.items():
        where = "int64_list" if kind is int else "bytes_list"
        held = list(getattr(features[name], where).value) if name in features else []
        if len(held) != 1:
            raise ValueError(f"feature {name}: {len(held)} values in its {where}, expected one")
        values[name] = held[0].decode() if kind is str else held[0]
    return Pair(**values)  # type: ignore[arg-type]


def split_files(split: Path) -> list[str]:
    """The TFRecords in the folder of a split, in order."""
    return sorted(str(path) for path in split.iterdir() if path.is_file())


def read_pairs(split: Path) -> Iterator[Pair]:
    """The records of a split, in the order of its files.

    Raises:
      tf.errors.DataLossError, ValueError: as `read_file`.
    """
    for name in split_files(split):
        yield from read_file(name)


def read_file(name: str) -> Iterator[Pair]:
    """The records of a TFRecord, which is gzip where its name ends in .gz.

    Raises:
      tf.errors.DataLossError: it is damaged.
      ValueError: as `pair_from_example`.
    """
    compression = "GZIP" if name.endswith(".gz") else ""
    for record in tf.data.TFRecordDataset(name, compression).as_numpy_iterator():
        yield pair_from_example(record)
