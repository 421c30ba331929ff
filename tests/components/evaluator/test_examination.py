"""What a model made of the trials and pairs of an Examples artifact."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluator import examination
from components.evaluator.examination import examine, thumbnail
from data_ingest.records.features import Pair
from tests import pixel_model
from tests.pair_records import drawing, make_pairs, png, trial_records, write_records
from tests.pixel_model import PixelModel

SPLIT = "Split-one_shot"


@pytest.fixture(autouse=True)
def _pixels_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "LoadedModel", PixelModel)
    # It takes seconds; test_embedding_map.py has its tests.
    monkeypatch.setattr(examination, "draw_map", lambda by_class, vectors, encoded: None)


def verification(pairs: list[Pair], protocol: str = "verification") -> list[Pair]:
    return [pair._replace(protocol=protocol) for pair in pairs]


def test_the_most_wrong_trial_comes_first_and_a_tie_is_not_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(drawing(0, 1))
    names = ("right", "saturated", "tied", "worst")
    write_records(
        tmp_path / SPLIT,
        [
            pair._replace(class_a=f"g/{name}")
            for at, name in enumerate(names)
            for pair in trial_records(name, [image, image], query=png(drawing(10 + at, 1)))
        ],
    )
    # Two logits a trial, the right candidate's first; in float32 both scores of 40 and 41 are 1.
    logits = np.array([3, 1, 40, 41, 2, 2, -5, 5], np.float32)
    monkeypatch.setattr(
        PixelModel,
        "run",
        lambda self, signature, inputs: (
            {"embedding": np.zeros((len(inputs["image"]), 1))}
            if signature == "embed"
            else {"logit": logits}
        ),
    )
    found = examine(model=tmp_path, examples=tmp_path)["trials"]
    assert [trial["class"] for trial in found["wrong"]] == ["g/worst", "g/saturated", "g/tied"]
    assert [trial["class"] for trial in found["right"]] == ["g/right"]
    assert [one["right"] for one in found["wrong"][0]["candidates"]] == [False, True]
    assert found["wrong"][1]["candidates"][0]["score"] == 1.0


def test_every_image_is_embedded_once_and_those_shown_have_thumbnails(tmp_path: Path) -> None:
    pairs = verification(make_pairs(groups=2, classes=5))
    candidates = [png(drawing(number, 1)) for number in range(5)]
    trials = trial_records("within/1", candidates, query=png(drawing(0, 2)))
    write_records(tmp_path / SPLIT, [*pairs, *trials])
    found = examine(model=tmp_path, examples=tmp_path)
    embedded = pixel_model.made[-1].embedded
    assert len(embedded) == len(set(embedded))
    assert {image for pair in pairs for image in (pair.image_a, pair.image_b)} <= set(embedded)
    shown = {one["image"] for trial in found["trials"]["right"] for one in trial["candidates"]}
    assert {str(image) for image in shown} <= found["thumbnails"].keys()


def test_pairs_are_told_by_their_errors_and_thresholds(tmp_path: Path) -> None:
    pairs = verification(make_pairs(groups=2, classes=5, pairs=200))
    write_records(tmp_path / SPLIT, pairs)
    found = examine(model=tmp_path, examples=tmp_path)
    scores = [one["score"] for one in found["false_accepts"]]
    assert scores == sorted(scores, reverse=True)
    assert all(score >= 0.5 for score in scores)
    assert all(one["classes"][0] != one["classes"][1] for one in found["false_accepts"])
    assert all(one["classes"][0] == one["classes"][1] for one in found["false_rejects"])
    assert all(one["score"] < 0.5 for one in found["false_rejects"])
    points = found["curve"]["points"]
    assert points["half"]["score"] == 0.5
    assert points["few_accepts"]["false_accepts"] <= 0.01
    assert points["equal"]["false_accepts"] == pytest.approx(
        points["equal"]["false_rejects"], abs=0.03
    )
    assert sum(found["curve"]["histogram"]["same"]) == 100
    assert sum(one["pairs"] for one in found["curve"]["reliability"]) == 200


def test_accuracy_over_candidates_is_what_drawn_trials_would_have(tmp_path: Path) -> None:
    # Of a query three of the four other classes are less like it than its own.
    below = np.array([[True, True, True, False]] * 5)
    full = np.zeros((5, 5), bool)
    others = ~np.eye(5, dtype=bool)
    full[others] = below.ravel()
    points = examination._expected(full, others)
    assert [point["ways"] for point in points] == [2, 3, 4, 5]
    assert [point["accuracy"] for point in points] == pytest.approx([3 / 4, 1 / 2, 1 / 4, 0])


def test_groups_and_all_classes_have_curves_of_their_own(tmp_path: Path) -> None:
    write_records(tmp_path / SPLIT, verification(make_pairs(groups=2, classes=5, pairs=200)))
    curves = examine(model=tmp_path, examples=tmp_path)["ways"]
    assert [point["ways"] for point in curves["within"]] == [2, 3, 4, 5]
    assert [point["ways"] for point in curves["between"]] == list(range(2, 11))
    write_records(tmp_path / "one" / SPLIT, verification(make_pairs(groups=1, classes=5)))
    assert [*examine(model=tmp_path, examples=tmp_path / "one")["ways"]] == ["within"]


def test_roc_curves_are_apart_by_the_kind_of_forgery(tmp_path: Path) -> None:
    pairs = make_pairs(groups=2, classes=5)
    records = [*verification(pairs, "random"), *verification(pairs, "skilled")]
    write_records(tmp_path / SPLIT, records)
    found = examine(model=tmp_path, examples=tmp_path)
    assert [*found["forgeries"]] == ["random", "skilled"]
    assert all(0 <= share <= 1 for curve in found["forgeries"].values() for _, share in curve)


def test_a_split_without_records_of_a_kind_has_nothing_of_it(tmp_path: Path) -> None:
    image = png(drawing(0, 1))
    write_records(tmp_path / SPLIT, trial_records("t", [image, image], query=image))
    found = examine(model=tmp_path, examples=tmp_path)
    assert (found["curve"], found["forgeries"], found["map"]) == ({}, {}, {})
    assert found["trials"]["way"] == 2


@pytest.mark.parametrize(("photo", "kind"), [(False, "png"), (True, "webp")])
def test_thumbnails_are_small_and_drawings_stay_sharp(photo: bool, kind: str) -> None:
    pixels = np.full((300, 200, 3), 255, np.uint8)
    pixels[50:60, 50:150] = 0
    if photo:
        pixels = np.random.default_rng(0).integers(0, 255, pixels.shape).astype(np.uint8)
    head, _, data = thumbnail(png(pixels)).partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert max(opened.size) == 105
