"""Reads `summary.json`, what a run came to, and prints the tables at its end."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.evaluator.evidence import NOT_ENOUGH_EVIDENCE
from components.evaluator.settings import BASELINE_TITLES, LOWER_IS_BETTER, PAIR_METRICS, Compared
from data_ingest.records.catalog import told_noise
from pipeline.runs.workspace import Workspace

SUMMARY_FILE = "summary.json"
EXAMINATION_FILE = "examination.json"
"""What the model made of its trials and pairs, for the report: finding that out takes a minute."""
# Within-alphabet 20-way accuracy on Omniglot, as given in Koch et al. 2015, table 2.
KOCH_2015_ACCURACY = 0.920
HUMAN_ACCURACY = 0.955


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`.

    `seconds` are those that the work took, by node and in `total`: of the nodes in `cached` in the
    run that did it. `run_seconds` is what this run took; None in summaries of earlier releases,
    whose cached nodes have 0.

    `metrics` holds accuracies and rates in [0, 1], each with `<name>_ci95` ([low, high]) and
    `<name>_n` (trials or pairs); a protocol that the data cannot make is absent. `thresholds` is
    what the model was judged by, by figure; those in `lacking` have no trials, so that nothing is
    blessed; `notes` say in sentences which defaults apply to other trials than they name, and
    which images were left out. `baselines` are figures of recognisers without learning, by figure
    and name. `images` counts what was read, left out as copies and rejected, and names the first
    copies (`copies`) and the first files that hold one image in two classes (`in_two_classes`).
    `before` are the figures, on the same trials, of the model that this one was compared with;
    `config` are the sections of the configuration that make the model.
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
    run_seconds: float | None = None
    refusals: list[str] = field(default_factory=list)
    baselines: Compared = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    per_group: dict[str, dict[str, Any]] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    images: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, float | None]:
        """The one-shot figure that stands for the run: official, else the hardest within."""
        names = accuracy_names(self.metrics)
        return (names[0], float(self.metrics[names[0]])) if names else ("", None)


def read_summary(run_dir: Path) -> RunSummary:
    """The `summary.json` of a run that went as far as a verdict."""
    content = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    return RunSummary(**content | {"baselines": by_baseline(content.get("baselines", {}))})


def by_baseline(figures: Mapping[str, Any]) -> Compared:
    """Figures of baselines by name; earlier releases wrote those of pixels alone, without it."""
    return {
        figure: values if isinstance(values, dict) else {"pixel_1nn": values}
        for figure, values in figures.items()
    }


def titles_of(baselines: Compared) -> dict[str, str]:
    """Titles, by name, of the baselines that have a figure, for headings."""
    there = {name for values in baselines.values() for name in values}
    return {name: title for name, title in BASELINE_TITLES.items() if name in there}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


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
    metrics = summary.metrics
    headings = ("accuracy", "95 % interval", "n", "asked", *_untrained(summary), "chance")
    accuracy = _table("One-shot accuracy", "trials", *headings)
    for name in accuracy_names(metrics):
        accuracy.add_row(
            name.removesuffix("_accuracy").replace("_", " "),
            _percent(metrics[name]),
            _interval(metrics.get(f"{name}_ci95")),
            str(metrics.get(f"{name}_n", "")),
            asked_of(summary, name),
            *_best_baseline(summary, name),
            _percent(1 / ways_of(name)),
        )
    if "official_20way_accuracy" in metrics and summary.dataset == "omniglot":
        accuracy.add_section()
        accuracy.add_row("Koch 2015", _percent(KOCH_2015_ACCURACY))
        accuracy.add_row("humans", _percent(HUMAN_ACCURACY))
    console.print(accuracy)
    for note in summary.notes:
        console.print(note, soft_wrap=True, markup=False)

    title = "Same or different (pairs of unseen classes)"
    untrained = _untrained(summary, PAIR_METRICS)
    pairs = _table(title, "measure", "value", "95 % interval", "n", "asked", *untrained)
    for name in PAIR_METRICS:
        if name in metrics:
            value, interval = metrics[name], metrics.get(f"{name}_ci95")
            pairs.add_row(
                name.replace("_", " "),
                _pair_figure(name, value),
                _interval(interval, scale=1, digits=4) if _is_area(name) else _interval(interval),
                str(metrics.get(f"{name}_n", "")),
                asked_of(summary, name),
                *(_best_baseline(summary, name) if untrained else ()),
            )
    console.print(pairs)

    times = _table("Seconds", "step", "seconds", *(["cached"] if summary.cached else []))
    for node, seconds in summary.seconds.items():
        times.add_row(node, f"{seconds:.1f}", *(["cached"] if node in summary.cached else []))
    console.print(times)
    if told := told_cached(summary):
        console.print(told, markup=False)
    if summary.train_images_per_second:
        console.print(
            f"Trained at {summary.train_images_per_second:.0f} images/s on {summary.device}."
        )
    for one, other in summary.images.get("in_two_classes", []):
        console.print(told_noise(one, other), soft_wrap=True, markup=False, style="bold red")
    console.print(f"Report   {workspace.latest_run / 'report.html'}", soft_wrap=True)
    console.print(f"All runs {workspace.runs / 'index.html'}", soft_wrap=True)
    if summary.pushed_version is None:
        console.print("[bold]Not blessed, so not pushed[/]:", soft_wrap=True)
        for reason in summary.refusals:
            large = "bold red" if reason.startswith(NOT_ENOUGH_EVIDENCE) else None
            console.print(f"  {reason}", soft_wrap=True, markup=False, style=large)
        console.print("The thresholds are under `evaluate` and `gate` in the configuration.")
        return
    console.print(f"Model    {summary.model_dir}", soft_wrap=True, markup=False)
    command = shlex.join([_command(), "evaluate", "--model", str(summary.model_dir)])
    console.print(f"Next     {command} --images DIR_OR_ZIP", soft_wrap=True, markup=False)


def told_cached(summary: RunSummary) -> str:
    """Whose seconds those of cached nodes are; empty where none was cached."""
    if not summary.cached or summary.run_seconds is None:
        return ""
    return f"This run took {summary.run_seconds:.0f} s; cached steps were done by an earlier one."


def _command() -> str:
    """How this installation's `oneshot` is called from the working folder."""
    script = Path(sys.executable).with_name("oneshot")
    try:
        return str(script.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        # Elsewhere, or the working folder is gone.
        return str(script)


def accuracy_names(metrics: Mapping[str, Any]) -> list[str]:
    """One-shot figures as people compare them: official first, most ways first."""
    order = ("official", "within", "between")
    names = [name for name in metrics if name.endswith("way_accuracy")]
    return sorted(names, key=lambda name: (order.index(name.split("_")[0]), -ways_of(name)))


def asked_of(summary: RunSummary, name: str) -> str:
    """What a figure had to be for the model to be blessed, such as `≥ 55 %`; empty if anything."""
    threshold = summary.thresholds.get(name, {})
    bounds = {"≥": threshold.get("min"), "≤": threshold.get("max")}
    return ", ".join(
        f"{sign} {bound:g}" if _is_area(name) else f"{sign} {100 * bound:g} %"
        for sign, bound in bounds.items()
        if bound is not None
    )


def _is_area(name: str) -> bool:
    return name.startswith("auc")


def _untrained(summary: RunSummary, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Heading of the column that the baselines have; none where they have no figure."""
    names = summary.baselines if names is None else names
    titles = titles_of({name: summary.baselines.get(name, {}) for name in names})
    return ("untrained",) if len(titles) > 1 else tuple(titles.values())


def _best_baseline(summary: RunSummary, name: str) -> tuple[str, ...]:
    """What the best baseline has, and which it is where there are several: the report has all."""
    figures = summary.baselines.get(name, {})
    if not figures:
        return ("",) if summary.baselines else ()
    best = (min if name.startswith(LOWER_IS_BETTER) else max)(figures, key=figures.__getitem__)
    value = _pair_figure(name, figures[best])
    return (value if len(figures) == 1 else f"{BASELINE_TITLES[best]} {value}",)


def _pair_figure(name: str, value: float | None) -> str:
    return f"{value:.4f}" if _is_area(name) and value is not None else _percent(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _interval(bounds: list[float] | None, *, scale: int = 100, digits: int = 1) -> str:
    return " to ".join(f"{scale * bound:.{digits}f}" for bound in bounds or [])


def _table(title: str, first: str, *others: str) -> Table:
    """Columns under headings, all but the first flush right."""
    table = Table(first, title=title, title_justify="left")
    for heading in others:
        table.add_column(heading, justify="right")
    return table
