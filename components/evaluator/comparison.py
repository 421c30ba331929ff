"""Compares a model's figures with those of baselines on the same trials; what it must beat."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tensorflow_model_analysis.proto import config_pb2

from components.evaluator.baselines import baseline_figures
from components.evaluator.eval_config import read_metrics
from components.evaluator.settings import BASELINE_TITLES, Compared, one_shot_metric
from data_ingest.durable import write_atomically
from data_ingest.records import features

COMPARISON_FILE: Final = "baselines.json"
"""In the Evaluator's `evaluation` artifact."""
NOTHING_TO_BEAT: Final = 0.98
"""An accuracy from which on a baseline that is as good refuses nothing: trials are that easy."""


def compare(
    *, examples: Path, evaluation: Path, config: config_pb2.EvalConfig, beat: bool
) -> list[str]:
    """Has baselines answer what a model was measured by, and writes what came of it.

    Args:
      examples: URI of the Examples artifact.
      evaluation: URI of the `evaluation` artifact with the model's figures; `baselines.json` is
        written into it.
      config: that of the Evaluator: what is beaten are figures of trials that have a threshold.
      beat: whether the model must beat the baselines to be blessed.

    Returns:
      reasons against the model, a line each.

    Raises:
      InputError: as `naming_unsound`.
    """
    figures = baseline_figures(examples)
    metrics = read_metrics(str(evaluation))
    reasons = sorted(not_beaten(metrics, figures, _judged_trials(config))) if beat else []
    document = {"figures": figures, "refusals": reasons}
    write_atomically(evaluation / COMPARISON_FILE, json.dumps(document, indent=1) + "\n")
    return reasons


def not_beaten(
    metrics: Mapping[str, Any], figures: Compared, judged: Iterable[str]
) -> Iterator[str]:
    """Says of each figure that is judged, and that a baseline has as well or better, which has it.

    Args:
      metrics: figures of the model.
      figures: of the baselines.
      judged: names of figures.
    """
    for name in judged:
        if name not in metrics or name not in figures:
            continue
        best = max(figures[name], key=figures[name].__getitem__)
        if metrics[name] <= figures[name][best] and metrics[name] < NOTHING_TO_BEAT:
            yield (
                f"{name} {metrics[name]:.4f} does not beat {BASELINE_TITLES[best]}, which has "
                f"{figures[name][best]:.4f} on the same trials without training "
                "(evaluate.beat_baselines)"
            )


def _judged_trials(config: config_pb2.EvalConfig) -> list[str]:
    slices = [
        dict(where.feature_values)
        for specification in config.metrics_specs
        for metric in specification.metrics
        for threshold in metric.per_slice_thresholds
        for where in threshold.slicing_specs
    ]
    return [
        one_shot_metric(of[features.PROTOCOL], of[features.WAY])
        for of in slices
        if of.get(features.WAY, "0") != "0"
    ]
