"""Trains on GPUs for `bench_gpu`: how busy they are, how fast steps are, when a model is good."""

import argparse
import logging
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.bench_train import described, profile, rates, whole_training
from benchmarks.training_rounds import (
    STEPS,
    BareSteps,
    official_runs,
    read_split,
    rounds_of,
    write_records,
)
from components.trainer.devices import choose_accelerator
from components.trainer.recipe import TrainSettings

ASKED: Final = ("utilization.gpu", "memory.used", "power.draw")
"""Percent of the time in which a kernel ran, MiB, watts."""
EVERY_MS: Final = 200
_log = logging.getLogger(__name__)


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Fills `found` with what `nvidia-smi` saw meanwhile; with nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    try:
        watcher = subprocess.Popen(
            [*command, f"--loop-ms={EVERY_MS}"], stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        _log.warning("nvidia-smi is not installed: the GPU's utilisation is not measured")
        yield
        return
    try:
        yield
    finally:
        watcher.terminate()
        output, _ = watcher.communicate()
        found.update(averages(output.splitlines()))


def averages(lines: Sequence[str]) -> dict[str, float]:
    """Means of what `nvidia-smi` printed, by name; figures it does not know are left out."""
    columns: dict[str, list[float]] = {name: [] for name in ASKED}
    for line in lines:
        values = line.split(",")
        if len(values) != len(ASKED):
            continue  # It was stopped in the middle of its last line.
        for name, value in zip(ASKED, values, strict=True):
            if value.strip().replace(".", "", 1).isdigit():
                columns[name].append(float(value))
    return {name: statistics.mean(values) for name, values in columns.items() if values}


def seconds_to(history: Sequence[Mapping[str, float]], target: float) -> float | None:
    """From the start of training to the first validation that reached the target."""
    return next((one["seconds"] for one in history if one["accuracy"] >= target), None)


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Trains to the end, watched, then measures steps.

    Yields the report whenever it has grown: GPUs are lent by the minute, and the parts of a step
    take the longest to compile.
    """
    accelerator = choose_accelerator()
    recipe = TrainSettings(preset=options.preset).recipe(gpus=accelerator.gpus)
    write_records(folder, data=options.data, pairs=options.pairs)
    data = (read_split(folder, "train", recipe), read_split(folder, "eval", recipe))
    report: dict[str, Any] = {
        "preset": options.preset,
        **described(accelerator),
        "recipe": recipe.model_dump(mode="json"),
        "mixed_precision": accelerator.mixed_precision,
        "xla": accelerator.xla,
        "gpu": {},
    }
    with watched(report["gpu"]):
        report["training"] = whole_training(recipe, data, official_runs(options.data), accelerator)
    report["target"] = options.target
    report["seconds_to_target"] = seconds_to(report["training"]["history"], options.target)
    yield report
    report["rates"] = rates(
        rounds_of(recipe, data, accelerator, rounds=options.rounds),
        images=STEPS * recipe.images_per_batch * accelerator.replicas,
        on_cpu=False,
    )
    yield report
    if accelerator.replicas == 1:
        bare = BareSteps(recipe, data[0], accelerator)
        report["profile"] = profile(bare, accelerator, rounds=options.rounds)
        yield report
