"""Impostor pairs, summed up with an error over identities."""

import json
from pathlib import Path

import numpy as np

from serving.saved_model.impostors import (
    SHIPPED,
    ImpostorPairs,
    Pairs,
    held_out_pairs,
    pairs_among,
    read_shipped,
    write_shipped,
)


def test_only_pairs_of_different_identities_of_one_group_are_impostors() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 5], [2, 2]], np.float32)
    found = pairs_among(vectors, [7, 7, 8, 9], bias=10.0)
    assert sorted(found.logits.tolist()) == [4.0, 5.0, 5.0, 6.0, 7.0]
    assert (found.first != found.second).all()
    grouped = pairs_among(vectors, [7, 7, 8, 9], bias=10.0, groups=[0, 0, 0, 1])
    assert sorted(grouped.logits.tolist()) == [4.0, 5.0]
    assert len(pairs_among(vectors[:1], [1], bias=0.0).logits) == 0


def test_groups_of_one_are_no_groups() -> None:
    random = np.random.default_rng(5)
    who = np.repeat(np.arange(12), 2)
    vectors = random.normal(size=(24, 32)).astype(np.float32)
    assert held_out_pairs(vectors, who, who, bias=40.0) == held_out_pairs(
        vectors, who, who * 0, bias=40.0
    )
    assert held_out_pairs(vectors[:8], who[:8], who[:8] * 0, bias=40.0) == ()


def test_a_model_brings_its_figures_in_a_file_whose_keys_stay(tmp_path: Path) -> None:
    who = np.repeat(np.arange(12), 2)
    vectors = np.random.default_rng(5).normal(size=(24, 32)).astype(np.float32)
    shipped = held_out_pairs(vectors, who, who, bias=40.0)
    assert read_shipped(tmp_path) == ()
    (tmp_path / SHIPPED).parent.mkdir()
    write_shipped(tmp_path, shipped)
    assert read_shipped(tmp_path) == shipped
    first = json.loads((tmp_path / "assets.extra" / "impostors.json").read_text())[0]
    assert first["people"] == shipped[0].identities == 12
    assert set(first) == {
        *("source", "images", "people", "pairs", "mean", "std", "logits", "rates"),
        *("tail_mean", "alike_logit", "alike_rate"),
    }


def test_look_alikes_of_few_identities_count_as_less_evidence_than_those_of_many() -> None:
    """As many pairs are alike: once all of two identities, once of everybody a few."""
    count, images = 20, 10
    first, second = np.triu_indices(count, 1)
    first, second = np.repeat(first, images**2), np.repeat(second, images**2)
    pair = np.arange(len(first)) // images**2
    two = np.where(pair == 0, 5.0, -5.0).astype(np.float32)
    everybody = np.where(np.arange(len(first)) % 190 == 0, 5.0, -5.0).astype(np.float32)
    assert (two > 0).sum() == (everybody > 0).sum()

    def rate_of(logits: np.ndarray) -> float:
        known = ImpostorPairs.of(Pairs(logits, first, second), source="cohort")
        assert known is not None
        return known.rates[0]

    assert rate_of(two) > rate_of(everybody)
