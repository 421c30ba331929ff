"""Run by a test in a process of its own: devices must be split before TensorFlow starts."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[3]))

from components.trainer.batches import training_feed
from components.trainer.devices import Accelerator
from components.trainer.fit import fit
from components.trainer.model import build_model
from components.trainer.step import TrainingStep
from tests.pair_records import tiny_data, tiny_recipe


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    accelerator = Accelerator(strategy, mixed_precision=False, xla=False, description="2 halves")
    assert accelerator.replicas == 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = tiny_data(folder / "train", groups=4, classes=5)
        held_out = tiny_data(folder / "eval", first=7)
        recipe = tiny_recipe(steps=8, validate_every=4)

        first = fit(
            recipe,
            train,
            held_out,
            accelerator=accelerator,
            checkpoint_dir=folder,
            checkpoint_every=4,
        )
        assert first.facts.replicas == 2
        assert all(np.isfinite(weight).all() for weight in first.model.get_weights())
        first.checkpoint.remove()

        # Both replicas hold the same trained weights, and they are not those of the start.
        average = build_model(recipe)
        step = TrainingStep(recipe, average, accelerator)
        start = [variable.numpy() for variable in step.trained_variables]
        feed = training_feed(train, recipe)
        for number in range(3):
            parts = [feed.batches[2 * number], feed.batches[2 * number + 1]]
            step.run(step.prepare(parts, feed.images, number))
        for variable, before in zip(step.trained_variables, start, strict=True):
            halves = [half.numpy() for half in strategy.experimental_local_results(variable)]
            np.testing.assert_array_equal(halves[0], halves[1])
            assert np.abs(halves[0] - before).max() > 0, variable.name


if __name__ == "__main__":
    main()
