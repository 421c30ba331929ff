"""Configures TFX's Evaluator (what it measures, when it blesses) and reads its figures back."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Set
from typing import Any

import tensorflow_model_analysis as tfma
from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator import extractors, metrics
from components.evaluator.evidence import evidence
from components.evaluator.metrics import MALFORMED, ONE_SHOT_ACCURACY
from components.evaluator.settings import (
    FORGERY_METRICS,
    LOWER_IS_BETTER,
    VERIFICATION_METRICS,
    EvaluateSettings,
    Threshold,
    one_shot_metric,
    trials_of,
)
from data_ingest.records import features

_log = logging.getLogger(__name__)

# As text, since TFX imports both by name; `source_hash` takes these names as well.
EXTRACTORS_MODULE = extractors.__name__
METRICS_MODULE = metrics.__name__


def eval_config(
    settings: EvaluateSettings, protocols: Set[tuple[str, int]], *, source_hash: str = ""
) -> config_pb2.EvalConfig:
    """Configuration of TFX's Evaluator: to be given the `one_shot` split and `EXTRACTORS_MODULE`.

    There is one model spec without a name; the Evaluator adds a baseline when it has one, and
    drops the thresholds on change when it has none.

    Args:
      settings: thresholds, of which `evidence` makes those that are gated. TFMA refuses a model
        over a slice that does not occur.
      protocols: the (protocol, way) combinations that the `one_shot` split has.
      source_hash: of the code that evaluates; a part of the Evaluator's cache key.
    """
    gates: defaultdict[str, list[config_pb2.PerSliceMetricThreshold]] = defaultdict(list)
    for name, threshold in evidence(settings, protocols).thresholds.items():
        trials = trials_of(name)
        figure, where = name, config_pb2.SlicingSpec()
        if trials is not None:
            protocol, way = trials
            figure = ONE_SHOT_ACCURACY if way else FORGERY_METRICS[name][0]
            values = {features.PROTOCOL: protocol, features.WAY: str(way)}
            where = config_pb2.SlicingSpec(feature_values=values)
        gates[figure].append(_gate(figure, threshold, where))
    accuracy = config_pb2.MetricConfig(
        class_name=metrics.OneShotAccuracy.__name__,
        module=METRICS_MODULE,
        config=json.dumps({"name": ONE_SHOT_ACCURACY, "source_hash": source_hash}),
        per_slice_thresholds=gates[ONE_SHOT_ACCURACY],
    )
    figures = [
        config_pb2.MetricConfig(
            class_name=metrics.VerificationMetric.__name__,
            module=METRICS_MODULE,
            config=json.dumps({"name": name}),
            per_slice_thresholds=gates[name],
        )
        for name in VERIFICATION_METRICS
    ]
    return config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(label_key=features.LABEL, prediction_key="score")],
        slicing_specs=[
            config_pb2.SlicingSpec(),
            config_pb2.SlicingSpec(feature_keys=[features.PROTOCOL]),
            config_pb2.SlicingSpec(feature_keys=[features.PROTOCOL, features.WAY]),
            config_pb2.SlicingSpec(
                feature_keys=[features.PROTOCOL, features.WAY, features.GROUP_A]
            ),
        ],
        metrics_specs=[config_pb2.MetricsSpec(metrics=[accuracy, *figures])],
        options=config_pb2.Options(include_default_metrics=wrappers_pb2.BoolValue(value=False)),
    )


def read_metrics(evaluation_uri: str, *, baseline: bool = False) -> dict[str, Any]:
    """The candidate's (or the baseline model's) figures by the names of summary.json, sorted.

    Each figure `f` comes with `f_ci95` ([low, high]) and `f_n`; figures without data are absent.
    One-shot figures are `<protocol>_<way>way_accuracy`, with `..._malformed` where trials were;
    figures of pairs with one kind of forgery have its name behind (`eer_skilled`).
    `per_group` holds the same by figure and group: `{figure: {group: {value, ci95, n}}}`, a group
    being an alphabet or, for the official trials, a run.

    Args:
      evaluation_uri: the Evaluator's `evaluation` artifact.
      baseline: whether to read those of the model before; none where there was none.
    """
    wanted = (tfma.BASELINE_KEY,) if baseline else ("", tfma.CANDIDATE_KEY)
    figures: dict[str, Any] = {}
    per_group: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for of_slice in tfma.load_metrics(evaluation_uri):
        trials = _slice(of_slice.slice_key)
        values = {
            pair.key.name: pair.value.double_value.value
            for pair in of_slice.metric_keys_and_values
            if pair.key.model_name in wanted and not pair.key.is_diff
        }
        if not trials:
            for name in VERIFICATION_METRICS:
                figures.update(_flat_figure(name, _figure(values, name)))
        if trials.keys() == {features.PROTOCOL}:
            for name, (measure, protocol) in FORGERY_METRICS.items():
                if protocol == trials[features.PROTOCOL]:
                    figures.update(_flat_figure(name, _figure(values, measure)))
        if features.WAY not in trials or trials[features.WAY] == "0":
            continue
        name = one_shot_metric(trials[features.PROTOCOL], trials[features.WAY])
        figure = _figure(values, ONE_SHOT_ACCURACY)
        if features.GROUP_A in trials:
            if figure:
                per_group[name][trials[features.GROUP_A]] = figure
            continue
        figures.update(_flat_figure(name, figure))
        if malformed := values.get(MALFORMED):
            figures[f"{name}_malformed"] = int(malformed)
            _log.warning("%d malformed trials count as lost in %s", malformed, name)
    result = dict(sorted(figures.items()))
    result["per_group"] = {
        name: dict(sorted(groups.items())) for name, groups in sorted(per_group.items())
    }
    return result


def refusals(evaluation_uri: str) -> list[str]:
    """Why the model was not blessed, a line a threshold; `lacking` has those without trials."""
    result = tfma.load_validation_result(evaluation_uri)
    reasons = []
    for of_slice in result.metric_validations_per_slice:
        trials = _slice(of_slice.slice_key)
        for failure in of_slice.failures:
            name = failure.metric_key.name
            if name == ONE_SHOT_ACCURACY and trials:
                name = one_shot_metric(trials[features.PROTOCOL], trials[features.WAY])
            elif trials:
                name = f"{name}_{trials[features.PROTOCOL]}"
            value = failure.metric_value.double_value.value
            reasons.append(_reason(name, value, failure.metric_threshold, failure.message))
    return sorted(set(reasons))


def lacking(evaluation_uri: str, asked: Iterable[str]) -> list[str]:
    """Which of the figures `asked` for have no trials, sorted: then nothing is blessed."""
    missing = tfma.load_validation_result(evaluation_uri).missing_slices
    values = [dict(one.feature_values) for one in missing]
    trials = {(of[features.PROTOCOL], int(of[features.WAY])) for of in values}
    return sorted(name for name in asked if trials_of(name) in trials)


def _figure(values: dict[str, float], name: str) -> dict[str, Any]:
    """`value`, `ci95` and `n` of a figure; empty where there was no data."""
    if math.isnan(values.get(name, math.nan)):
        return {}
    interval = [values[f"{name}/ci_low"], values[f"{name}/ci_high"]]
    return {"value": values[name], "ci95": interval, "n": int(values[f"{name}/n"])}


def _flat_figure(name: str, figure: dict[str, Any]) -> dict[str, Any]:
    suffixes = {"value": "", "ci95": "_ci95", "n": "_n"}
    return {f"{name}{suffixes[key]}": value for key, value in figure.items()}


def _slice(key: Any) -> dict[str, str]:
    values = ((one.column, getattr(one, one.WhichOneof("kind"))) for one in key.single_slice_keys)
    return {
        column: value.decode() if isinstance(value, bytes) else str(value)
        for column, value in values
    }


def _gate(
    name: str, threshold: Threshold, where: config_pb2.SlicingSpec
) -> config_pb2.PerSliceMetricThreshold:
    # Without a baseline TFX takes away the change threshold; a bound that any number keeps (and
    # NaN does not) leaves something to be blessed by.
    gate = config_pb2.MetricThreshold()
    gate.value_threshold.lower_bound.value = 0.0 if threshold.min is None else threshold.min
    gate.value_threshold.upper_bound.value = 1.0 if threshold.max is None else threshold.max
    if threshold.max_drop is not None:
        falls = name in LOWER_IS_BETTER
        direction = "LOWER_IS_BETTER" if falls else "HIGHER_IS_BETTER"
        gate.change_threshold.direction = config_pb2.MetricDirection.Value(direction)
        gate.change_threshold.absolute.value = threshold.max_drop if falls else -threshold.max_drop
    return config_pb2.PerSliceMetricThreshold(slicing_specs=[where], threshold=gate)


def _reason(name: str, value: float, threshold: Any, message: str) -> str:
    if message:
        return f"{name}: {' '.join(message.split())}"
    if threshold.HasField("change_threshold"):
        allowed = abs(threshold.change_threshold.absolute.value)
        return (
            f"{name} is {abs(value):.4f} worse than the latest blessed model's; "
            f"{allowed:g} is allowed"
        )
    if math.isnan(value):
        return f"{name} could not be measured"
    bounds = threshold.value_threshold
    if value < bounds.lower_bound.value:
        return f"{name} {value:.4f} is below {bounds.lower_bound.value:g}"
    return f"{name} {value:.4f} is above {bounds.upper_bound.value:g}"
