"""Writes the report of a run: one HTML file with its pictures inside, readable offline."""

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from components.evaluator.settings import PAIR_METRICS
from data_ingest.durable import write_atomically
from data_ingest.records.catalog import REJECTED_FILE, Rejected
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sampling.splits import FEW_CLASSES
from pipeline.reports import data, figures
from pipeline.reports.comparison import (
    compared_figures,
    differing_settings,
    others,
    settings_of,
    shown,
    thresholds,
)
from pipeline.reports.lineage import lineage
from pipeline.reports.words import (
    BASELINES,
    STEPS,
    both,
    figure_explained,
    figure_title,
    percent,
    plain,
    sentence,
)
from pipeline.runs.history import NodeRun
from pipeline.runs.summary import (
    EXAMINATION_FILE,
    HUMAN_ACCURACY,
    KOCH_2015_ACCURACY,
    RunSummary,
    accuracy_names,
    read_json,
    read_summary,
    titles_of,
    told_cached,
    ways_of,
)
from pipeline.runs.workspace import Workspace

REPORT_FILE: Final = "report.html"
_NAMED_REJECTED: Final = 20
_MOST_GROUPS: Final = 30


def write_report(
    workspace: Workspace,
    run_id: str,
    *,
    nodes: Sequence[NodeRun] = (),
    compare: str | None = None,
    alone: bool = False,
) -> Path:
    """Writes `report.html` beside the `summary.json` of a run and returns its path.

    Args:
      workspace: the output folder.
      run_id: of the run.
      nodes: of the run, for the drawing of what came from what; without them there is none.
      compare: id of the run to compare with, instead of the one before.
      alone: other runs are not at hand: nothing is compared with them or leads to them.
    """
    run_dir = workspace.run_dir(run_id)
    summary = read_summary(run_dir)
    examination = _examined(summary, run_dir / EXAMINATION_FILE)
    compared = others(workspace, run_id, compare)
    html = (
        environment()
        .get_template("report.html.jinja")
        .render(
            summary=summary,
            alone=alone,
            accuracies=_accuracies(summary),
            pairs=_pair_figures(summary),
            baselines=_baselines(summary),
            thresholds=thresholds(summary),
            compared=compared,
            compared_figures=compared_figures(summary, compared),
            differing=differing_settings(summary, compared),
            examination=examination,
            drawn=dict(_drawn(summary, examination, nodes)),
            refit=_training(summary).get("refit"),
            splits=data.splits(summary),
            statistics=data.statistics(summary),
            anomalies=data.anomalies(summary),
            rejected=_rejected(summary),
            told_cached=told_cached(summary),
            settings={name: shown(value) for name, value in settings_of(summary).items()},
        )
    )
    path = run_dir / REPORT_FILE
    write_atomically(path, html)
    return path


def environment() -> jinja2.Environment:
    """Of the templates beside this module, with the words that they use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"both": both, "percent": percent, "plain": plain, "sentence": sentence}
    return made


def _examined(summary: RunSummary, file: Path) -> dict[str, Any]:
    """What `examine` finds out; kept in a file, since it runs the model. Empty without a model."""
    known = read_json(file)
    model, examples = (Path(summary.artifacts.get(name, "")) for name in ("model", "examples"))
    served = model / "Format-Serving"
    if known or not served.is_dir() or not (examples / f"Split-{ONE_SHOT_SPLIT}").is_dir():
        return known
    # Loads TensorFlow.
    from components.evaluator.examination import examine

    found = examine(model=served, examples=examples)
    write_atomically(file, json.dumps(found) + "\n")
    return found


def _accuracies(summary: RunSummary) -> list[dict[str, Any]]:
    """A row a kind of trial, the hardest first."""
    rows = []
    for name in accuracy_names(summary.metrics):
        compared = summary.baselines.get(name, {})
        official = name == "official_20way_accuracy" and summary.dataset == "omniglot"
        rows.append(
            {
                "title": figure_title(name, summary.dataset),
                "value": summary.metrics[name],
                "interval": summary.metrics.get(f"{name}_ci95"),
                "n": summary.metrics.get(f"{name}_n"),
                "baselines": compared,
                "baseline": max(compared.values(), default=None),
                "chance": 1 / ways_of(name),
                "published": {"People": HUMAN_ACCURACY, "Koch 2015": KOCH_2015_ACCURACY}
                if official
                else {},
            }
        )
    return rows


def _pair_figures(summary: RunSummary) -> list[dict[str, Any]]:
    return [
        {
            "title": figure_title(name),
            "text": figure_explained(name),
            "value": summary.metrics[name],
            "interval": summary.metrics.get(f"{name}_ci95"),
            "n": summary.metrics.get(f"{name}_n"),
            "baselines": summary.baselines.get(name, {}),
        }
        for name in PAIR_METRICS
        if name in summary.metrics
    ]


def _baselines(summary: RunSummary) -> dict[str, tuple[str, str]]:
    return {name: BASELINES[name] for name in titles_of(summary.baselines)}


def _training(summary: RunSummary) -> dict[str, Any]:
    return read_json(Path(summary.artifacts.get("model_run", "")) / "training.json")


def _rejected(summary: RunSummary) -> list[Rejected]:
    """The first of the images that were left out, with the reason."""
    file = Path(summary.artifacts.get("examples", "")) / REJECTED_FILE
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        return [Rejected(**json.loads(line)) for line in islice(lines, _NAMED_REJECTED)]


def _drawn(
    summary: RunSummary, examination: Mapping[str, Any], nodes: Sequence[NodeRun]
) -> list[tuple[str, str]]:
    """Pictures by name, as far as there is something to draw."""
    drawn: list[tuple[str, str]] = []

    def draw(name: str, alt: str, *content: Any, **settings: Any) -> None:
        made = figures.svg(alt, getattr(figures, name), *content, **settings)
        drawn.append((name, Markup(made)))

    if rows := _accuracies(summary):
        told = ", ".join(f"{row['title']} {percent(row['value'])}" for row in rows)
        draw("accuracies", f"Accuracy of the model beside baselines and chance: {told}", rows)
    if rows := _groups(summary):
        worst = min(rows, key=lambda row: float(row["value"]))
        told = f"the lowest is {worst['title']} with {percent(worst['value'])}"
        draw("groups", f"Accuracy by group: {told}", rows)
    training = _training(summary)
    if history := training.get("history"):
        validated = training.get("validation_classes", FEW_CLASSES) >= FEW_CLASSES
        draw(
            "training",
            "Loss and validation accuracy over the training",
            history,
            validated=validated,
        )
    if curve := examination.get("curve"):
        equal = percent(curve["points"]["equal"]["false_accepts"])
        draw("rates", f"False rejects against false accepts; they are equal at {equal}", curve)
        draw("histogram", "Scores of pairs of one class and of pairs of two classes", curve)
        draw("reliability", "Share of pairs of one class by score", curve["reliability"])
    if curves := examination.get("ways"):
        titles = {"within": "of one group", "between": "of all groups"}
        draw("ways", "Accuracy by the number of candidates", curves, titles)
    if forgeries := examination.get("forgeries"):
        draw("forgery_rates", "Genuine signatures accepted by forgeries accepted", forgeries)
    steps = [
        (STEPS.get(step, step), value, step in summary.cached)
        for step, value in summary.seconds.items()
        if step != "total" and value >= 0.05
    ]
    if steps:
        longest = max(steps, key=lambda step: step[1])
        draw("seconds", f"Seconds by step: {longest[0]} took {longest[1]:.0f}", steps)
    boxes, arrows = lineage(nodes)
    if boxes:
        told = ", ".join(box["title"] for box in boxes)
        draw("lineage", f"Which step took what from which: {told}", boxes, arrows)
    sheet = Path(summary.artifacts.get("model_run", "")) / "contact_sheet.png"
    if sheet.is_file():
        encoded = base64.b64encode(sheet.read_bytes()).decode()
        drawn.append(("contact_sheet", f"data:image/png;base64,{encoded}"))
    return drawn


def _groups(summary: RunSummary) -> list[dict[str, Any]]:
    """Accuracy within groups (alphabets) in the trials of most ways, the lowest of many."""
    names = [name for name in summary.per_group if name.startswith("within_")]
    if not names:
        return []
    found = summary.per_group[max(names, key=ways_of)]
    lowest = sorted(found, key=lambda group: (found[group]["value"], group))[:_MOST_GROUPS]
    return [
        {"title": plain(one), "value": found[one]["value"], "interval": found[one]["ci95"]}
        for one in lowest
    ]
