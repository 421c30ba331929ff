"""What a model makes of images that it was not trained on."""

from collections.abc import Callable
from typing import Final

import keras
import numpy as np
import numpy.typing as npt

from components.model import HEAD, embedding_function
from components.train_data import PairData
from data_ingest.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling import between_group_trials, largest_way, within_group_trials

WAY: Final = 20
IMAGES_A_BATCH: Final = 256
SEED: Final = 20

Floats = npt.NDArray[np.float32]


class OneShotValidation:
    """One-shot trials over the distinct images of the `eval` records: weights are chosen by them.

    Within groups, 20 candidates; where no group has 20 usable classes, as many as one has; where
    no group has two, between groups.

    Attributes:
      protocol: 'within' or 'between'.
      way: candidates in a trial; 0 where the data allows no trial at all.
    """

    def __init__(self, data: PairData, *, trials: int) -> None:
        self.protocol = PROTOCOL_WITHIN
        draw = within_group_trials
        if largest_way(data.index, PROTOCOL_WITHIN) < 2:
            self.protocol, draw = PROTOCOL_BETWEEN, between_group_trials
        self.way = min(WAY, largest_way(data.index, self.protocol))
        if self.way < 2:
            self.way = 0
            return
        drawn = list(draw(data.index, way=self.way, trials=trials, seed=SEED))
        query = np.array([trial.query for trial in drawn])
        support = np.array([trial.support for trial in drawn])
        self._answer = np.array([trial.answer for trial in drawn])
        used = np.unique(np.concatenate([query, support.ravel()]))
        self._query = np.searchsorted(used, query)
        self._support = np.searchsorted(used, support)
        self._images = data.images[used]

    def accuracy(self, embed: Callable[[npt.NDArray[np.uint8]], Floats]) -> float:
        """Share of trials whose nearest candidate in L1 is the right one.

        Candidates that tie share the credit, so an embedding that collapsed scores `1 / way`.

        Args:
          embed: `uint8[N, S, S]` to the weighted embeddings `float32[N, D]`.
        """
        embeddings = embed_all(embed, self._images)
        credit = 0.0
        for query, support, answer in zip(self._query, self._support, self._answer, strict=True):
            distances = np.abs(embeddings[support] - embeddings[query]).sum(axis=1)
            best = distances == distances.min()
            credit += best[answer] / best.sum()
        return float(credit / len(self._query))


def embed_all(
    embed: Callable[[npt.NDArray[np.uint8]], Floats], images: npt.NDArray[np.uint8]
) -> Floats:
    """Embeds `uint8[n, S, S]` in batches of one size: `float32[n, D]`."""
    blocks = []
    for start in range(0, len(images), IMAGES_A_BATCH):
        block = images[start : start + IMAGES_A_BATCH]
        # One shape only: a compiled function would otherwise be compiled again for the remainder.
        full = np.resize(block, (IMAGES_A_BATCH, *images.shape[1:])) if start else block
        blocks.append(embed(full)[: len(block)])
    return np.concatenate(blocks)


def pair_logits(model: keras.Model, data: PairData) -> Floats:
    """`float32[P]`: the logits of the pairs of `data`."""
    vectors = embed_all(embedding_function(model), data.images)
    first, second = vectors[data.pairs[:, 0]], vectors[data.pairs[:, 1]]
    logits: Floats = float(model.get_layer(HEAD).b0) - np.abs(first - second).sum(axis=1)
    return logits
