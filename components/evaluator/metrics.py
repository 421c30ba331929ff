"""Defines the TFMA metrics: N-way one-shot accuracy, and figures over verification pairs.

Every figure comes out as four numbers, `NAME`, `NAME/n`, `NAME/ci_low` and `NAME/ci_high`; in a
slice without such data the first, third and fourth are NaN and `n` is 0. (They must be there:
TFMA refuses a model when a thresholded metric is missing from any slice.)
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.metrics import metric_types

from components.evaluator.settings import VERIFICATION_METRICS
from components.evaluator.statistics import Interval, ScoredPairs, trial_credit, wilson_interval
from data_ingest.records import features

ONE_SHOT_ACCURACY = "one_shot_accuracy"
MALFORMED = "one_shot_accuracy/malformed"
LOGIT = "logit"


class OneShotAccuracy(metric_types.Metric):
    """Share of one-shot trials won; takes the pairs of a trial together, as `by_trial` yields them.

    A trial is won when its one same-class pair has the highest logit; a tie for the highest
    shares the credit, so a model that gives every pair the same logit scores 1 / way. Logits and
    not scores, since scores saturate to exactly 1.0 and would tie. A NaN logit loses.

    A trial that does not have exactly `way` pairs of which exactly one is of the same class is
    malformed: it counts as lost, and in `one_shot_accuracy/malformed`. Pairs with `way` 0 belong to
    no trial and are left out.
    """

    def __init__(self, name: str = ONE_SHOT_ACCURACY, *, source_hash: str = "") -> None:
        """Args: source_hash: of this code; it makes the Evaluator's cache key change with it."""
        super().__init__(_one_shot_computations, name=name, source_hash=source_hash)


class VerificationMetric(metric_types.Metric):
    """One of `VERIFICATION_METRICS` over the pairs outside trials, computed by `ScoredPairs`.

    All are derived from the same exact set of (logit, label); what a worker holds of it grows
    by 5 bytes a verification pair, slice and model.
    """

    def __init__(self, name: str) -> None:
        if name not in VERIFICATION_METRICS:
            raise ValueError(f"{name!r} is none of {', '.join(VERIFICATION_METRICS)}")
        super().__init__(_verification_computations, name=name)


class _Pairs(NamedTuple):
    """What a combiner gets to see: pairs of one trial, or some outside trials."""

    trial: bytes
    way: int
    labels: npt.NDArray[np.int64]
    """`[N]`"""
    logits: dict[str, npt.NDArray[np.float32]]
    """`[N]` each, by model name."""


class PairPreprocessor(metric_types.Preprocessor):
    """Hands on the pairs of a trial, or those outside trials."""

    def __init__(self, *, in_trials: bool) -> None:
        super().__init__(name=f"pairs_{'in' if in_trials else 'outside'}_trials")
        self._in_trials = in_trials

    def process(self, extracts: dict[str, Any]) -> Iterator[_Pairs]:
        (trial,), (way,) = (extracts[constants.FEATURES_KEY][name] for name in _OF_TRIAL)
        if (way > 0) != self._in_trials:
            return
        labels, predictions = extracts[constants.LABELS_KEY], extracts[constants.PREDICTIONS_KEY]
        if isinstance(labels, Mapping):
            # With a baseline TFMA keeps labels, too, by model; they are the same.
            labels = next(iter(labels.values()))
        by_model = {"": predictions} if LOGIT in predictions else predictions
        logits = {model: outputs[LOGIT] for model, outputs in by_model.items()}
        yield _Pairs(bytes(trial), int(way), labels, logits)


_OF_TRIAL: Final = (features.TRIAL, features.WAY)
_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Labels and logits."""


@dataclass
class _Trials:
    credit: float = 0.0
    n: int = 0
    malformed: int = 0
    parts: defaultdict[tuple[bytes, int], list[_Part]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By trial and way, of those that were not whole when they came."""

    def count(self, part: _Part, way: int) -> None:
        credit = trial_credit(*part, way)
        self.credit += credit or 0.0
        self.n += 1
        self.malformed += credit is None


class _OneShotCombiner(beam.CombineFn):
    """Sums credit over trials, in constant memory but for trials that are cut by batches."""

    def __init__(self, *, name: str, model: str) -> None:
        self._name = name
        self._model = model

    def create_accumulator(self) -> _Trials:
        return _Trials()

    def add_input(self, accumulator: _Trials, element: _Pairs) -> _Trials:
        part = element.labels, element.logits[self._model]
        if len(element.labels) == element.way:
            accumulator.count(part, element.way)
        else:
            accumulator.parts[element.trial, element.way].append(part)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[_Trials]) -> _Trials:
        merged = _Trials()
        for each in accumulators:
            merged.credit += each.credit
            merged.n += each.n
            merged.malformed += each.malformed
            for key, parts in each.parts.items():
                merged.parts[key] += parts
        return merged

    def extract_output(self, accumulator: _Trials) -> dict[metric_types.MetricKey, float]:
        trials = replace(accumulator)
        for (_, way), parts in accumulator.parts.items():
            labels, logits = map(np.concatenate, zip(*parts, strict=True))
            trials.count((labels, logits), way)
        credit, n = trials.credit, trials.n
        value = credit / n if n else math.nan
        figures = _figures(self._name, self._model, value, n, wilson_interval(credit, n))
        return figures | {_key(MALFORMED, self._model): float(trials.malformed)}


_Gathered = list[tuple[Any, Any]]
"""Logits and labels, `[N]` each, of some pairs an entry."""


class _VerificationCombiner(beam.CombineFn):
    """Gathers (logit, label) and hands on a `ScoredPairs`. A pair with a NaN logit is dropped.

    Dropping makes `n` fall short; a model that says NaN everywhere has n = 0 and NaN figures,
    which no threshold lets pass.
    """

    def __init__(self, *, model: str) -> None:
        self._model = model

    def create_accumulator(self) -> _Gathered:
        return []

    def add_input(self, accumulator: _Gathered, element: _Pairs) -> _Gathered:
        logits = element.logits[self._model]
        known = ~np.isnan(logits)
        accumulator.append((logits[known], element.labels[known].astype(np.int8)))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[_Gathered]) -> _Gathered:
        return self.compact([part for accumulator in accumulators for part in accumulator])

    def compact(self, accumulator: _Gathered) -> _Gathered:
        if len(accumulator) < 2:
            return accumulator
        logits, labels = zip(*accumulator, strict=True)
        return [(np.concatenate(logits), np.concatenate(labels))]

    def extract_output(self, accumulator: _Gathered) -> dict[metric_types.MetricKey, ScoredPairs]:
        logits, labels = self.compact(accumulator)[0] if accumulator else ([], [])
        return {_pairs_key(self._model): ScoredPairs(logits, labels)}


def _one_shot_computations(
    name: str, source_hash: str, model_names: list[str] | None = None
) -> list[metric_types.MetricComputation]:
    del source_hash
    return [
        metric_types.MetricComputation(
            keys=[_key(name, model)],
            preprocessors=[PairPreprocessor(in_trials=True)],
            combiner=_OneShotCombiner(name=name, model=model),
        )
        for model in model_names or [""]
    ]


def _verification_computations(
    name: str, model_names: list[str] | None = None
) -> list[metric_types.MetricComputation | metric_types.DerivedMetricComputation]:
    computations: list[Any] = []
    for model in model_names or [""]:
        computations.append(
            metric_types.MetricComputation(
                keys=[_pairs_key(model)],
                preprocessors=[PairPreprocessor(in_trials=False)],
                combiner=_VerificationCombiner(model=model),
            )
        )
        figure = partial(_verification_figure, name, model)
        computations.append(
            metric_types.DerivedMetricComputation(keys=[_key(name, model)], result=figure)
        )
    return computations


def _verification_figure(
    name: str, model: str, metrics: Mapping[metric_types.MetricKey, Any]
) -> dict[metric_types.MetricKey, float]:
    pairs: ScoredPairs = metrics[_pairs_key(model)]
    value, interval = getattr(pairs, name)()
    return _figures(name, model, value, pairs.n, interval)


def _figures(
    name: str, model: str, value: float, n: int, interval: Interval
) -> dict[metric_types.MetricKey, float]:
    low, high = interval
    numbers = {name: value, f"{name}/n": float(n), f"{name}/ci_low": low, f"{name}/ci_high": high}
    return {_key(number, model): figure for number, figure in numbers.items()}


def _key(name: str, model: str) -> metric_types.MetricKey:
    return metric_types.MetricKey(name=name, model_name=model, example_weighted=False)


def _pairs_key(model: str) -> metric_types.MetricKey:
    # A leading underscore keeps it out of what TFMA writes and compares.
    return metric_types.MetricKey(name="_scored_pairs", model_name=model)
