"""Writes the report of a run: one HTML file with its pictures inside, readable offline."""

import base64
import io
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluator.settings import FORGERY_METRICS, PAIR_METRICS
from data_ingest.durable import write_atomically
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sampling.splits import FEW_CLASSES
from pipeline.runs.summary import (
    HUMAN_ACCURACY,
    KOCH_2015_ACCURACY,
    RunSummary,
    accuracy_names,
    asked_of,
    read_json,
    read_summary,
    titles_of,
    told_cached,
    ways_of,
)

_log = logging.getLogger(__name__)
_MISTAKES_FILE = "mistakes.json"
_ROC_FILE = "roc.json"
_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MODEL_COLOUR, _BASELINE_COLOUR, _REFERENCE_COLOUR = "#1f6feb", "#9aa4b2", "#d1842c"


def try_to_write_report(run_dir: Path) -> None:
    """A picture that cannot be drawn must not fail a run whose model is already served."""
    try:
        write_report(run_dir)
    except Exception:
        _log.exception("no report: `oneshot report %s` tries again", run_dir.name)


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` beside `summary.json` and returns its path."""
    summary = read_summary(run_dir)
    model_run = Path(summary.artifacts.get("model_run", ""))
    training = read_json(model_run / "training.json")
    contact_sheet = model_run / "contact_sheet.png"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    groups = group_accuracies(summary.per_group)
    html = template.render(
        summary=summary,
        accuracy_picture=_embedded(_accuracy_figure(summary)),
        group_picture=_embedded(_group_figure(groups)) if groups else "",
        training_picture=_embedded(_training_figure(training)) if training.get("history") else "",
        refit=training.get("refit"),
        contact_sheet=_png(contact_sheet.read_bytes()) if contact_sheet.is_file() else "",
        told_cached=told_cached(summary),
        seconds_picture=_embedded(_seconds_figure(summary)),
        mistakes=_mistakes(summary, run_dir / _MISTAKES_FILE),
        roc_picture=_roc_picture(summary, run_dir / _ROC_FILE),
        accuracy_names=accuracy_names(summary.metrics),
        pair_metrics=PAIR_METRICS,
        percent=lambda value: f"{100 * value:.1f} %",
        asked_of=partial(asked_of, summary),
        ways_of=ways_of,
        titles=titles_of(summary.baselines),
        pair_titles=titles_of({name: summary.baselines.get(name, {}) for name in PAIR_METRICS}),
        zip=zip,
    )
    path = run_dir / "report.html"
    write_atomically(path, html)
    return path


def carry_over(earlier: Path, run_dir: Path) -> None:
    """Takes what cannot have changed from the folder of an earlier run with the same evaluation."""
    for name in (_MISTAKES_FILE, _ROC_FILE):
        if (earlier / name).is_file():
            write_atomically(run_dir / name, (earlier / name).read_bytes())


def group_accuracies(per_group: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Within-group accuracy by group (alphabet), of the trials of most ways; {} if unknown."""
    names = [name for name in per_group if name.startswith("within_")]
    if not names:
        return {}
    groups = per_group[max(names, key=ways_of)]
    return {group: figure["value"] for group, figure in groups.items()}


def _mistakes(summary: RunSummary, file: Path) -> list[dict[str, Any]]:
    """Trial, scores and pictures; kept in a file, since finding them runs the model."""
    if file.is_file():
        kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    where = _model_and_examples(summary)
    if where is None:
        return []
    from components.evaluator.mistakes import hardest_mistakes

    model, examples = where

    found = [
        {
            "trial": mistake.trial,
            "chosen_score": mistake.chosen_score,
            "correct_score": mistake.correct_score,
            "pictures": [_png(mistake.query), _png(mistake.chosen), _png(mistake.correct)],
        }
        for mistake in hardest_mistakes(model=model, examples=examples, most=12)
    ]
    write_atomically(file, json.dumps(found) + "\n")
    return found


def _roc_picture(summary: RunSummary, file: Path) -> str:
    """ROC curves of signatures with either kind of forgery, kept like the mistakes; else empty."""
    if not FORGERY_METRICS.keys() & summary.metrics.keys():
        return ""
    from components.evaluator.forgeries import recorded_roc, roc_figure

    curves = read_json(file)
    where = _model_and_examples(summary)
    if not curves and where is not None:
        curves = dict(recorded_roc(*where))
        write_atomically(file, json.dumps(curves) + "\n")
    named = {
        kind: {f"EER {100 * summary.metrics[f'eer_{kind}']:.1f} %": roc}
        for kind, roc in curves.items()
        if f"eer_{kind}" in summary.metrics
    }
    return _embedded(roc_figure(named)) if named else ""


def _model_and_examples(summary: RunSummary) -> tuple[Path, Path] | None:
    """Folders of the SavedModel and of the Examples, as far as they are still there."""
    model, examples = (Path(summary.artifacts.get(name, "")) for name in ("model", "examples"))
    served = model / "Format-Serving"
    there = served.is_dir() and (examples / f"Split-{ONE_SHOT_SPLIT}").is_dir()
    return (served, examples) if there else None


def _accuracy_figure(summary: RunSummary) -> Figure:
    names = accuracy_names(summary.metrics)
    best = {name: max(values.values()) for name, values in summary.baselines.items()}
    figure, axes = _subplots(7.5, 0.75 * len(names) + 1.4)
    for row, name in enumerate(reversed(names)):
        value = summary.metrics[name]
        low, high = summary.metrics[f"{name}_ci95"]
        axes.barh(row + 0.18, value, height=0.34, color=_MODEL_COLOUR)
        axes.errorbar(value, row + 0.18, xerr=[[value - low], [high - value]], color="black", lw=1)
        axes.text(0.01, row + 0.18, f"{100 * value:.1f} %", va="center", color="white", fontsize=9)
        axes.barh(row - 0.18, best.get(name, 0), height=0.34, color=_BASELINE_COLOUR)
        axes.plot([1 / ways_of(name)] * 2, [row - 0.4, row + 0.4], color="black", ls=":", lw=1)
        if name == "official_20way_accuracy" and summary.dataset == "omniglot":
            for reference, label, style in (
                (KOCH_2015_ACCURACY, "Koch 2015, 92.0 %", "--"),
                (HUMAN_ACCURACY, "humans, 95.5 %", "-"),
            ):
                span = [row - 0.4, row + 0.4]
                axes.plot([reference] * 2, span, color=_REFERENCE_COLOUR, ls=style, label=label)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels([n.removesuffix("_accuracy").replace("_", " ") for n in reversed(names)])
    axes.set_xlim(0, 1)
    axes.set_xlabel(
        "accuracy: model with its 95 % interval (blue), "
        f"{_best_of(titles_of(summary.baselines))} (grey), chance (dots)"
    )
    return figure


def _best_of(titles: dict[str, str]) -> str:
    names = ", ".join(titles.values())
    return f"the best of {names}" if len(titles) > 1 else names


def _group_figure(groups: dict[str, float]) -> Figure:
    ordered = dict(sorted(groups.items(), key=lambda item: item[1]))
    figure, axes = _bars(ordered)
    for row, value in enumerate(ordered.values()):
        axes.text(0.01, row, f"{100 * value:.1f} %", va="center", color="white", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("within-group one-shot accuracy")
    return figure


def _training_figure(training: dict[str, Any]) -> Figure:
    history = training["history"]
    classes = training.get("validation_classes", FEW_CLASSES)
    figure, axes = _subplots(7.5, 3)
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [entry["loss"] for entry in history], color=_BASELINE_COLOUR)
    axes.set_ylabel("training loss (grey)")
    axes.set_xlabel("step")
    if classes < FEW_CLASSES:
        axes.set_title(f"{classes} held-out classes are too few for a validation", fontsize=9)
        return figure
    right = axes.twinx()
    validated = [e for e in history if e.get("accuracy") is not None]
    accuracies = [e["accuracy"] for e in validated]
    right.plot([e["step"] for e in validated], accuracies, color=_MODEL_COLOUR, marker=".")
    right.set_ylabel("one-shot accuracy, held-out (blue)")
    return figure


def _seconds_figure(summary: RunSummary) -> Figure:
    steps = {k: v for k, v in summary.seconds.items() if k != "total" and v >= 0.05}
    cached = {name: f"{name} (cached)" for name in summary.cached}
    ordered = {cached.get(name, name): value for name, value in reversed(steps.items())}
    figure, axes = _bars(ordered)
    for row, value in enumerate(ordered.values()):
        axes.text(value, row, f" {value:.1f} s", va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    return figure


def _bars(values: dict[str, float]) -> tuple[Figure, Axes]:
    """A bar for each name, from the bottom up."""
    figure, axes = _subplots(7.5, 0.32 * max(len(values), 1) + 1)
    axes.barh([*values], [*values.values()], color=_MODEL_COLOUR)
    return figure, axes


def _subplots(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own, in inches: pyplot would keep it and choose a backend."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _png(buffer.getvalue())


def _png(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
