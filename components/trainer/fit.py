"""Fits the network: the training loop, one-shot validation, the choice of the best weights.

The loop is written by hand, though `Model.fit` with a `train_step` gives the same weights to the
bit. Keras's `BackupAndRestore` (3.15) writes weights and epoch to two files: killed between them,
60 steps became 80 and a weight was off by 2.8, while here variables and progress become visible
together. `Model.fit` also costs 1.3 to 1.6 core-ms a step more, which is 1 % of a step of `fast`
on a CPU, and a third of one on an H100 (docs/decisions.md).
"""

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
from components.trainer.board import show_batch
from components.trainer.checkpoints import FitCheckpoint, StopSignals
from components.trainer.devices import Accelerator
from components.trainer.model import build_model, changing, embed_all, embedding_function
from components.trainer.pair_data import Images, PairData
from components.trainer.progress import Progress
from components.trainer.recipe import Recipe
from components.trainer.step import StepInput, TrainingStep
from data_ingest.progress import step
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling.trials import Trial, draw_trials, largest_way

WAY: Final = 20
"""Candidates in a trial of the validation, where the data have as many classes."""
SEED: Final = 20
"""Of the trials of the validation."""
AHEAD: Final = 2
"""Steps whose input is made ready before they are due."""

Floats = npt.NDArray[np.float32]
Weights = Sequence[Floats]
T = TypeVar("T")

_log = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Facts:
    """How a fit went, as `training.json` says it."""

    steps: int
    stopped_early: bool
    resumed_from_step: int | None
    best_step: int
    best_validation_accuracy: float | None
    """None where nothing was validated."""
    validation_protocol: str
    validation_way: int
    validation_classes: int
    seconds: float
    images_per_second: float
    device: str
    replicas: int
    mixed_precision: bool
    xla: bool
    parameters: int
    history: list[dict[str, float]]
    """`step`, `loss`, `accuracy` and, since the start, `seconds` of each validation."""


@dataclass(frozen=True)
class Fit:
    """A trained model and how it came about."""

    model: keras.Model
    """float32, with the averaged weights of the best validation."""
    facts: Facts
    checkpoint: FitCheckpoint
    """To be removed once the model is safely stored."""


@dataclass
class _State:
    """How far a fit has come: what a checkpoint holds besides variables."""

    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    misses: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def validated(self, accuracy: float, *, loss: float, seconds: float) -> bool:
        """Notes a validation; True if none was better."""
        self.history.append(
            {"step": self.step, "loss": loss, "accuracy": accuracy, "seconds": seconds}
        )
        # Of equals the later one: it is averaged over more steps.
        if accuracy < self.best_accuracy:
            self.misses += 1
            return False
        self.best_accuracy, self.best_step, self.misses = accuracy, self.step, 0
        return True

    def patience_is_over(self, recipe: Recipe) -> bool:
        over = bool(recipe.patience) and self.misses >= recipe.patience
        if over:
            _log.info(
                f"Stopped at step {self.step}: no better validation since step {self.best_step}."
            )
        return over


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
    name: str = "Training",
) -> Fit:
    """Trains the model.

    Everything random is a function of `recipe.seed` and the step, so a fit that was killed and
    is called again with the same arguments goes on from its last checkpoint with what would have
    come next. A signal that ends the process does so between two steps, after a checkpoint.

    Args:
      held_out: other classes, best of other groups; weights are chosen by one-shot accuracy on
        them, and by nothing else. Of no images: the last weights are kept.
      initial_weights: of a warm start, in the order of `model.get_weights()`.
      checkpoint_dir: folder, local or `gs://…`, that outlives the process; None: no checkpoints.
      checkpoint_every: steps between checkpoints.
      log_dir: where curves and some batches go, for TensorBoard; None: nowhere.
      code_version: a checkpoint of another version is not continued.
      name: what it is called while it goes on.

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
    validate_every = recipe.validate_every or epoch_steps
    training_step = TrainingStep(recipe, average, accelerator, epoch_steps=epoch_steps)
    validation = OneShotValidation(held_out, trials=recipe.validation_trials)
    if not validation.way and len(held_out.index):
        _log.warning("Held-out data allow no one-shot trial: the last weights are kept.")
    embed = embedding_function(average)
    averages = changing(average)
    best = [tf.Variable(weight.value, trainable=False) for weight in averages]
    checkpoint = FitCheckpoint(
        checkpoint_dir,
        key=(
            f"{recipe.model_dump_json()} {train.fingerprint} {held_out.fingerprint} "
            f"{accelerator.replicas} {_digest(initial_weights)} {code_version}"
        ),
        variables={
            "student": training_step.student_variables,
            "optimizer": training_step.optimizer_variables,
            "average": [weight.value for weight in averages],
            "best": best,
        },
    )
    at = _State(**(checkpoint.restore() or {}))
    resumed_from = at.step
    if resumed_from:
        _log.info(f"Training goes on from the checkpoint of step {resumed_from}.")
    images_per_step = recipe.images_per_batch * accelerator.replicas
    started = time.monotonic() - at.seconds

    def prepared(step: int) -> StepInput:
        first_batch = step * accelerator.replicas
        parts = [feed.batches[first_batch + replica] for replica in range(accelerator.replicas)]
        return training_step.prepare(parts, feed.images, step)

    with (
        StopSignals() as stop,
        _writer(log_dir).as_default(),
        contextlib.closing(prefetched(prepared, range(at.step, recipe.steps))) as inputs,
        step(name, recipe.steps, done=at.step, logged=False) as shown,
    ):
        progress = Progress(
            shown, first=at.step, last=recipe.steps, images_per_step=images_per_step
        )
        while at.step < recipe.steps and not at.patience_is_over(recipe):
            ready = next(inputs)
            if log_dir is not None and (at.step == resumed_from or at.step % validate_every == 0):
                show_batch(training_step.shown(ready), at.step)
            loss = training_step.run(ready)
            at.step += 1
            last = at.step == recipe.steps
            logs = progress.step(at.step, loss) or last
            validates = bool(validation.way) and (at.step % validate_every == 0 or last)
            stops = stop.came
            saves = at.step % checkpoint_every == 0 or last or stops
            if logs or validates or saves:
                _require_finite(progress.settle(), at.step)
            if logs:
                tf.summary.scalar("train/loss", progress.loss, step=at.step)
                tf.summary.scalar("train/images_per_s", progress.images_per_second, step=at.step)
                tf.summary.scalar("train/learning_rate", training_step.learning_rate, step=at.step)
            if validates:
                accuracy = validation.accuracy(embed)
                tf.summary.scalar("validation/one_shot_accuracy", accuracy, step=at.step)
                seconds = time.monotonic() - started
                is_best = at.validated(accuracy, loss=progress.loss, seconds=seconds)
                progress.validated(
                    at.step, accuracy, way=validation.way, classes=validation.classes
                )
                if is_best:
                    _copy(averages, best)
            if saves:
                at.seconds = time.monotonic() - started
                checkpoint.save(at.step, dataclasses.asdict(at))
            if stops:
                _log.info(f"Stopped from outside, after step {at.step}.")
                stop.obey()
    if validation.way:
        _copy(best, averages)
    facts = Facts(
        steps=at.step,
        stopped_early=at.step < recipe.steps,
        resumed_from_step=resumed_from or None,
        best_step=at.best_step if validation.way else at.step,
        best_validation_accuracy=at.best_accuracy if validation.way else None,
        validation_protocol=validation.protocol,
        validation_way=validation.way,
        validation_classes=validation.classes,
        seconds=time.monotonic() - started,
        images_per_second=progress.average_images_per_second,
        device=accelerator.description,
        replicas=accelerator.replicas,
        mixed_precision=accelerator.mixed_precision,
        xla=accelerator.xla,
        parameters=average.count_params(),
        history=at.history,
    )
    return Fit(average, facts, checkpoint)


def fit_stages(
    recipe: Recipe,
    train: PairData,
    held_out: PairData,
    everything: PairData | None,
    *,
    initial_weights: Weights | None = None,
    log_dir: Path | None = None,
    **how: Any,
) -> list[Fit]:
    """The fit that held-out images judge and, where the recipe asks for it, a refit after it.

    A refit goes on from the chosen weights with all images, of which nothing is held out.

    Args:
      everything: all images to refit with; None where the recipe has no refit.
      how: as `fit` takes it.
    """
    judged, last = recipe.stages()
    fits = [fit(judged, train, held_out, initial_weights=initial_weights, log_dir=log_dir, **how)]
    if last is not None and everything is not None:
        _log.info(f"Refit: {last.steps} steps on all images, the held-out ones too")
        nothing = everything.take(np.empty(0, np.int64))
        chosen = fits[0].model.get_weights()
        log_dir = log_dir / "refit" if log_dir else None
        how = {**how, "initial_weights": chosen, "log_dir": log_dir, "name": "Refit"}
        fits.append(fit(last, everything, nothing, **how))
    return fits


class OneShotValidation:
    """One-shot trials over the distinct images of the `eval` records: weights are chosen by them.

    Within groups, 20 candidates; where no group has 20 usable classes, as many as one has; where
    no group has two, between groups.

    Attributes:
      protocol: 'within' or 'between'.
      way: candidates in a trial; 0 where the data allows no trial at all.
      classes: how many classes there are.
    """

    def __init__(self, data: PairData, *, trials: int) -> None:
        self.classes = len(data.index.genuine)
        self.protocol = PROTOCOL_WITHIN
        if largest_way(data.index, PROTOCOL_WITHIN) < 2:
            self.protocol = PROTOCOL_BETWEEN
        self.way = min(WAY, largest_way(data.index, self.protocol))
        if self.way < 2:
            self.way = 0
            return
        drawn = [*draw_trials(data.index, self.protocol, way=self.way, trials=trials, seed=SEED)]
        used = sorted({row for trial in drawn for row in trial.images})
        self._images = data.images[used]
        place = {row: at for at, row in enumerate(used)}
        self._trials = [
            trial._replace(
                query=place[trial.query], support=tuple((place[row],) for (row,) in trial.support)
            )
            for trial in drawn
        ]

    def accuracy(self, embed: Callable[[Images], Floats]) -> float:
        """Share of trials that `embed` gets right: `one_shot_accuracy`.

        Args:
          embed: `uint8[N, H, W, C]` to the weighted embeddings `float32[N, D]`.
        """
        return one_shot_accuracy(embed_all(embed, self._images), self._trials)


def one_shot_accuracy(vectors: Floats, trials: Sequence[Trial]) -> float:
    """Share of trials whose nearest candidate in L1 is the right one.

    Candidates that tie share the credit, so an embedding that collapsed scores `1 / way`.

    Args:
      vectors: `float32[n, D]`, weighted embeddings of the images that the trials point at.
      trials: of one shot.
    """
    credit = 0.0
    for trial in trials:
        support = vectors[[row for (row,) in trial.support]]
        distances = np.abs(support - vectors[trial.query]).sum(axis=1)
        best = distances == distances.min()
        credit += best[trial.answer] / best.sum()
    return float(credit / len(trials))


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
