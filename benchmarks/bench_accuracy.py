"""Trains presets with several seeds and compares what they reach with what others have published.

    python -m benchmarks.bench_accuracy --images images_evaluation.zip --output output/accuracy

Every figure is of the whole pipeline: `oneshot run` with a seed of its own, then `oneshot evaluate`
of what it exported, on trials with random characters and two random writers. Runs that are done are
not done again, and one that was interrupted goes on from its checkpoint, so this may be stopped and
started at will. Nothing here chooses anything: it only reports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from data_ingest.durable import write_atomically

TRIALS: Final = 4000
OFFICIAL: Final = "official_20way_accuracy"
WITHIN: Final = "within_20way_accuracy_4000"
VERIFICATION: Final = "verification_accuracy"
ECE: Final = "ece"
FIGURES: Final = {
    OFFICIAL: "official 20-way",
    WITHIN: "within 20-way",
    VERIFICATION: "verification",
    ECE: "ECE",
}
RESULTS: Final = "figures.json"


@dataclass(frozen=True)
class Line:
    """A training to measure.

    Attributes:
      settings: what `oneshot run --set` changes.
      targets: by figure, shares in [0, 1]; at least, for ECE at most.
    """

    name: str
    settings: tuple[str, ...]
    targets: Mapping[str, float]


FEW_ALPHABETS: Final = (
    "train.preset=accurate",
    "train.steps=3000",
    "train.refit_share=0",
    "train.generated_share=0.5",
)
LINES: Final = (
    # Humans: 95.5 % (Lake et al. 2015). Koch et al. 2015: verification 93.42 %.
    Line("fast", ("train.preset=fast",), {OFFICIAL: 0.955, VERIFICATION: 0.9342, ECE: 0.02}),
    # BPL: 96.7 % with 30 alphabets, 95.8 % with five (Lake et al. 2015; 2019).
    Line(
        "accurate",
        ("train.preset=accurate",),
        {OFFICIAL: 0.967, WITHIN: 0.92, VERIFICATION: 0.9342, ECE: 0.02},
    ),
    Line("small1", (*FEW_ALPHABETS, "dataset.background=small1"), {}),
    Line("small2", (*FEW_ALPHABETS, "dataset.background=small2"), {}),
)
MINIMAL: Final = Line("small1, small2 averaged", (), {OFFICIAL: 0.94})
"""The minimal protocol is both, each alone, and the mean of the two."""


def measure(line: Line, seed: int, *, folder: Path, images: Path, more: Sequence[str]) -> Any:
    """Trains and evaluates once, or reads what that gave; figures by name, and their numbers."""
    results = folder / RESULTS
    settings = [*line.settings, f"train.seed={seed}", *more]
    if results.is_file():
        known = json.loads(results.read_text(encoding="utf-8"))
        if known["settings"] != settings:
            raise SystemExit(f"{folder} is of {known['settings']}: give another --output")
        return known
    # Judged whatever it reaches: a model that is not blessed is evaluated too.
    _oneshot("run", "--output", str(folder), *_sets(settings), allowed=(0, 3))
    summary = json.loads((folder / "runs" / "latest" / "summary.json").read_text("utf-8"))
    model = Path(summary["artifacts"]["model"]) / "Format-Serving"
    evaluation = json.loads(
        _oneshot(
            *("evaluate", "--model", str(model), "--images", str(images)),
            *("--trials", str(TRIALS), "--json"),
        )
    )
    metrics = summary["metrics"]
    figures = {
        name: {"value": metrics[name], "ci95": metrics[f"{name}_ci95"], "n": metrics[f"{name}_n"]}
        for name in (OFFICIAL, VERIFICATION, ECE)
        if name in metrics
    }
    figures[WITHIN] = {
        "value": evaluation["accuracy"],
        "ci95": evaluation["accuracy_ci95"],
        "n": evaluation["accuracy_n"],
    }
    found = {
        "line": line.name,
        "seed": seed,
        "settings": settings,
        "figures": figures,
        "trainer_seconds": summary["seconds"]["Trainer"],
        "images_per_second": summary["train_images_per_second"],
        "device": summary["device"],
    }
    write_atomically(results, json.dumps(found, indent=2) + "\n")
    return found


def _sets(settings: Iterable[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _oneshot(*arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in allowed:
        raise SystemExit(f"oneshot {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def summarize(line: Line, runs: Sequence[Any]) -> dict[str, Any]:
    """Mean and sd over the seeds of a line, and whether its targets are met."""
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = [run["figures"][name]["value"] for run in runs if name in run["figures"]]
        if not values:
            continue
        mean = statistics.mean(values)
        target = line.targets.get(name)
        found[name] = {
            "mean": mean,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
            "n": [run["figures"][name]["n"] for run in runs if name in run["figures"]],
            "target": target,
            "met": None if target is None else (mean <= target if name == ECE else mean >= target),
        }
    return found


def averaged(*runs: Any) -> Any:
    """A run whose figures are the means of those of `runs`, over all their trials."""
    return {
        "figures": {
            name: {
                "value": statistics.mean(run["figures"][name]["value"] for run in runs),
                "n": sum(run["figures"][name]["n"] for run in runs),
            }
            for name in runs[0]["figures"]
        }
    }


def table(summaries: Mapping[str, Any]) -> Table:
    """The figures in percent."""
    shown = Table(title="mean and sd over seeds, %")
    for heading in ("training", "figure", "mean", "sd", "seeds", "n a seed", "target"):
        shown.add_column(heading, justify="left" if heading in ("training", "figure") else "right")
    for name, found in summaries.items():
        for figure, value in found.items():
            sd, target = value["sd"], value["target"]
            sign = "at most" if figure == ECE else "at least"
            verdict = {None: "", True: ", met", False: ", missed"}[value["met"]]
            shown.add_row(
                name,
                FIGURES[figure],
                f"{100 * value['mean']:.2f}",
                "" if sd is None else f"{100 * sd:.2f}",
                str(value["seeds"]),
                str(value["n"][0]),
                "" if target is None else f"{sign} {100 * target:.1f}{verdict}",
            )
    return shown


def default_images() -> Path:
    """Omniglot's evaluation set, where the pipeline looks for it too."""
    return Path(os.environ.get("OMNIGLOT_DIR", ".")) / "images_evaluation.zip"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if `--check` is given and a target is missed."""
    names = [line.name for line in LINES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_accuracy")
    parser.add_argument("--images", type=Path, default=default_images(), help="(%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/accuracy"), help="(%(default)s)"
    )
    parser.add_argument("--lines", nargs="+", choices=names, default=names, help="all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--set", action="append", default=[], dest="more", metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    options = parser.parse_args(argv)
    if not options.images.exists():
        parser.error(f"--images {options.images}: not there; give Omniglot's images_evaluation.zip")
    chosen = [line for line in LINES if line.name in options.lines]
    runs: dict[str, list[Any]] = {line.name: [] for line in chosen}
    # The first seed of all before the second of any: an early look shows every line.
    for seed in options.seeds:
        for line in chosen:
            folder = options.output / f"{line.name}-{seed}"
            runs[line.name].append(
                measure(line, seed, folder=folder, images=options.images, more=options.more)
            )
    summaries = {line.name: summarize(line, runs[line.name]) for line in chosen}
    if {"small1", "small2"} <= set(runs):
        both = [averaged(*pair) for pair in zip(runs["small1"], runs["small2"], strict=True)]
        summaries[MINIMAL.name] = summarize(MINIMAL, both)
    Console(width=110).print(table(summaries))
    if options.json is not None:
        content = {"lines": summaries, "runs": [run for many in runs.values() for run in many]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    missed = any(value["met"] is False for found in summaries.values() for value in found.values())
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
