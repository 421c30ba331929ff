from pathlib import Path

import numpy as np
import pytest

from components.evaluator import mistakes
from components.evaluator.baselines import pixel_nearest_neighbour_accuracy
from components.evaluator.mistakes import hardest_mistakes
from data_ingest.records.features import Pair
from tests.pair_records import drawing, png, write_records

SPLIT = "Split-one_shot"


def trial(name: str, candidates: list[bytes], *, query: bytes, answer: int = 0) -> list[Pair]:
    return [
        Pair(
            image_a=query,
            image_b=image,
            label=int(position == answer),
            class_a="g/a",
            class_b=f"g/{position}",
            group_a="g",
            group_b="g",
            writer_a=1,
            writer_b=2,
            trial=name,
            protocol="within",
            way=len(candidates),
        )
        for position, image in enumerate(candidates)
    ]


def test_the_nearest_by_pixels_earns_a_trial_and_ties_share_it(tmp_path: Path) -> None:
    first, second, other = (png(drawing(number, 1)) for number in range(3))
    pairs = [
        *trial("won", [first, second], query=first),
        *trial("lost", [second, first], query=first),
        *trial("tied", [second, second], query=first),
        *trial("won in three", [other, first, second], query=other),
    ]
    write_records(tmp_path / SPLIT, pairs)
    assert pixel_nearest_neighbour_accuracy(tmp_path) == {
        "within_2way_accuracy": 0.5,
        "within_3way_accuracy": 1.0,
    }


def test_pairs_that_belong_to_no_trial_do_not_count(tmp_path: Path) -> None:
    image = png(drawing(0, 1))
    loose = [pair._replace(trial="", way=0) for pair in trial("", [image, image], query=image)]
    write_records(tmp_path / SPLIT, loose)
    assert pixel_nearest_neighbour_accuracy(tmp_path) == {}


def test_mistakes_are_told_by_logit_the_worst_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(drawing(0, 1))
    names = ("right", "saturated", "tied", "worst")
    write_records(
        tmp_path / SPLIT, [pair for name in names for pair in trial(name, [image] * 2, query=image)]
    )
    # Two logits a trial, the right candidate's first; in float32 both scores of 40 and 41 are 1.
    logits = np.array([3, 1, 40, 41, 2, 2, -5, 5], np.float32)

    class Model:
        def __init__(self, path: Path) -> None: ...

        def __enter__(self) -> "Model":
            return self

        def __exit__(self, *error: object) -> None: ...

        def run(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, object]:
            if signature == "embed":
                return {"embedding": np.zeros((len(inputs["image"]), 1))}
            return {"logit": logits}

    monkeypatch.setattr(mistakes, "LoadedModel", Model)
    found = hardest_mistakes(model=tmp_path, examples=tmp_path, most=2)
    assert [mistake.trial for mistake in found] == ["worst", "saturated"]
    assert found[1].chosen_score == found[1].correct_score == 1.0
    everything = hardest_mistakes(model=tmp_path, examples=tmp_path, most=10)
    assert [mistake.trial for mistake in everything] == ["worst", "saturated", "tied"]
