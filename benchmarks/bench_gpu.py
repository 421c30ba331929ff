"""Measures how fast training is on GPUs, how busy they are, and how long a good model takes.

    python -m benchmarks.bench_gpu --data /data/omniglot --json bench_gpu.json

Nothing is configured: the Trainer finds the GPUs, and takes bfloat16, XLA and larger batches by
itself. Without a GPU it says so and ends with exit code 2.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from components.trainer.recipe import Preset

COUNT: Final = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"


def gpus() -> int:
    """How many TensorFlow finds; what it prints meanwhile is not shown."""
    command = [sys.executable, "-c", COUNT]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(asked.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 done, 2 no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="images; by default as `oneshot run` finds them")
    parser.add_argument("--preset", choices=get_args(Preset), default="fast")
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--target", type=float, default=0.9, help="one-shot accuracy on held-out alphabets"
    )
    parser.add_argument("--json", type=Path, help="where to write the results; default: stdout")
    options = parser.parse_args(argv)
    if not gpus():
        sys.stderr.write(
            "bench_gpu: TensorFlow finds no GPU, nothing was measured; "
            "`make setup GPU=1` installs CUDA for it\n"
        )
        return 2
    # Imports TensorFlow, which prints several lines.
    from benchmarks.gpu_training import measure
    from benchmarks.training_tables import show

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as scratch:
        for report in measure(options, Path(scratch)):
            text = json.dumps(report, indent=2) + "\n"
            if options.json is not None:
                options.json.write_text(text, encoding="utf-8")
    show(report)
    if options.json is None:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
