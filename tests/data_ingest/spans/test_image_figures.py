"""Figures of whole spans, and how much groups of images differ by nature."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_ingest.spans.image_figures import (
    FIGURES,
    ImageFigures,
    divergence,
    measure_images,
    natural_divergences,
)
from data_ingest.spans.turns import STROKES
from tests.data_ingest.tiny_images import omniglot_tree, png, write_zip

NONE = np.zeros((0, *STROKES), np.float32)
counts = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any)


def figures(groups: dict[str, str]) -> ImageFigures:
    """A letter is an image's ink; a group's images are of one class."""
    rows = [(group, value) for group, values in groups.items() for value in values]
    names = tuple(group for group, _ in rows)
    return ImageFigures(names, names, {"ink": tuple(value for _, value in rows)}, NONE)


@given(counts, counts)
def test_divergence_is_a_symmetric_share(one: list[int], other: list[int]) -> None:
    p, q = np.array(one, float), np.array(other, float)
    assert 0 <= divergence(p, q) <= 1 + 1e-12
    assert divergence(p, q) == pytest.approx(divergence(q, p))
    assert divergence(p, 7 * p) == pytest.approx(0, abs=1e-12)


def test_divergence_of_known_distributions() -> None:
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == 1
    # H(3/4, 1/4) - H(1/2, 1/2) / 2
    assert divergence(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.311278)


def test_all_images_are_measured_and_class_sizes_counted_a_span(tmp_path: Path) -> None:
    one = write_zip(tmp_path / "1.zip", omniglot_tree("a", groups=2, classes=2, writers=4))
    other = write_zip(tmp_path / "2.zip", omniglot_tree("a", groups=1, classes=1, writers=2))
    found = measure_images([[one], [other]], limit=1000)
    assert len(found) == 18
    assert set(found.columns) == set(FIGURES)
    assert found.share("class_size") == {
        "+002": pytest.approx(2 / 18),
        "+004": pytest.approx(16 / 18),
    }
    assert found.share("width") == {"+007": 1.0}


def test_of_many_images_always_the_same_are_measured(tmp_path: Path) -> None:
    files = omniglot_tree("a", groups=2, classes=3, writers=5)
    one = write_zip(tmp_path / "one" / "1.zip", files)
    same = write_zip(tmp_path / "same" / "1.zip", files, backwards=True)
    assert measure_images([[one]], limit=10) == measure_images([[same]], limit=10)
    assert len(measure_images([[one]], limit=10)) == 10
    strokes = [measure_images([[path]], limit=10).strokes for path in (one, same)]
    assert strokes[0].any()
    np.testing.assert_array_equal(*strokes)


def test_a_broken_image_is_left_out(tmp_path: Path) -> None:
    files = {"a/b/1.png": png("1"), "a/b/2.png": b"no image"}
    assert len(measure_images([[write_zip(tmp_path / "1.zip", files)]], limit=10)) == 1


def test_nothing_to_measure_is_no_figures() -> None:
    assert len(measure_images([], limit=10)) == 0


def test_few_groups_differ_more_from_the_rest_than_many() -> None:
    reference = figures({f"group{number}": "xxxxyyyyzzzz"[number:][:4] for number in range(8)})
    one, many = (
        natural_divergences(reference, like=figures(dict.fromkeys(names, "x")))["ink"]
        for names in (["new"], [f"new{number}" for number in range(4)])
    )
    assert one > many > 0


def test_groups_that_are_alike_differ_by_nothing() -> None:
    reference = figures(dict.fromkeys("abcdef", "xyz"))
    assert natural_divergences(reference, like=figures({"new": "x"}))["ink"] == pytest.approx(0)


def test_with_few_groups_classes_show_how_much_images_differ() -> None:
    names = tuple("aaabbbcccddd")
    reference = ImageFigures(("",) * 12, names, {"ink": tuple("xxxxxxyyyyyy")}, NONE)
    like = ImageFigures(("",), ("new",), {"ink": ("x",)}, NONE)
    assert natural_divergences(reference, like=like)["ink"] > 0.1


def test_too_few_classes_say_nothing() -> None:
    reference = figures({"a": "xx", "b": "yy", "c": "zz"})
    assert natural_divergences(reference, like=reference) == {"ink": 0.0}
