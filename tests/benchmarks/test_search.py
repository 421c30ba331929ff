"""The search for a recipe, on a few generated glyphs."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks import search
from data_ingest.sources.glyphs import write_glyphs

TINY = [
    part
    for change in (
        "widths=[4,8,8]",
        "image_size=16",
        "embedding_size=8",
        "classes_per_batch=6",
        "images_per_class=2",
        "warmup_steps=1",
    )
    for part in ("--set", change)
]


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    container = tmp_path_factory.mktemp("glyphs") / "background.zip"
    write_glyphs(container, alphabets=6, characters=6, seed=1)
    return container


def test_each_seed_is_trained_once_and_judged_on_alphabets_of_its_own(
    glyphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "search.json"
    command = ["--data", str(glyphs), "--results", str(results), "--trials", "50", *TINY]
    assert search.main([*command, "--name", "tiny", "--steps", "3", "--seeds", "1", "2"]) == 0
    first = results.read_text()
    rows = json.loads(first)
    assert [row["recipe"]["seed"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["accuracy"] < 1
        assert row["trials"] == 50
        assert row["core_seconds"] > 0
    _, held_out = search.split(glyphs, search.recipe_of("fast", {}, seed=1))
    assert rows[0]["alphabets"] == list(held_out.index.groups)
    capsys.readouterr()
    assert search.main([*command, "--name", "tiny", "--steps", "3", "--seeds", "1", "2"]) == 0
    assert results.read_text() == first
    assert "tiny" in capsys.readouterr().out


def test_no_alphabet_is_both_trained_on_and_judged_by(glyphs: Path) -> None:
    train, held_out = search.split(glyphs, search.recipe_of("fast", {}, seed=1))
    assert set(train.index.groups).isdisjoint(held_out.index.groups)
    assert len(train.index) + len(held_out.index) == 6 * 6 * 20


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        search.recipe_of("fast", {"learning_rat": 1.0}, seed=1)


def test_verification_tells_classes_that_are_apart_from_classes_that_are_not() -> None:
    draw = np.random.default_rng(1)
    classes = np.repeat(np.arange(10), 8)
    middles = draw.normal(size=(10, 4))
    apart = search.verification(100 * middles[classes] + draw.normal(size=(80, 4)), classes)
    assert apart == {"eer": 0.0, "tar": 1.0}
    mixed = search.verification(draw.normal(size=(80, 4)), classes)
    assert mixed["eer"] == pytest.approx(0.5, abs=0.06)
    assert mixed["tar"] < 0.1
