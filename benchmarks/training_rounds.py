"""Writes pair records and times rounds of steps, for the benchmarks of training.

The records are those that the pipeline makes of the same images.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import keras
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import Pipeline

from components.trainer.batches import training_feed
from components.trainer.devices import Accelerator
from components.trainer.fit import fit, one_shot_accuracy
from components.trainer.model import build_model, embed_all, embedding_function
from components.trainer.pair_data import PairData, image_decoder, read_pair_data
from components.trainer.recipe import Recipe
from components.trainer.step import StepInput, TrainingStep
from data_ingest.records.catalog import RUNS
from data_ingest.records.read import list_inputs
from data_ingest.records.write import write_pairs
from data_ingest.sampling.official_runs import read_official_runs
from data_ingest.settings import DatasetSettings, PairSettings
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.layout import ImageReader
from data_ingest.sources.resolve import resolve

STEPS: Final = 16
"""Of a round."""


def write_records(folder: Path, *, data: Path | None, pairs: int) -> None:
    """Writes the records of all splits under `folder`.

    Args:
      data: where the images are; None: where `oneshot run` finds them.
      pairs: of the split to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _images(data, folder)
    settings = PairSettings(train_pairs=pairs)
    # Apache Beam looks for a runner to download, unless one is named.
    with Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        write_pairs(
            pipeline,
            list_inputs(found.containers()),
            settings,
            directory=str(folder),
            max_rejected_share=0.01,
        )


def official_runs(data: Path | None) -> Path | None:
    """Where Omniglot's official runs are; None where the data has none."""
    return next(iter(_images(data, None).containers().get(RUNS, ())), None)


def _images(data: Path | None, scratch: Path | None) -> Dataset:
    synthetic = scratch or Path(tempfile.gettempdir())
    return resolve(DatasetSettings(), data=data, environ=os.environ, synthetic_dir=synthetic)


def read_split(folder: Path, split: str, recipe: Recipe) -> PairData:
    return read_pair_data([f"{folder}/Split-{split}/*"], recipe.preprocessing)


class Timing(NamedTuple):
    """Seconds of the clock, and of all cores of this process together.

    Where others use the machine, the clock says more about them than about what is measured.
    """

    clock: float
    cores: float

    @classmethod
    def now(cls) -> "Timing":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Timing") -> "Timing":
        return Timing(self.clock - start.clock, self.cores - start.cores)


class Round(NamedTuple):
    """The same number of steps, a moment apart."""

    loop: Timing
    """In the Trainer's own loop."""
    bare: Timing
    """The step function alone, fed from tensors that are ready."""


def rounds_of(
    recipe: Recipe,
    data: tuple[PairData, PairData],
    accelerator: Accelerator,
    *,
    rounds: int,
) -> list[Round]:
    """Runs the Trainer's `fit`, which is held up every `STEPS` steps for as many bare ones.

    Args:
      data: to train on, and held out.
    """
    found: list[Round] = []

    class Stopwatch(TrainingStep):
        """Times both at the places where the loop calls it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._ready: list[StepInput] = []
            self._loss = tf.constant(0.0)
            self._start = Timing(0.0, 0.0)

        def run(self, ready: StepInput) -> tf.Tensor:
            self._ready.append(ready)
            if len(self._ready) > STEPS:
                float(self._loss)
                loop = Timing.now().since(self._start)
                inputs, self._ready = self._ready[:-1], self._ready[-1:]
                bare = timed_steps(self._bare, inputs)
                # The first round compiles.
                found.append(Round(loop, bare))
                self._start = Timing.now()
            self._loss = self._bare(ready)
            return self._loss

        def _bare(self, ready: StepInput) -> tf.Tensor:
            return super().run(ready)

    steps = STEPS * (rounds + 1) + 1
    short = recipe.model_copy(
        update={"steps": steps, "validate_every": steps, "validation_trials": 1}
    )
    with mock.patch("components.trainer.fit.TrainingStep", Stopwatch):
        fit(short, *data, accelerator=accelerator)
    return found[1:]


def timed_steps(run: Callable[[StepInput], tf.Tensor], inputs: Sequence[StepInput]) -> Timing:
    start = Timing.now()
    for ready in inputs:
        loss = run(ready)
    float(loss)
    return Timing.now().since(start)


class BareSteps:
    """A step function and an input for it."""

    def __init__(self, recipe: Recipe, train: PairData, accelerator: Accelerator) -> None:
        self.step = TrainingStep(recipe, build_model(recipe), accelerator)
        feed = training_feed(train, recipe)
        parts = [feed.batches[replica] for replica in range(accelerator.replicas)]
        self.ready = self.step.prepare(parts, feed.images, 0)
        float(self.step.run(self.ready))


def official_accuracy(model: keras.Model, runs: Path, recipe: Recipe) -> tuple[float, int]:
    """Share of the official trials that are right, and how many there are; ties share."""
    official = read_official_runs(runs)
    with ImageReader() as reader:
        encoded = [reader.read(image) for image in official.images]
    drawings = image_decoder(recipe.preprocessing)(encoded)
    vectors = embed_all(embedding_function(model), drawings)
    return one_shot_accuracy(vectors, official.trials), len(official.trials)
