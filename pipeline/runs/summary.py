"""What one run came to: `summary.json`, and the tables at its end."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.runs.workspace import Workspace

SUMMARY_FILE = "summary.json"
# Within-alphabet 20-way accuracy on Omniglot, as given in Koch et al. 2015, table 2.
KOCH_2015_ACCURACY = 0.920
HUMAN_ACCURACY = 0.955


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`.

    `metrics` holds accuracies and rates in [0, 1], each with `<name>_ci95` ([low, high]) and
    `<name>_n` (trials or pairs); a protocol that the data cannot make is absent.
    """

    run_id: str
    dataset: str
    blessed: bool
    pushed_version: int | None
    model_dir: str | None
    metrics: dict[str, Any]
    seconds: dict[str, float]
    train_images_per_second: float | None
    device: str | None
    versions: dict[str, str]
    data_found: str = ""
    cached: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    per_group: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, float | None]:
        """The one-shot figure that stands for the run: official, else the hardest within."""
        return headline_metric(self.metrics)


def read_summary(run_dir: Path) -> RunSummary:
    """The `summary.json` of a run that went as far as a verdict."""
    return RunSummary(**json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8")))


def headline_metric(metrics: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name and value of the official accuracy, else of the within-group trials of most ways."""
    names = accuracy_names(metrics)
    return (names[0], float(metrics[names[0]])) if names else ("", None)


def ways_of(metric: str) -> int:
    """`within_20way_accuracy` → 20."""
    return int(metric.split("_")[1].removesuffix("way"))


def print_summary(summary: RunSummary, console: Console, *, workspace: Workspace) -> None:
    """The table a person sees at the end of a run."""
    if summary.dataset == "synthetic":
        console.print(
            "[bold red]SYNTHETIC DATA[/]: generated glyphs, not Omniglot. These figures say that "
            "the pipeline works, not how good the recogniser is.\n"
        )
    accuracy = Table(title="One-shot accuracy", title_justify="left")
    for heading in ("trials", "accuracy", "95 % interval", "n", "pixel 1-NN", "chance"):
        accuracy.add_column(heading, justify="left" if heading == "trials" else "right")
    metrics = summary.metrics
    for name in accuracy_names(metrics):
        accuracy.add_row(
            name.removesuffix("_accuracy").replace("_", " "),
            _percent(metrics[name]),
            _interval(metrics.get(f"{name}_ci95")),
            str(metrics.get(f"{name}_n", "")),
            _percent(summary.baselines.get(name)),
            _percent(1 / ways_of(name)),
        )
    if "official_20way_accuracy" in metrics and summary.dataset == "omniglot":
        accuracy.add_section()
        accuracy.add_row("Koch 2015", _percent(KOCH_2015_ACCURACY), "", "", "", "")
        accuracy.add_row("humans", _percent(HUMAN_ACCURACY), "", "", "", "")
    console.print(accuracy)

    pairs = Table(title="Same or different (pairs of unseen classes)", title_justify="left")
    for heading in ("measure", "value", "95 % interval", "n"):
        pairs.add_column(heading, justify="left" if heading == "measure" else "right")
    for name in ("verification_accuracy", "auc", "eer", "ece"):
        if name in metrics:
            value = _percent(metrics[name]) if name != "auc" else f"{metrics[name]:.4f}"
            interval = metrics.get(f"{name}_ci95")
            pairs.add_row(
                name.replace("_", " "),
                value,
                _interval(interval) if name != "auc" or not interval else _plain(interval),
                str(metrics.get(f"{name}_n", "")),
            )
    console.print(pairs)

    times = Table(title="Seconds", title_justify="left")
    times.add_column("step")
    times.add_column("seconds", justify="right")
    for node, seconds in summary.seconds.items():
        times.add_row(node, "cached" if node in summary.cached else f"{seconds:.1f}")
    console.print(times)
    if summary.train_images_per_second:
        console.print(
            f"Trained at {summary.train_images_per_second:.0f} images/s on {summary.device}."
        )
    console.print(f"Report   {workspace.latest_run / 'report.html'}", soft_wrap=True)
    if summary.pushed_version is None:
        console.print("[bold]Not blessed, so not pushed[/]:", soft_wrap=True)
        for reason in summary.refusals:
            console.print(f"  {reason}", soft_wrap=True, markup=False)
        console.print("The thresholds are under `evaluate` and `gate` in the configuration.")
        return
    console.print(f"Model    {summary.model_dir}", soft_wrap=True)
    console.print(
        f"Next     {_command()} evaluate --model {summary.model_dir} --images DIR_OR_ZIP",
        soft_wrap=True,
    )


def _command() -> str:
    """How this installation's `oneshot` is called from the working folder."""
    script = Path(sys.executable).with_name("oneshot")
    folder = Path.cwd()
    return str(script.relative_to(folder) if script.is_relative_to(folder) else script)


def accuracy_names(metrics: Mapping[str, Any]) -> list[str]:
    """One-shot figures as people compare them: official first, most ways first."""
    order = ("official", "within", "between")
    names = [name for name in metrics if name.endswith("way_accuracy")]
    return sorted(names, key=lambda name: (order.index(name.split("_")[0]), -ways_of(name)))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _interval(bounds: list[float] | None) -> str:
    return "" if not bounds else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _plain(bounds: list[float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"
