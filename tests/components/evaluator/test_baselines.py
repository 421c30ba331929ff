"""Distances between drawings, and what the nearest by pixels earns."""

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.evaluator.baselines import (
    BASELINES,
    QUICK_BASELINES,
    Baseline,
    baseline_figures,
    baselines,
    ink,
    ink_of_pixels,
    modified_hausdorff_distance,
    modified_hausdorff_distances,
    picture,
    pixel_distances,
    pixel_nearest_neighbour_accuracy,
)
from components.evaluator.trials import recorded_trials
from data_ingest.records.features import Pair
from data_ingest.sources.kinds import KINDS
from tests.pair_records import drawing, png, trial_records, write_records

SPLIT = "Split-one_shot"
Pixels = npt.NDArray[np.bool_]


def drawn(*rows: str) -> Pixels:
    return np.array([[mark == "#" for mark in row] for row in rows])


@st.composite
def pictures(draw: st.DrawFn) -> Pixels:
    """With some ink, in the middle third."""
    marks = draw(st.lists(st.booleans(), min_size=16, max_size=16).filter(any))
    return np.pad(np.array(marks).reshape(4, 4), 4)


def distance(a: Pixels, b: Pixels) -> float:
    return modified_hausdorff_distance(ink_of_pixels(a), ink_of_pixels(b))


def by_definition(a: Pixels, b: Pixels) -> float:
    """Dubuisson & Jain 1994, equations 6 and 22, point by point."""
    centred = [np.argwhere(one) - np.argwhere(one).mean(axis=0) for one in (a, b)]

    def directed(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
        nearest = [min(math.dist(point, other) for other in second) for point in first]
        return sum(nearest) / len(nearest)

    return max(directed(*centred), directed(*reversed(centred)))


def test_a_point_and_two_points() -> None:
    # Centred, the one lies between the two: each of them is 1 away from it, and it from them.
    assert distance(drawn("#  "), drawn("# #")) == 1


def test_the_greater_of_the_two_directions_counts() -> None:
    # Centred: {0} and {-2, 0, 2}. Nothing is missing of the first; the second's ends are 2 away.
    assert distance(drawn("#    "), drawn("# # #")) == pytest.approx(4 / 3)


def test_a_line_and_the_same_line_upright() -> None:
    # Centred: {(0, -1), (0, 0), (0, 1)} and its transpose; the ends are 1 from the middle.
    assert distance(drawn("###"), drawn("#", "#", "#")) == pytest.approx(2 / 3)


@given(pictures(), pictures())
def test_it_is_what_the_definition_says_and_symmetric(a: Pixels, b: Pixels) -> None:
    assert distance(a, b) == pytest.approx(by_definition(a, b), abs=1e-9)
    assert distance(a, b) == distance(b, a) >= 0


@given(pictures(), st.lists(pictures(), min_size=1, max_size=6))
def test_of_many_the_nearest_are_found_and_no_other_seems_as_near(
    query: Pixels, others: list[Pixels]
) -> None:
    exact = np.array([distance(query, other) for other in others])
    found = np.array(
        modified_hausdorff_distances(ink_of_pixels(query), [ink_of_pixels(one) for one in others])
    )
    np.testing.assert_array_equal(found == found.min(), exact == exact.min())
    assert found.min() == exact.min()
    assert np.all(found <= exact)


@given(pictures())
def test_it_is_zero_on_itself(a: Pixels) -> None:
    assert distance(a, a) == 0


@given(pictures(), pictures(), st.integers(-4, 4), st.integers(-4, 4))
def test_shifting_a_drawing_changes_nothing(a: Pixels, b: Pixels, down: int, right: int) -> None:
    shifted = np.roll(a, (down, right), axis=(0, 1))
    assert distance(shifted, b) == pytest.approx(distance(a, b), abs=1e-9)


def test_a_page_without_ink_is_infinitely_far_from_all_but_its_like() -> None:
    blank = np.zeros((3, 3), bool)
    assert distance(blank, drawn("#  ")) == distance(drawn("#  "), blank) == math.inf
    assert distance(blank, blank) == 0


def test_ink_is_dark_on_light_or_light_on_dark_or_opaque() -> None:
    page = drawing(0, 1)
    clear = Image.merge("LA", [Image.fromarray(np.zeros_like(page)), Image.fromarray(255 - page)])
    stream = io.BytesIO()
    clear.save(stream, "png")
    dark, light, opaque = (ink(data) for data in (png(page), png(255 - page), stream.getvalue()))
    assert dark.n > 0
    assert modified_hausdorff_distance(dark, light) == 0
    assert modified_hausdorff_distance(dark, opaque) == 0


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 3))
def test_the_distance_of_pixels_is_symmetric_and_zero_between_equals_alone(
    a: int, b: int, writer: int
) -> None:
    first, second = (picture(png(drawing(number, writer))) for number in (a, b))
    (there,), (back,) = pixel_distances(first, [second]), pixel_distances(second, [first])
    assert there == back
    assert (there == 0) == (a == b)


def test_the_nearest_by_pixels_earns_a_trial_and_ties_share_it(tmp_path: Path) -> None:
    first, second, other = (png(drawing(number, 1)) for number in range(3))
    pairs = [
        *trial_records("won", [first, second], query=first),
        *trial_records("lost", [second, first], query=first),
        *trial_records("tied", [second, second], query=first),
        *trial_records("won in three", [other, first, second], query=other),
    ]
    write_records(tmp_path / SPLIT, pairs)
    assert pixel_nearest_neighbour_accuracy(tmp_path) == {
        "within_2way_accuracy": {"pixel_1nn": 0.5},
        "within_3way_accuracy": {"pixel_1nn": 1.0},
    }


def disc(colour: tuple[int, int, int], at: int) -> bytes:
    rows, columns = np.mgrid[:40, :40]
    page = np.full((40, 40, 3), 255, np.uint8)
    page[(rows - 20) ** 2 + (columns - at) ** 2 < 100] = colour
    return png(page)


# As bright as each other: in gray they are the same discs.
COLOURS = ((200, 0, 0), (0, 102, 0), (0, 67, 180))


def test_pixels_tell_classes_apart_that_differ_by_colour_alone(tmp_path: Path) -> None:
    pairs = [
        pair
        for number, colour in enumerate(COLOURS)
        for pair in trial_records(
            f"{number}",
            [disc(colour, 19), *(disc(other, 20) for other in COLOURS if other != colour)],
            query=disc(colour, 20),
        )
    ]
    write_records(tmp_path / SPLIT, pairs)
    found = baseline_figures(tmp_path)["within_3way_accuracy"]
    assert list(found) == [baseline.name for baseline in QUICK_BASELINES]
    assert found["pixel_1nn"] == 1.0
    assert found["hog"] < 1


def test_a_gray_picture_is_as_far_from_a_coloured_one_as_its_like_in_three_channels() -> None:
    gray, colour = picture(png(drawing(0, 1))), picture(disc(COLOURS[0], 20))
    (near,) = pixel_distances(gray, [colour])
    assert [gray.shape[2], colour.shape[2]] == [1, 3]
    assert near == pixel_distances(np.repeat(gray, 3, axis=2), [colour])[0]
    other = picture(png(drawing(1, 1)))
    assert pixel_distances(gray, [other]) == pixel_distances(np.repeat(gray, 3, axis=2), [other])


@pytest.mark.parametrize("baseline", QUICK_BASELINES, ids=lambda one: one.name)
def test_single_pairs_are_measured_too_and_forgeries_by_themselves(
    baseline: Baseline, tmp_path: Path
) -> None:
    def pair(protocol: str, a: bytes, b: bytes, label: int) -> Pair:
        (record,) = trial_records("", [b], query=a, answer=0 if label else 1)
        return record._replace(trial="", way=0, protocol=protocol, label=label)

    own, like, other = png(drawing(0, 1)), png(drawing(0, 2)), png(drawing(3, 1))
    write_records(
        tmp_path / SPLIT,
        [
            *(pair("random", own, *of) for of in ((own, 1), (other, 0))),
            *(pair("skilled", own, *of) for of in ((like, 1), (own, 0))),
        ],
    )
    figures = {name: of[baseline.name] for name, of in baseline_figures(tmp_path).items()}
    assert figures["eer_random"] == 0
    assert figures["auc_random"] == 1
    assert figures["eer_skilled"] == 1
    assert 0 < figures["auc"] < 1


def test_ink_is_compared_where_images_are_drawings() -> None:
    slow = {kind: baselines(kind, slow=True) for kind in KINDS}
    assert slow == {"drawing": BASELINES, "photo": QUICK_BASELINES, "signature": QUICK_BASELINES}
    assert baselines("drawing") == QUICK_BASELINES


def test_pairs_that_belong_to_no_trial_do_not_count(tmp_path: Path) -> None:
    image = png(drawing(0, 1))
    loose = [
        pair._replace(trial="", way=0) for pair in trial_records("", [image, image], query=image)
    ]
    write_records(tmp_path / SPLIT, loose)
    assert pixel_nearest_neighbour_accuracy(tmp_path) == {}


def test_a_malformed_trial_is_left_out_and_images_are_kept_once(tmp_path: Path) -> None:
    first, second = (png(drawing(number, 1)) for number in range(2))
    whole = trial_records("whole", [first, second], query=first)
    torn = trial_records("torn", [first, second], query=first)[:1]
    no_answer = trial_records("no answer", [first, second], query=first, answer=2)
    write_records(tmp_path / SPLIT, [*whole, *torn, *no_answer])
    recorded = recorded_trials(tmp_path)
    ((protocol_and_way, (trial,)),) = recorded.trials.items()
    assert protocol_and_way == ("within", 2)
    assert (trial.trial_id, trial.answer) == ("whole", 0)
    assert [recorded.images[number] for number in trial.images] == [first, first, second]
    assert len(recorded.images) == 2
