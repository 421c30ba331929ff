"""Writes the list of all runs of an output folder, with the trend of their accuracy."""

import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from data_ingest.durable import write_atomically
from pipeline.reports import figures
from pipeline.reports.report import REPORT_FILE, environment, write_report
from pipeline.reports.words import figure_title, percent
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.summary import SUMMARY_FILE, read_summary
from pipeline.runs.workspace import Workspace

INDEX_FILE: Final = "index.html"
_log = logging.getLogger(__name__)


def report_on(
    workspace: Workspace, run_id: str, history: RunHistory, *, compare: str | None = None
) -> tuple[Path, Path]:
    """Writes the report of a run and the index of all, and returns their paths.

    Args:
      workspace: the output folder.
      run_id: of a run with a summary.
      history: of the runs.
      compare: as `write_report`.
    """
    report = write_report(workspace, run_id, nodes=history.nodes(run_id), compare=compare)
    return report, write_index(workspace, history.runs())


def try_to_report_on(workspace: Workspace, run_id: str, history: RunHistory) -> None:
    """A picture that cannot be drawn must not fail a run whose model is already served."""
    try:
        report_on(workspace, run_id, history)
    except Exception:
        _log.exception("no report: `oneshot report %s` tries again", run_id)


def write_index(workspace: Workspace, records: Iterable[RunRecord]) -> Path:
    """Writes `runs/index.html` and returns its path.

    Args:
      workspace: the output folder.
      records: of its runs, the newest first.
    """
    runs = [_row(workspace, record) for record in records]
    trends = []
    for metric in dict.fromkeys(run["metric"] for run in runs if run["value"] is not None):
        judged = [run for run in reversed(runs) if run["metric"] == metric]
        title = figure_title(metric, judged[-1]["dataset"])
        alt = f"Accuracy of {len(judged)} runs, {title}: last {percent(judged[-1]['value'])}"
        trends.append((title, Markup(figures.svg(alt, figures.trend, judged))))
    html = environment().get_template("index.html.jinja").render(runs=runs, trends=trends)
    path = workspace.runs / INDEX_FILE
    write_atomically(path, html)
    return path


def _row(workspace: Workspace, record: RunRecord) -> dict[str, Any]:
    folder = workspace.run_dir(record.run_id)
    metrics = read_summary(folder).metrics if (folder / SUMMARY_FILE).is_file() else {}
    return {
        "run_id": record.run_id,
        "started": datetime.fromtimestamp(record.started).strftime("%d %B %Y, %H:%M"),
        "dataset": record.dataset,
        "data": record.dataset if record.span is None else f"span {record.span}",
        "state": record.state.text,
        "error": record.error.partition("\n")[0],
        "metric": record.accuracy_metric,
        "title": figure_title(record.accuracy_metric, record.dataset)
        if record.accuracy_metric
        else "",
        "value": record.accuracy,
        "interval": metrics.get(f"{record.accuracy_metric}_ci95"),
        "eer": metrics.get("eer"),
        "blessed": record.blessed,
        "version": record.pushed_version,
        "seconds": record.seconds,
        "report": f"{record.run_id}/{REPORT_FILE}" if (folder / REPORT_FILE).is_file() else "",
    }
