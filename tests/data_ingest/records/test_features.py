import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_ingest.records.features import (
    BYTES_FEATURES,
    FEATURE_SPEC,
    INT_FEATURES,
    Pair,
    pair_from_example,
    parse_pairs,
    serialize_pair,
)
from tests.data_ingest.tiny_images import png

EMPTY = Pair(b"", b"", 0, "", "", "", "", 0, 0, "", "train", 0)
FULL = Pair(
    png("a"), png("b"), 1, "Grec/é", "Grec/ü", "Grec", "Ge_ez", 7, 20, "within/1", "within", 20
)

texts = st.text(st.characters(codec="utf-8"), max_size=10)
numbers = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(
    st.builds(
        Pair,
        *(st.binary(max_size=20),) * 2,
        numbers,
        *(texts,) * 4,
        *(numbers,) * 2,
        *(texts,) * 2,
        numbers,
    )
)
def test_a_pair_survives_the_record(pair: Pair) -> None:
    assert pair_from_example(serialize_pair(pair)) == pair


def test_tensorflow_reads_what_was_written_zeros_and_empty_strings_included() -> None:
    parsed = parse_pairs(tf.constant([serialize_pair(EMPTY), serialize_pair(FULL)]))
    for name, values in parsed.items():
        expected = [getattr(pair, name) for pair in (EMPTY, FULL)]
        read = values.numpy().tolist()
        assert read == [e.encode() if isinstance(e, str) else e for e in expected]


def test_every_feature_is_written_even_where_it_is_zero_or_empty() -> None:
    example = tf.train.Example.FromString(serialize_pair(EMPTY))
    assert set(example.features.feature) == set(FEATURE_SPEC)


def test_the_features_are_those_of_the_contract() -> None:
    assert set(Pair._fields) == set(FEATURE_SPEC) == {*BYTES_FEATURES, *INT_FEATURES}
    assert {name for name, spec in FEATURE_SPEC.items() if spec.dtype == tf.int64} == {
        "label",
        "writer_a",
        "writer_b",
        "way",
    }


def test_equal_pairs_are_equal_bytes() -> None:
    assert serialize_pair(FULL) == serialize_pair(FULL._replace())


def test_a_record_that_lacks_a_feature_is_refused_by_name() -> None:
    example = tf.train.Example.FromString(serialize_pair(FULL))
    del example.features.feature["way"]
    with pytest.raises(ValueError, match="feature way: 0 values"):
        pair_from_example(example.SerializeToString())
    with pytest.raises(tf.errors.InvalidArgumentError, match="way"):
        parse_pairs(tf.constant([example.SerializeToString()]))
