"""Trials that a model got wrong, with the images, for a person to look at."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_ingest.features import Pair, read_pairs, serialize_pair
from data_ingest.protocols import ONE_SHOT_SPLIT, PROTOCOL_OFFICIAL, PROTOCOL_WITHIN
from serving.loader import LoadedModel

_BATCH = 2000

Floats = npt.NDArray[np.float32]


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

    A trial whose right candidate ties with a wrong one counts as wrong, by no margin.

    Args:
      model: folder of a SavedModel with the `examples` signature.
      examples: URI of an Examples artifact with a `one_shot` split.
      most: how many at the most.
    """
    by_protocol: dict[str, list[Pair]] = defaultdict(list)
    for pair in read_pairs(examples / f"Split-{ONE_SHOT_SPLIT}"):
        by_protocol[pair.protocol].append(pair)
    pairs = by_protocol[PROTOCOL_OFFICIAL] or by_protocol[PROTOCOL_WITHIN]
    if not pairs:
        return []
    logits, scores = _scored(model, pairs)
    trials: dict[str, list[int]] = defaultdict(list)
    for position, pair in enumerate(pairs):
        trials[pair.trial].append(position)
    mistakes: list[tuple[float, Mistake]] = []
    for trial, positions in trials.items():
        correct = next(p for p in positions if pairs[p].label)
        # By logit: scores near 1 are equal in float32.
        chosen = max((p for p in positions if p != correct), key=lambda p: float(logits[p]))
        margin = float(logits[chosen] - logits[correct])
        if margin >= 0:
            mistake = Mistake(
                trial=trial,
                query=pairs[chosen].image_a,
                chosen=pairs[chosen].image_b,
                correct=pairs[correct].image_b,
                chosen_score=float(scores[chosen]),
                correct_score=float(scores[correct]),
            )
            mistakes.append((margin, mistake))
    mistakes.sort(key=lambda entry: -entry[0])
    return [mistake for _, mistake in mistakes[:most]]


def _scored(model: Path, pairs: list[Pair]) -> tuple[Floats, Floats]:
    """Logits and scores of the pairs."""
    serialized = [serialize_pair(pair) for pair in pairs]
    with LoadedModel(model) as loaded:
        parts = [
            loaded.run("examples", {"examples": np.array(serialized[i : i + _BATCH], object)})
            for i in range(0, len(serialized), _BATCH)
        ]
    logits, scores = (np.concatenate([part[name] for part in parts]) for name in ("logit", "score"))
    return logits, scores
