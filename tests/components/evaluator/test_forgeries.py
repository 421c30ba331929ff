"""Signatures by several references: what is compared, and what the figures make of it."""

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from components.evaluator.forgeries import (
    DRAWS,
    REFERENCES,
    Verification,
    draw_comparisons,
    draw_roc,
    verify_signatures,
)
from components.evaluator.recognisers import ModelRecogniser
from data_ingest.sampling.index import ImageIndex
from tests.data_ingest.sampling_strategies import omniglot_like, signatures

Floats = npt.NDArray[np.float64]


class Places:
    """Signatures are points on a line; a score falls with the distance to the references' mean."""

    def __init__(self, at: Floats) -> None:
        self.at = at

    def verify(self, queries: npt.NDArray[np.int64], references: npt.NDArray[np.int64]) -> Floats:
        return -np.abs(self.at[queries] - self.at[references].mean(axis=1)).astype(np.float32)


def verified(
    index: ImageIndex, at: Floats, *, seed: int = 1
) -> dict[tuple[int, str], Verification]:
    recogniser = cast(ModelRecogniser, Places(at))
    figures = verify_signatures(recogniser, index, seed=1)
    return {(one.references, one.forgeries): one for one in figures}


def shaky(index: ImageIndex, *, hand: float, forgers: float) -> Floats:
    """Writers 100 apart, their signatures spread by `hand`, forgeries beside by `forgers`."""
    rng = np.random.default_rng(0)
    forged = index.class_forged[index.row_class]
    return 100 * index.row_group + rng.normal(0, hand, len(index)) + forgers * forged


def test_all_other_signatures_are_compared_with_references_drawn_by_seed() -> None:
    index = signatures(writers=6, genuine=8, forged=3)
    drawn = draw_comparisons(index, references=5, seed=1)
    assert drawn is not None
    forged = index.class_forged[index.row_class]
    writer = index.row_group
    np.testing.assert_array_equal(forged[drawn.query], drawn.kind == 2)
    assert not forged[drawn.references].any()
    np.testing.assert_array_equal(writer[drawn.references], np.repeat(drawn.writer[:, None], 5, 1))
    np.testing.assert_array_equal(writer[drawn.query] == drawn.writer, drawn.kind != 1)
    assert not (drawn.query[:, None] == drawn.references).any()
    # 3 genuine ones are left, 5 other writers, 3 forgeries of all writers but the last.
    counts = np.bincount(3 * drawn.writer + drawn.kind, minlength=18).reshape(6, 3)
    assert counts.tolist() == [[3 * DRAWS, 5 * DRAWS, 3 * DRAWS]] * 5 + [[3 * DRAWS, 5 * DRAWS, 0]]
    for other_seed, same in ((1, True), (2, False)):
        again = draw_comparisons(index, references=5, seed=other_seed)
        assert again is not None
        assert np.array_equal(again.references, drawn.references) == same


def test_the_references_of_fewer_are_among_those_of_more() -> None:
    index = signatures(writers=4, genuine=12)
    few, many = (draw_comparisons(index, references=count, seed=3) for count in (5, 10))
    assert few is not None
    assert many is not None
    for number in range(4):
        sets = [np.unique(one.references[one.writer == number], axis=0) for one in (few, many)]
        assert {tuple(one) for one in sets[0]} == {tuple(one[:5]) for one in sets[1]}


def test_figures_tell_the_kinds_of_forgery_apart_and_more_references_help() -> None:
    index = signatures(writers=12, genuine=24, forged=12)
    figures = verified(index, shaky(index, hand=1, forgers=2))
    assert list(figures) == [
        (count, kind) for count in REFERENCES for kind in ("random", "skilled")
    ]
    for count in REFERENCES:
        easy, hard = figures[count, "random"], figures[count, "skilled"]
        assert easy.eer == 0
        assert easy.auc == 1
        assert easy.tar_at_1_percent_far == 1
        assert 0.05 < hard.eer < 0.4
        assert hard.eer_ci95[0] < hard.eer < hard.eer_ci95[1]
        assert hard.accuracy == pytest.approx(1 - hard.eer, abs=0.05)
        assert hard.accuracy < easy.accuracy < 1
        assert (easy.writers, easy.genuine_n) == (12, 12 * DRAWS * (24 - count))
    assert figures[10, "skilled"].eer < figures[1, "skilled"].eer - 0.03
    false, true = np.transpose(figures[1, "skilled"].roc)
    assert (np.diff(false) > 0).all()
    assert (np.diff(true) >= 0).all()
    assert true[-1] == 1


def test_a_score_that_says_nothing_is_chance() -> None:
    index = signatures(writers=5)
    for one in verified(index, np.zeros(len(index))).values():
        assert (one.eer, one.auc, one.accuracy) == (0.5, 0.5, 0.5)


def test_the_threshold_is_chosen_on_other_writers() -> None:
    """Writers whose signatures differ as much as forgeries of the others are not helped by it."""
    index = signatures(writers=3, genuine=8, forged=8)
    at = shaky(index, hand=0.01, forgers=1)
    calm = verified(index, at)[1, "skilled"]
    assert calm.accuracy == 1
    # The second writer's hand and forgers are ten times as far off; each is easy for itself.
    at = np.where(index.row_group == 1, 100 + 200 * (at - 100), at)
    moved = verified(index, at)[1, "skilled"]
    assert moved.eer < 0.35
    assert moved.accuracy < calm.accuracy - 0.1


def test_writers_with_too_few_signatures_are_left_out_of_many_references() -> None:
    index = signatures(writers=4, genuine=6)
    assert {count for count, _ in verified(index, shaky(index, hand=1, forgers=2))} == {1, 5}
    assert draw_comparisons(index, references=6, seed=1) is None


def test_without_forgeries_nothing_is_verified() -> None:
    assert verified(omniglot_like(groups=3, classes=2, writers=4), np.zeros(24)) == {}


def test_the_roc_curves_are_drawn(tmp_path: Path) -> None:
    index = signatures(writers=4, genuine=12)
    figures = list(verified(index, shaky(index, hand=1, forgers=2)).values())
    draw_roc(figures, tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.format == "PNG"
        assert np.ptp(np.asarray(picture.convert("L"))) > 100
