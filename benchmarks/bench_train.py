"""Measures how fast training is, and what its steps are made of.

    python -m benchmarks.bench_train --data /data/omniglot --json bench_train.json

Measures, round after round in turn, and by the time of the cores as well as by the clock, so that
others on the machine disturb little:

- the Trainer's own loop against the same step function fed from tensors that are ready;
- the parts of a step, and every convolution of it alone, against the machine's measured peak;
- memory with the pairs asked for and with ten times as many, each in a process of its own.

With `--to-the-end` it also trains the preset to its end and measures the official one-shot task.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from benchmarks.machine import machine
from benchmarks.step_profile import breakdown, large_products, parts, products, timings
from benchmarks.training_rounds import (
    STEPS,
    BareSteps,
    Round,
    official_accuracy,
    official_runs,
    read_split,
    rounds_of,
    write_records,
)
from benchmarks.training_tables import show
from components.trainer.devices import Accelerator, choose_accelerator
from components.trainer.fit import fit
from components.trainer.pair_data import PairData
from components.trainer.recipe import Preset, Recipe, TrainSettings

LOOP_TARGET: Final = 0.95
AUGMENTATION_TARGET: Final = 0.10
MORE_PAIRS: Final = 10
_log = logging.getLogger(__name__)


def described(accelerator: Accelerator) -> dict[str, str]:
    """What the figures depend on."""
    return {"device": accelerator.description, **machine("tensorflow", "keras")}


def rates(found: list[Round], *, images: int, on_cpu: bool) -> dict[str, Any]:
    """Images a second of the Trainer's loop and of bare steps, and their ratio, round by round.

    Args:
      images: of a round.
      on_cpu: the cores' time is that of the step.
    """
    clock = [one.bare.clock / one.loop.clock for one in found]
    cores = [one.bare.cores / one.loop.cores for one in found]
    judged = statistics.median(cores if on_cpu else clock)
    return {
        "loop_images_per_second": images / statistics.median(one.loop.clock for one in found),
        "bare_images_per_second": images / statistics.median(one.bare.clock for one in found),
        "loop_images_per_core_second": images / statistics.median(one.loop.cores for one in found),
        "bare_images_per_core_second": images / statistics.median(one.bare.cores for one in found),
        "ratio_by_clock": spread(clock),
        "ratio_by_cores": spread(cores),
        "rounds": [[*one.loop, *one.bare] for one in found],
        "target_met": judged >= LOOP_TARGET,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def profile(bare: BareSteps, accelerator: Accelerator, *, rounds: int) -> dict[str, Any]:
    """What a step is made of, and its products against the machine's peak.

    On a CPU all times are those of the cores together, which others' work hardly changes.
    """
    at = 1 if accelerator.gpus == 0 else 0
    found = timings(parts(bare, xla=accelerator.xla), rounds=rounds)
    times = {name: one[at] for name, one in found.items()}
    step = times["whole step"]
    alone = {f"{one.layer} {one.direction}": one for one in products(bare)}
    large = large_products("bfloat16" if accelerator.mixed_precision else "float32")
    calls = {name: one.call for name, one in alone.items()}
    calls |= {name: call for name, (_, call) in large.items()}
    spent = {name: one[at] for name, one in timings(calls, rounds=rounds).items()}
    rate = {name: one.operations / 1e9 / spent[name] for name, one in alone.items()}
    peaks = {name: operations / 1e9 / spent[name] for name, (operations, _) in large.items()}
    top = max([*peaks.values(), *rate.values()])
    operations = sum(one.operations for one in alone.values()) / 1e9
    products_time = sum(spent[name] for name in alone)
    split = breakdown(times)
    return {
        "clock": ("clock", "cores")[at],
        "step_ms": 1e3 * step,
        "step_ms_by_clock": 1e3 * found["whole step"].clock,
        "parts_ms": {name: 1e3 * part for name, part in split.items()},
        "parts_share": {name: part / step for name, part in split.items()},
        "augmentation_target_met": split["augmentation"] / step <= AUGMENTATION_TARGET,
        "products": [
            {
                "layer": one.layer,
                "shape": one.shape,
                "direction": one.direction,
                "gflop": one.operations / 1e9,
                "ms": 1e3 * spent[name],
                "gflop_per_second": rate[name],
            }
            for name, one in alone.items()
        ],
        "gflop_a_step": operations,
        "products_alone_ms": 1e3 * products_time,
        "products_alone_share": products_time / step,
        "peaks": peaks,
        "peak_gflop_per_second": top,
        "step_share_of_peak": operations / step / top,
        "products_share_of_peak": operations / products_time / top,
    }


def memory(records: Path, *, preset: str) -> dict[str, Any]:
    """As `training_memory` finds it."""
    command = [sys.executable, "-m", "benchmarks.training_memory"]
    command += ["--records", str(records), "--preset", preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def whole_training(
    recipe: Recipe,
    data: tuple[PairData, PairData],
    runs: Path | None,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Trains to the end. The official runs are looked at once, to report."""
    fitted = fit(recipe, *data, accelerator=accelerator)
    names = ("steps", "seconds", "images_per_second", "best_validation_accuracy", "history")
    found: dict[str, Any] = {name: getattr(fitted.facts, name) for name in names}
    if runs is not None:
        accuracy, trials = official_accuracy(fitted.model, runs, recipe)
        found |= {"official_accuracy": accuracy, "official_trials": trials}
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All that is asked for; records are written to `folder`, or taken from it."""
    accelerator = choose_accelerator()
    recipe = TrainSettings(preset=options.preset).recipe(gpus=accelerator.gpus)
    folders = {count: folder / str(count) for count in (options.pairs, MORE_PAIRS * options.pairs)}
    if options.no_memory:
        del folders[MORE_PAIRS * options.pairs]
    for count, own in folders.items():
        _log.info("%d pairs", count)
        if not (own / "Split-train").is_dir():
            write_records(own, data=options.data, pairs=count)
    report: dict[str, Any] = {"preset": options.preset, **described(accelerator)}
    if not options.no_memory:
        report["memory"] = [memory(own, preset=options.preset) for own in folders.values()]
    own = folders[options.pairs]
    train, held_out = (read_split(own, split, recipe) for split in ("train", "eval"))
    bare = BareSteps(recipe, train, accelerator)
    report["profile"] = profile(bare, accelerator, rounds=options.rounds)
    report["rates"] = rates(
        rounds_of(recipe, (train, held_out), accelerator, rounds=options.rounds),
        images=STEPS * recipe.images_per_batch * accelerator.replicas,
        on_cpu=accelerator.gpus == 0,
    )
    if options.to_the_end:
        report["training"] = whole_training(
            recipe, (train, held_out), official_runs(options.data), accelerator
        )
    return report


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="images; by default as `oneshot run` finds them")
    parser.add_argument("--preset", choices=get_args(Preset), default="fast")
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--records", type=Path, help="keeps the records there, for a next time")
    parser.add_argument("--no-memory", action="store_true", help="leaves memory out")
    parser.add_argument("--to-the-end", action="store_true", help="trains the preset, too")
    parser.add_argument("--json", type=Path, help="where to write the results; default: stdout")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(arguments, arguments.records or Path(scratch))
    show(report)
    text = json.dumps(report, indent=2) + "\n"
    if arguments.json is None:
        sys.stdout.write(text)
    else:
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
