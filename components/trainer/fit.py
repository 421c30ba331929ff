"""The training loop: compiled steps, validation, choice of the best weights, checkpoints."""

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.trainer.batches import training_feed
from components.trainer.checkpoints import FitCheckpoint
from components.trainer.devices import Accelerator
from components.trainer.model import HEAD, build_model, embedding_function
from components.trainer.pair_data import PairData
from components.trainer.progress import Progress
from components.trainer.recipe import Recipe
from components.trainer.step import StepInput, TrainingStep
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling.trials import draw_trials, largest_way

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
        if largest_way(data.index, PROTOCOL_WITHIN) < 2:
            self.protocol = PROTOCOL_BETWEEN
        self.way = min(WAY, largest_way(data.index, self.protocol))
        if self.way < 2:
            self.way = 0
            return
        drawn = list(draw_trials(data.index, self.protocol, way=self.way, trials=trials, seed=SEED))
        query = np.array([trial.query for trial in drawn])
        support = np.array([trial.support for trial in drawn])[:, :, 0]
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


T = TypeVar("T")
AHEAD: Final = 2


def prefetched(
    make: Callable[[int], T], numbers: Iterable[int], *, ahead: int = AHEAD
) -> Generator[T, None, None]:
    """`make(number)` of each number in turn, made by one thread up to `ahead` items early.

    What `make` raises is raised when its item is due, and nothing is made after it is closed.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(make, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_log = logging.getLogger(__name__)

Weights = Sequence[npt.NDArray[np.float32]]


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Progression:
    """How far a fit has come: what a checkpoint holds besides variables."""

    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    misses: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """`step`, `loss`, `accuracy` and, since the start, `seconds` of each validation."""


@dataclass(frozen=True)
class Fit:
    """A trained model and how it came about.

    Attributes:
      model: float32, with the averaged weights of the best validation.
      facts: JSON-able, for people and reports.
      checkpoint: to be removed once the model is safely stored.
    """

    model: keras.Model
    facts: dict[str, Any]
    checkpoint: FitCheckpoint


def fit(
    recipe: Recipe,
    train: PairData,
    held_out: PairData,
    *,
    accelerator: Accelerator,
    initial_weights: Weights | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    log_dir: Path | None = None,
    code_version: str = "",
) -> Fit:
    """Trains the model.

    Everything random is a function of `recipe.seed` and the step, so a fit that was killed and
    is called again with the same arguments goes on from its last checkpoint with what would have
    come next.

    Args:
      held_out: other classes, best of other groups; weights are chosen by one-shot accuracy on
        them, and by nothing else. Of no images: the last weights are kept.
      initial_weights: of a warm start, in the order of `model.get_weights()`.
      checkpoint_dir: folder, local or `gs://…`, that outlives the process; None: no checkpoints.
      checkpoint_every: steps between checkpoints.
      log_dir: where TensorBoard scalars go; None: nowhere.
      code_version: a checkpoint of another version is not continued.

    Raises:
      TrainingDiverged: the loss became NaN or infinite.
      InputError: `train` has fewer than two classes.
    """
    keras.utils.set_random_seed(recipe.seed)
    average = build_model(recipe)
    if initial_weights is not None:
        average.set_weights(initial_weights)
    feed = training_feed(train, recipe)
    epoch_steps = math.ceil(len(train.labels) / (recipe.images_per_batch / 2))
    epoch_steps = math.ceil(epoch_steps / accelerator.replicas)
    training_step = TrainingStep(recipe, average, accelerator, epoch_steps=epoch_steps)
    validate_every = recipe.validate_every or epoch_steps
    validation = OneShotValidation(held_out, trials=recipe.validation_trials)
    if not validation.way and len(held_out.index):
        _log.warning("Held-out data allow no one-shot trial: the last weights are kept.")
    embed = embedding_function(average)
    best = [tf.Variable(weight.value, trainable=False) for weight in average.weights]
    checkpoint = FitCheckpoint(
        checkpoint_dir,
        key=(
            f"{recipe.model_dump_json()} {train.fingerprint} {held_out.fingerprint} "
            f"{accelerator.replicas} {_digest(initial_weights)} {code_version}"
        ),
        variables={
            "student": training_step.student_variables,
            "optimizer": training_step.optimizer_variables,
            "average": [weight.value for weight in average.weights],
            "best": best,
        },
    )
    at = Progression(**(checkpoint.restore() or {}))
    resumed_from = at.step
    if resumed_from:
        _log.info(f"Training goes on from the checkpoint of step {resumed_from}.")
    progress = Progress(
        first=at.step,
        last=recipe.steps,
        images_per_step=recipe.images_per_batch * accelerator.replicas,
    )
    started = time.monotonic() - at.seconds

    def prepared(step: int) -> StepInput:
        first_batch = step * accelerator.replicas
        parts = [feed.batches[first_batch + replica] for replica in range(accelerator.replicas)]
        return training_step.prepare(parts, feed.images, step)

    with (
        _writer(log_dir).as_default(),
        contextlib.closing(prefetched(prepared, range(at.step, recipe.steps))) as inputs,
    ):
        while at.step < recipe.steps and not _patience_is_over(recipe, at):
            loss = training_step.run(next(inputs))
            at.step += 1
            last = at.step == recipe.steps
            if progress.step(at.step, loss) or last:
                _require_finite(progress.settle(), at.step)
                tf.summary.scalar("train/loss", progress.loss, step=at.step)
                tf.summary.scalar("train/images_per_s", progress.images_per_second, step=at.step)
                tf.summary.scalar("train/learning_rate", training_step.learning_rate, step=at.step)
            if validation.way and (at.step % validate_every == 0 or last):
                _require_finite(progress.settle(), at.step)
                accuracy = validation.accuracy(embed)
                tf.summary.scalar("validation/one_shot_accuracy", accuracy, step=at.step)
                at.history.append(
                    {
                        "step": at.step,
                        "loss": progress.loss,
                        "accuracy": accuracy,
                        "seconds": time.monotonic() - started,
                    }
                )
                progress.validated(at.step, accuracy, way=validation.way)
                # Of equals the later one: it is averaged over more steps.
                if accuracy >= at.best_accuracy:
                    at.best_accuracy, at.best_step, at.misses = accuracy, at.step, 0
                    _copy(average.weights, best)
                else:
                    at.misses += 1
            if at.step % checkpoint_every == 0 or last:
                _require_finite(progress.settle(), at.step)
                at.seconds = time.monotonic() - started
                checkpoint.save(at.step, dataclasses.asdict(at))
    if validation.way:
        _copy(best, average.weights)
    facts = {
        "steps": at.step,
        "stopped_early": at.step < recipe.steps,
        "resumed_from_step": resumed_from or None,
        "best_step": at.best_step if validation.way else at.step,
        "best_validation_accuracy": at.best_accuracy if validation.way else None,
        "validation_protocol": validation.protocol,
        "validation_way": validation.way,
        "seconds": time.monotonic() - started,
        "images_per_second": progress.average_images_per_second,
        "device": accelerator.description,
        "replicas": accelerator.replicas,
        "mixed_precision": accelerator.mixed_precision,
        "xla": accelerator.xla,
        "parameters": average.count_params(),
        "history": at.history,
    }
    return Fit(average, facts, checkpoint)


def refit(recipe: Recipe, weights: Weights, data: PairData, **how: Any) -> Fit:
    """Goes on from `weights` with `data`, of which nothing is held out.

    Args:
      how: as `fit` takes it.
    """
    nothing = data.take(np.empty(0, np.int64))
    return fit(recipe, data, nothing, initial_weights=weights, **how)


def _patience_is_over(recipe: Recipe, at: Progression) -> bool:
    over = bool(recipe.patience) and at.misses >= recipe.patience
    if over:
        _log.info(f"Stopped at step {at.step}: no better validation since step {at.best_step}.")
    return over


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {step}: lower train.learning_rate, or look for images "
            "that are all alike in the training data"
        )


def _copy(source: Sequence[Any], target: Sequence[Any]) -> None:
    for held, variable in zip(source, target, strict=True):
        variable.assign(tf.convert_to_tensor(held))


def _writer(log_dir: Path | None) -> tf.summary.SummaryWriter:
    if log_dir is None:
        return tf.summary.create_noop_writer()
    return tf.summary.create_file_writer(str(log_dir))


def _digest(weights: Weights | None) -> str:
    digest = hashlib.sha256()
    for weight in weights or ():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]
