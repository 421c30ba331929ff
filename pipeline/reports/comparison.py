"""Compares a run with others: figures, thresholds, and the settings that differ."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluator.settings import PAIR_METRICS
from pipeline.reports.words import falls, figure_title, percent, points
from pipeline.runs.summary import (
    SUMMARY_FILE,
    RunSummary,
    accuracy_names,
    read_json,
    read_summary,
)
from pipeline.runs.workspace import Workspace
from serving.deploy.models_config import STABLE, read_entry
from serving.saved_model.versions import versions

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Other:
    """A run that this one is compared with."""

    title: str
    summary: RunSummary


def others(workspace: Workspace, run_id: str, compare: str | None) -> list[Other]:
    """The run before (or the one that is asked for), and the one whose model is served."""
    known = {file.parent.name: file.parent for file in workspace.runs.glob(f"*/{SUMMARY_FILE}")}
    known.pop(workspace.latest_run.name, None)
    before = compare or max((name for name in known if name < run_id), default=None)
    found = []
    if before is not None:
        title = "Run asked for" if compare else "Run before"
        found.append(Other(title, read_summary(known[before])))
    version = served_version(workspace)
    for name in sorted(known, reverse=True):
        if version is None or name in (before, run_id):
            continue
        summary = read_summary(known[name])
        if summary.pushed_version == version:
            found.append(Other("Served", summary))
            break
    return found


def served_version(workspace: Workspace) -> int | None:
    """The version with the label `stable`, or else the newest; None where there is none."""
    config = workspace.models_config
    entry = None
    if config.is_file():
        entry = read_entry(config.read_text(encoding="utf-8"), workspace.model_name)
    newest = versions(workspace.serving_model)[-1:]
    if entry is not None and STABLE in entry.labels:
        return entry.labels[STABLE]
    return newest[0] if newest else None


def compared_figures(summary: RunSummary, compared: list[Other]) -> list[dict[str, Any]]:
    """A row a figure: this run's value, and of each other run the value and the difference."""
    names = [*accuracy_names(summary.metrics), *PAIR_METRICS]
    rows = []
    for name in names:
        if name not in summary.metrics:
            continue
        value = summary.metrics[name]
        cells = [_difference(name, value, one.summary.metrics.get(name)) for one in compared]
        if any(cells):
            title = figure_title(name, summary.dataset)
            rows.append({"title": title, "value": percent(value), "others": cells})
    return rows


def thresholds(summary: RunSummary) -> list[dict[str, Any]]:
    """A row a threshold: what was asked, the figure, that of the model before, and the verdict."""
    rows = []
    for name, asked in summary.thresholds.items():
        value, before = summary.metrics.get(name), summary.before.get(name)
        drop = None
        if value is not None and before is not None:
            drop = value - before if falls(name) else before - value
        kept = (
            value is not None
            and value >= asked.get("min", 0)
            and value <= asked.get("max", 1)
            and (drop is None or "max_drop" not in asked or drop <= asked["max_drop"] + _ROUNDING)
        )
        rows.append(
            {
                "title": figure_title(name, summary.dataset),
                "asked": list(_asked(asked)),
                "value": "no trials" if value is None else percent(value),
                "before": _difference(name, value, before),
                "kept": kept,
            }
        )
    return rows


def differing_settings(summary: RunSummary, compared: list[Other]) -> list[dict[str, Any]]:
    """A row a setting that is another in one of the other runs."""
    own, *rest = (settings_of(one) for one in (summary, *(other.summary for other in compared)))
    names = sorted({name for one in (own, *rest) for name in one})
    rows = []
    for name in names:
        # What an earlier release has no record of cannot be said to differ.
        values = [one.get(name) for one in rest]
        if name in own and any(name in one and one[name] != own[name] for one in rest):
            rows.append({"title": name, "value": shown(own[name]), "others": map(shown, values)})
    return rows


def settings_of(summary: RunSummary) -> dict[str, Any]:
    """The configuration as one level of keys; of the training what it came to."""
    settings = dict(_flat(summary.config))
    model = Path(summary.artifacts.get("model", "")) / "Format-Serving"
    card = read_json(model / "assets.extra" / "model_card.json")
    settings |= {f"train.{name}": value for name, value in card.get("recipe", {}).items()}
    return {"data": summary.data_found or summary.dataset} | settings


def shown(value: Any) -> str:
    """A setting as it is written in the configuration."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _difference(name: str, value: float | None, other: float | None) -> dict[str, Any]:
    """The other's value, and by how much this one differs; empty where there is none."""
    if value is None or other is None:
        return {}
    change = value - other
    better = change < 0 if falls(name) else change > 0
    told = points(change)
    tone = "" if told.startswith("±") else ("good" if better else "bad")
    return {"value": percent(other), "change": told, "tone": tone}


def _asked(threshold: Mapping[str, float]) -> Iterator[str]:
    if "min" in threshold:
        yield f"at least {100 * threshold['min']:g} %"
    if "max" in threshold:
        yield f"at most {100 * threshold['max']:g} %"
    if "max_drop" in threshold:
        yield f"at most {100 * threshold['max_drop']:g} points worse than the model before"
