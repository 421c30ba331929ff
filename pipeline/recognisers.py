"""What answers one-shot trials: an exported model, or a baseline without learning.

A recogniser takes trials and yields, for each, how near the query is to every candidate class:
`float[way]`, greater for nearer.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from data_ingest.few_shot import FewShotTrial
from pipeline.baselines import Baseline
from pipeline.trial_images import TrialImages
from serving.loader import LoadedModel

Recogniser = Callable[[Sequence[FewShotTrial]], Iterator[npt.NDArray[np.floating[Any]]]]

_LOGGER = logging.getLogger(__name__)
_BATCH: Final = 256
_BATCH_BYTES: Final = 16 * 2**20
_PAIRS_A_CALL: Final = 4096
_VECTORS_A_CALL: Final = 32_768
_KEPT_PICTURES: Final = 1024
"""More than a set of trials has: 40 classes of a query and 24 references."""
_SECONDS_A_LINE: Final = 5.0
T = TypeVar("T")


class ModelRecogniser:
    """An exported model, through its signatures alone.

    Several references of a class are used as their mean vector, which is what the gallery does:
    the logit is `match` of the query's embedding and the mean of the references' embeddings.

    Attributes:
      vectors: `float32[N, D]`, embeddings of the rows it was made for, ascending.
    """

    def __init__(self, model: LoadedModel, images: TrialImages, rows: Iterable[int]) -> None:
        """Embeds the images of these rows, each once; only their vectors are kept."""
        self._model = model
        rows = sorted(set(rows))
        self._position = np.full(len(images.index), -1, np.int64)
        self._position[rows] = np.arange(len(rows))
        batches = _batches(images.encoded(row) for row in told(rows, "images", total=len(rows)))
        parts = [model.run("embed", {"image": batch})["embedding"] for batch in batches]
        self.vectors = np.concatenate(parts)

    def __call__(self, trials: Sequence[FewShotTrial]) -> Iterator[npt.NDArray[np.floating[Any]]]:
        """Logits, `float32[way]` a trial: scores near 1 would tie in float32."""
        way, shots = np.shape(trials[0].references)
        per_call = max(1, min(_PAIRS_A_CALL // way, _VECTORS_A_CALL // (way * shots)))
        for start in range(0, len(trials), per_call):
            part = trials[start : start + per_call]
            queries = self.vectors[self._position[[trial.query for trial in part]]]
            references = self.vectors[self._position[[trial.references for trial in part]]]
            pairs = {
                "embedding_a": np.repeat(queries, way, axis=0),
                "embedding_b": references.mean(axis=2).reshape(len(part) * way, -1),
            }
            yield from self._model.run("match", pairs)["logit"].reshape(len(part), way)


class BaselineRecogniser:
    """A baseline: a class is as near as the nearest of its references."""

    def __init__(self, baseline: Baseline, images: TrialImages) -> None:
        self._baseline = baseline
        # The trials of a set have their images in common.
        self._features = lru_cache(_KEPT_PICTURES)(
            lambda row: baseline.features(images.encoded(row))
        )

    def __call__(self, trials: Sequence[FewShotTrial]) -> Iterator[npt.NDArray[np.floating[Any]]]:
        """Negated distances, `float64[way]` a trial; those of the nearest classes are exact."""
        for trial in told(trials, f"trials by {self._baseline.title}", total=len(trials)):
            query = self._features(trial.query)
            others = [self._features(row) for shots in trial.references for row in shots]
            distances = np.array(self._baseline.distances(query, others))
            yield -distances.reshape(len(trial.references), -1).min(axis=1)


def _batches(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Images in batches of so many, or, where they are large, of so many bytes."""
    batch: list[bytes] = []
    for image in encoded:
        batch.append(image)
        if len(batch) == _BATCH or sum(map(len, batch)) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def told(items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
    """The items; how many are done is logged every few seconds."""
    line = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - line >= _SECONDS_A_LINE:
            _LOGGER.info("%s of %s %s", f"{done:,}", f"{total:,}", what)
            line = time.monotonic()
        yield item
