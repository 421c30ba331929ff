"""Trials that a model got wrong, with the images, for a person to look at."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from data_ingest import features, protocols
from pipeline.baselines import read_examples
from serving.loader import LoadedModel

_BATCH = 2000


@dataclass(frozen=True)
class Mistake:
    """A wrongly answered trial. Images are encoded, scores in [0, 1]."""

    trial: str
    query: bytes
    chosen: bytes
    correct: bytes
    chosen_score: float
    correct_score: float


def hardest_mistakes(*, model: Path, examples: Path, most: int) -> list[Mistake]:
    """The official (else within-group) trials answered wrongly with the greatest margin.

    Args:
      model: folder of a SavedModel with the `examples` signature.
      examples: URI of an Examples artifact with a `one_shot` split.
      most: how many at the most.
    """
    by_protocol: dict[str, list[tf.train.Example]] = defaultdict(list)
    for example in read_examples(examples, protocols.ONE_SHOT_SPLIT):
        protocol = _text(example, features.PROTOCOL)
        if protocol in (protocols.PROTOCOL_OFFICIAL, protocols.PROTOCOL_WITHIN):
            by_protocol[protocol].append(example)
    candidates = by_protocol[protocols.PROTOCOL_OFFICIAL] or by_protocol[protocols.PROTOCOL_WITHIN]
    if not candidates:
        return []
    serialized = [example.SerializeToString() for example in candidates]
    with LoadedModel(model) as loaded:
        scores = np.concatenate(
            [
                loaded.run(
                    "examples",
                    {"examples": np.array(serialized[i : i + _BATCH], object)},
                )["score"]
                for i in range(0, len(serialized), _BATCH)
            ]
        )
    trials: dict[str, list[int]] = defaultdict(list)
    for position, example in enumerate(candidates):
        trials[_text(example, features.TRIAL)].append(position)
    mistakes = []
    for trial, positions in trials.items():
        chosen = max(positions, key=lambda position: scores[position])
        correct = next(
            p for p in positions if candidates[p].features.feature["label"].int64_list.value[0]
        )
        if chosen != correct:
            mistakes.append(
                Mistake(
                    trial=trial,
                    query=_image(candidates[chosen], features.IMAGE_A),
                    chosen=_image(candidates[chosen], features.IMAGE_B),
                    correct=_image(candidates[correct], features.IMAGE_B),
                    chosen_score=float(scores[chosen]),
                    correct_score=float(scores[correct]),
                )
            )
    mistakes.sort(key=lambda m: m.correct_score - m.chosen_score)
    return mistakes[:most]


def _text(example: tf.train.Example, name: str) -> str:
    return str(_image(example, name).decode())


def _image(example: tf.train.Example, name: str) -> bytes:
    value: bytes = example.features.feature[name].bytes_list.value[0]
    return value
