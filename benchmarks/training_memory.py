"""How much memory training takes: `python -m benchmarks.training_memory`, a process of its own."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Final

from benchmarks.training_rounds import BareSteps, read_split
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit
from components.trainer.recipe import TrainSettings

MIB: Final = 1024


def memory() -> dict[str, int]:
    """Of this process, MiB: resident now, and the most it ever was."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return {"resident": int(found["VmRSS"]) // MIB, "most": int(found["VmHWM"]) // MIB}


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
    before = memory()
    train = read_split(arguments.records, "train", recipe)
    read = memory()
    short = {"steps": arguments.steps, "validate_every": arguments.steps}
    fit(recipe.model_copy(update=short), train, held_out, accelerator=accelerator)
    trained = memory()
    result = {
        "pairs": len(train.labels),
        "images": len(train.index),
        "before_mib": before["resident"],
        "read_mib": read["resident"] - before["resident"],
        "trained_mib": trained["resident"] - before["resident"],
        "most_mib": trained["most"],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
