"""Pair records in memory."""

from pathlib import Path

import numpy as np
import pytest

from components.trainer.pair_data import read_pair_data
from data_ingest.errors import InputError
from serving.saved_model.contract import Preprocessing
from serving.saved_model.trained_on import digest_of
from tests.pair_records import drawing, make_pairs, png, tiny_data, write_records


def test_every_distinct_image_is_held_once_and_pairs_point_at_theirs(tmp_path: Path) -> None:
    pairs = make_pairs(groups=2, classes=3, pairs=60)
    data = read_pair_data([write_records(tmp_path, pairs)], Preprocessing(20))
    distinct = {(p.class_a, p.image_a) for p in pairs} | {(p.class_b, p.image_b) for p in pairs}
    assert len(data.index) == len(data.images) == len(distinct) < 2 * len(pairs)
    for (a, b), label in zip(data.pairs, data.labels, strict=True):
        assert (data.index.class_name(a) == data.index.class_name(b)) == bool(label)
    assert data.labels.sum() == sum(pair.label for pair in pairs)
    assert set(data.index.groups) == {"group00", "group01"}


def test_a_row_holds_the_drawing_of_its_class_and_writer(tmp_path: Path) -> None:
    pairs = make_pairs(groups=1, classes=3, pairs=40)
    data = read_pair_data([write_records(tmp_path, pairs)], Preprocessing(20))
    for row in range(len(data.index)):
        class_number = int(data.index.class_name(row)[-2:])
        page = drawing(class_number, data.index.writer(row))
        np.testing.assert_array_equal(data.images[row, ..., 0], 255 - page)
        assert data.digests[row] == digest_of(png(page))


def test_order_and_number_of_files_do_not_matter(tmp_path: Path) -> None:
    pairs = make_pairs(groups=2, classes=3)
    one = read_pair_data([write_records(tmp_path / "a", pairs)], Preprocessing(16))
    pattern = write_records(tmp_path / "b", pairs[::-1], shards=3)
    three = read_pair_data([pattern], Preprocessing(16))
    assert one.fingerprint == three.fingerprint
    np.testing.assert_array_equal(one.images, three.images)
    np.testing.assert_array_equal(one.pairs, three.pairs)
    np.testing.assert_array_equal(one.labels, three.labels)


def test_other_pairs_of_the_same_images_have_another_fingerprint(tmp_path: Path) -> None:
    pairs = make_pairs(groups=1, classes=3)
    one = read_pair_data([write_records(tmp_path / "a", pairs)], Preprocessing(16))
    fewer = read_pair_data([write_records(tmp_path / "b", pairs[:-1])], Preprocessing(16))
    assert one.fingerprint != fewer.fingerprint


def test_taken_rows_bring_the_pairs_among_them(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, groups=3, classes=4)
    rows = np.flatnonzero(data.index.row_group != 1)
    taken = data.take(rows)
    assert taken.index.groups == (data.index.groups[0], data.index.groups[2])
    np.testing.assert_array_equal(taken.images, data.images[rows])
    np.testing.assert_array_equal(taken.digests, data.digests[rows])
    among = [
        (a, b, label)
        for (a, b), label in zip(data.pairs.tolist(), data.labels.tolist(), strict=True)
        if {a, b} <= set(rows.tolist())
    ]
    assert 0 < len(among) < len(data.labels)
    assert among == [
        (rows[a], rows[b], label)
        for (a, b), label in zip(taken.pairs, taken.labels.tolist(), strict=True)
    ]
    assert data.take(rows[1:]).fingerprint != taken.fingerprint != data.fingerprint


def test_no_records_is_an_error_that_names_where_they_were_sought(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_pair_data([str(tmp_path / "nowhere" / "*")], Preprocessing(16))
    with pytest.raises(InputError, match="no pair records in"):
        read_pair_data([write_records(tmp_path, [])], Preprocessing(16))
