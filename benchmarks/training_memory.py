"""Measures the memory that training takes; `bench_train` runs it in a process of its own."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.machine import memory_of
from benchmarks.training_rounds import BareSteps, read_split
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit
from components.trainer.recipe import TrainSettings


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    recipe = TrainSettings(preset=arguments.preset).recipe()
    accelerator = choose_accelerator()
    # What TensorFlow and a compiled step take, whatever the data.
    held_out = read_split(arguments.records, "eval", recipe)
    BareSteps(recipe, held_out, accelerator)
    before = memory_of().resident
    train = read_split(arguments.records, "train", recipe)
    read = memory_of().resident
    short = {"steps": arguments.steps, "validate_every": arguments.steps}
    fit(recipe.model_copy(update=short), train, held_out, accelerator=accelerator)
    trained = memory_of()
    result = {
        "pairs": len(train.labels),
        "images": len(train.index),
        "before_mib": round(before),
        "read_mib": round(read - before),
        "trained_mib": round(trained.resident - before),
        "most_mib": round(trained.most),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
