"""Has recognisers answer one-shot trials: an exported model, or whatever else ranks the classes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from components.evaluator.statistics import trial_credit
from data_ingest.progress import counted
from data_ingest.sampling.draws import Ints
from data_ingest.sampling.trials import Trial
from serving.saved_model.loader import LoadedModel

_BATCH: Final = 256
_BATCH_BYTES: Final = 16 * 2**20
_PAIRS_A_CALL: Final = 4096
_VECTORS_A_CALL: Final = 32_768

Floats = npt.NDArray[np.floating[Any]]
EncodedImage = Callable[[int], bytes]
"""Gives the bytes of an image, by the number that trials have for it."""
Recogniser = Callable[[Sequence[Trial]], Iterator[Floats]]
"""Gives for each trial how near its query is to each class, `[way]`; the greatest is nearest."""


class Wrong(NamedTuple):
    """A trial that was not won."""

    trial: Trial
    chosen: int
    """Position of the nearest of the wrong classes."""
    chosen_nearness: float
    right_nearness: float

    @property
    def margin(self) -> float:
        """By how much the chosen class is nearer than the right one; 0 where they tie."""
        return self.chosen_nearness - self.right_nearness


class Answers(NamedTuple):
    """What a recogniser made of trials."""

    earned: list[float]
    """Credit of each, in [0, 1]."""
    wrong: list[Wrong]


def answer(recogniser: Recogniser, trials: Sequence[Trial]) -> Answers:
    """Has a recogniser answer trials, all of as many ways and shots."""
    answers = Answers([], [])
    for trial, nearness in zip(trials, recogniser(trials), strict=True):
        right = np.arange(trial.way) == trial.answer
        credit = trial_credit(right.astype(np.int64), nearness, trial.way)
        if credit is None:
            raise ValueError(f"{trial.trial_id} is malformed")
        answers.earned.append(credit)
        if credit < 1:
            chosen = int(np.argmax(np.where(right, -np.inf, nearness)))
            near = (float(nearness[chosen]), float(nearness[trial.answer]))
            answers.wrong.append(Wrong(trial, chosen, *near))
    return answers


class ModelRecogniser:
    """An exported model, through its signatures alone.

    Several support images of a class are used as their mean vector, which is what the gallery
    does: the logit is `match` of the query's embedding and the mean of the support's embeddings.
    """

    def __init__(
        self,
        model: LoadedModel,
        encoded: EncodedImage,
        trials: Iterable[Trial],
        *,
        others: Iterable[int] = (),
    ) -> None:
        """Embeds the images of these trials and others, each once; only their vectors are kept."""
        self._model = model
        images = sorted({image for trial in trials for image in trial.images}.union(others))
        self._position = np.full(images[-1] + 1, -1, np.int64)
        self._position[images] = np.arange(len(images))
        self._vectors = embed(model, encoded, images)

    def __call__(self, trials: Sequence[Trial]) -> Iterator[Floats]:
        """Logits, `float32[way]` a trial: scores near 1 would tie in float32."""
        way, shots = np.shape(trials[0].support)
        per_call = max(1, min(_PAIRS_A_CALL // way, _VECTORS_A_CALL // (way * shots)))
        for start in range(0, len(trials), per_call):
            part = trials[start : start + per_call]
            queries = self._vectors[self._position[[trial.query for trial in part]]]
            support = self._vectors[self._position[[trial.support for trial in part]]]
            pairs = {
                "embedding_a": np.repeat(queries, way, axis=0),
                "embedding_b": support.mean(axis=2).reshape(len(part) * way, -1),
            }
            yield from self._model.run("match", pairs)["logit"].reshape(len(part), way)

    def vectors(self, images: Sequence[int]) -> Floats:
        """Embeddings of images by their numbers, `float32[N, D]`."""
        found: Floats = self._vectors[self._position[list(images)]]
        return found

    def verify(self, queries: Ints, references: Ints) -> Floats:
        """Logits of images and what they claim to be, `float32[N]`.

        Args:
          queries: `[N]`, numbers of images.
          references: `[N, R]`, those of one class.
        """
        logits = []
        per_call = max(1, min(_PAIRS_A_CALL, _VECTORS_A_CALL // references.shape[1]))
        for start in range(0, len(queries), per_call):
            part = slice(start, start + per_call)
            pairs = {
                "embedding_a": self._vectors[self._position[queries[part]]],
                "embedding_b": self._vectors[self._position[references[part]]].mean(axis=1),
            }
            logits.append(self._model.run("match", pairs)["logit"].reshape(-1))
        return np.concatenate(logits)


def embed(model: LoadedModel, encoded: EncodedImage, images: Sequence[int]) -> Floats:
    """Embeddings of images, `float32[N, D]`."""
    listed = counted(images, "Embedding images", len(images))
    batches = _batches(encoded(image) for image in listed)
    return np.concatenate([model.run("embed", {"image": batch})["embedding"] for batch in batches])


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
