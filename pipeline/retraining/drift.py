"""Measures how a span differs from those before it: by figures of its images, and by accuracy.

TFDV compares shares of ranges instead of numbers, whose histograms it makes of the data: there, a
single outlier among two thousand values moves the divergence of two equal samples from 0.01 to 0.5.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import tensorflow_data_validation as tfdv
from scipy.stats import t as student
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from components.evaluator.offline import run_trials
from data_ingest.durable import write_atomically
from data_ingest.errors import InputError
from data_ingest.records.catalog import EVALUATION
from data_ingest.sampling.index import ImageIndex, ImageRef
from data_ingest.sampling.protocols import PROTOCOL_WITHIN
from data_ingest.sampling.trials import NotEnoughClasses, largest_way
from data_ingest.sources.layout import ImageFile, list_images
from data_ingest.spans.image_figures import (
    FIGURES,
    ImageFigures,
    measure_images,
    natural_divergences,
)
from data_ingest.spans.span import Span
from data_ingest.spans.store import SpanStore
from data_ingest.spans.turns import TURNS, looks_turned
from pipeline.config import PipelineConfig
from pipeline.releases.label_file import served_model
from pipeline.runs.workspace import Workspace
from pipeline.settings import DriftSettings
from serving.saved_model.loader import LoadedModel
from serving.saved_model.versions import is_complete, read_crop

DIVERGENCE: Final = "jensen_shannon_divergence"
LABEL_SHIFT: Final = "l_infinity"
UNEXPECTED: Final = "unexpected_share"
ACCURACY_DROP: Final = "accuracy_drop"
TURNED: Final = "turned_share"

_CATEGORIES: Final = ("form", "paper")
_EXPECTED_SHARE: Final = 0.01
"""A value rarer than this in the reference is none that is to be expected."""
_FEWEST_GROUPS: Final = 3
_TURNED_SHARE: Final = 0.2
"""A smaller excess of images that look turned is none, however sure."""
_TURNED_ERROR: Final = 0.01
"""How often new groups as they are may look turned, by any of the turns."""
_WAY: Final = 20
_SEED: Final = 1


@dataclass(frozen=True)
class Measurement:
    """One comparison of a span with those before it."""

    feature: str
    measure: str
    value: float
    threshold: float
    message: str = ""

    @property
    def exceeded(self) -> bool:
        return self.value > self.threshold


@dataclass(frozen=True)
class DriftReport:
    """What was measured of a span, and what of it is beyond its threshold."""

    span: int
    reference: tuple[int, ...]
    images: int
    reference_images: int
    model: str | None
    accuracy: dict[str, Any] | None
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    blocked: bool

    @property
    def findings(self) -> tuple[Measurement, ...]:
        return tuple(one for one in self.measurements if one.exceeded)

    def __str__(self) -> str:
        """What was found, on one line; empty if nothing was."""
        return "; ".join(
            f"{one.feature} {one.measure.replace('_', ' ')} {one.value:.3f} > {one.threshold:.3f}"
            for one in self.findings
        )

    def document(self) -> dict[str, Any]:
        """The report as JSON values, with the findings apart."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings]}


def check_drift(
    config: PipelineConfig, workspace: Workspace, number: int, *, model: Path | None = None
) -> DriftReport:
    """Measures a span against those before it, writes `span-<N>.json`, and may exclude the span.

    Excluded it is where something was found, `drift.action` is block, and nobody has readmitted it.
    `model` is the folder of a SavedModel; None takes the served one, if there is any yet.

    Raises:
      InputError: there is no such span, the images of one are no longer those that landed, none of
        them can be used, or `model` is none.
    """
    settings, store = config.drift, SpanStore(workspace.spans)
    span = store.span(number)
    before = [one for one in store.spans() if one.number < number and one.excluded is None]
    reference = before[-settings.reference_spans :]
    model = model or served_model(workspace, config.push)
    if model is not None and not is_complete(model):
        raise InputError(f"{model}: no saved_model.pb here; give the folder of a version")
    for one in (span, *reference):
        one.check()
    new = measure_images([span.containers], limit=settings.max_images)
    old = measure_images([one.containers for one in reference], limit=settings.max_images)
    if not len(new):
        raise InputError(
            f"span {number}: none of its images can be used: `oneshot spans check {number}` says "
            f"why, and `oneshot spans exclude {number} --reason WHY` keeps it out of trainings"
        )
    measurements: list[Measurement] = []
    notes = [
        f"{figures.rejected} images {where} cannot be used: `oneshot spans check` names them"
        for figures, where in ((new, "of this span"), (old, "of the spans before"))
        if figures.rejected
    ]
    accuracy = None
    if not len(old):
        notes.append("no earlier span to compare with")
    else:
        measurements += compare_figures(new, old, settings)
        measurements += compare_turns(new, old)
        measurements += compare_labels(new, old, settings, unit=span.unit)
        if model is None:
            notes.append("no model is served yet: its accuracy was not measured")
        else:
            try:
                accuracy, drop = compare_accuracy(
                    span,
                    reference,
                    model,
                    settings,
                    writer_pattern=config.dataset.writer_pattern,
                )
                measurements.append(drop)
            except NotEnoughClasses as error:
                notes.append(f"accuracy was not measured: {error}")
    found = [one.feature for one in measurements if one.exceeded]
    report = DriftReport(
        span=number,
        reference=tuple(one.number for one in reference),
        images=len(new),
        reference_images=len(old),
        model=None if model is None else str(model),
        accuracy=accuracy,
        measurements=tuple(measurements),
        notes=tuple(notes),
        blocked=bool(found) and settings.action == "block" and not span.readmitted,
    )
    text = json.dumps(report.document(), indent=2) + "\n"
    write_atomically(workspace.drift_reports / f"span-{number}.json", text)
    if report.blocked:
        store.exclude(number, f"drift: {', '.join(found)}")
    return report


def compare_figures(
    new: ImageFigures, old: ImageFigures, settings: DriftSettings
) -> list[Measurement]:
    """Divergences of all figures, and shares of images of kinds that were not there before."""
    schema = schema_pb2.Schema()
    thresholds: dict[str, float] = {}
    natural = natural_divergences(old, like=new)
    for figure in FIGURES:
        feature = _feature(schema, figure)
        thresholds[figure] = max(settings.divergence, settings.divergence_factor * natural[figure])
        feature.drift_comparator.jensen_shannon_divergence.threshold = thresholds[figure]
        if figure in _CATEGORIES:
            feature.string_domain.value.extend(_expected(old, figure))
            feature.distribution_constraints.min_domain_mass = 1 - settings.unexpected_share
    anomalies = _validate(schema, dict(new.columns), dict(old.columns))
    measurements = [
        Measurement(name, DIVERGENCE, value, thresholds[name]) for name, value in _drifts(anomalies)
    ]
    for figure in _CATEGORIES:
        expected = _expected(old, figure)
        unexpected = sum(part for value, part in new.share(figure).items() if value not in expected)
        message = " ".join(
            reason.description
            for reason in anomalies.anomaly_info[figure].reason
            if reason.type == anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES
        )
        measurements.append(
            Measurement(figure, UNEXPECTED, unexpected, settings.unexpected_share, message)
        )
    return measurements


def compare_turns(new: ImageFigures, old: ImageFigures) -> list[Measurement]:
    """Shares of images that look turned, beyond that before: a one-sided t-test of the groups.

    Classes stand for groups where both sides have no more than one and the same. No measurement
    where the reference has fewer than `_FEWEST_GROUPS` of them: one new alphabet can look like
    another one that is turned, and how often must be known.
    """
    sides = [new.groups, old.groups]
    if len({*new.groups, *old.groups}) == 1:
        sides = [new.classes, old.classes]
    (_, unit), (names, known) = (np.unique(side, return_inverse=True) for side in sides)
    if len(names) < _FEWEST_GROUPS:
        return []
    measurements = []
    for quarters in TURNS:
        now, before = (
            np.bincount(units, judged) / np.bincount(units)
            for units, judged in zip(
                (unit, known), looks_turned(new.strokes, old.strokes, known, quarters), strict=True
            )
        )
        freedom = len(now) + len(before) - 2
        spread = (len(now) * now.var() + len(before) * before.var()) / freedom
        error = math.sqrt(spread * (1 / len(now) + 1 / len(before)))
        limit = student.ppf(1 - _TURNED_ERROR / len(TURNS), freedom)
        measurements.append(
            Measurement(
                f"turn_{90 * quarters}",
                TURNED,
                float(now.mean() - before.mean()),
                max(_TURNED_SHARE, float(limit * error)),
            )
        )
    return measurements


def compare_labels(
    new: ImageFigures, old: ImageFigures, settings: DriftSettings, *, unit: str
) -> list[Measurement]:
    """The greatest change of a group's share among the groups that both have.

    New groups are what spans bring, and not all known ones come again; neither is drift. No
    measurement where fewer than two are in both.
    """
    labels = [new.groups, old.groups] if unit == "group" else [new.classes, old.classes]
    common = set(labels[0]) & set(labels[1])
    if len(common) < 2:
        return []
    kept = [[label for label in side if label in common] for side in labels]
    schema = schema_pb2.Schema()
    _feature(schema, unit).drift_comparator.infinity_norm.threshold = settings.label_shift
    anomalies = _validate(schema, {unit: kept[0]}, {unit: kept[1]})
    reasons = [info.description for info in anomalies.anomaly_info.values()]
    return [
        Measurement(unit, LABEL_SHIFT, value, settings.label_shift, " ".join(reasons))
        for _, value in _drifts(anomalies)
    ]


def compare_accuracy(
    span: Span,
    reference: Sequence[Span],
    model: Path,
    settings: DriftSettings,
    *,
    writer_pattern: str | None = None,
) -> tuple[dict[str, Any], Measurement]:
    """One-shot accuracy of a model on a span against that on earlier spans.

    On both sides it is that on classes which no model is trained on; where the span brings too few
    of those, that on all of the span: classes known to the model can only hide a drop. Groups
    differ in difficulty, so the mean of a few may be lower by what their spread explains.

    Raises:
      NotEnoughClasses: one side cannot make a trial of two candidates.
    """

    def images(containers: Sequence[Path]) -> list[ImageFile]:
        return [file for one in containers for file in list_images(one, writer_pattern)]

    kept = images([path for one in reference if (path := one.container(EVALUATION))])
    own = span.container(EVALUATION)
    new = images([] if own is None else [own])
    if _way(new) < 2:
        new = images(span.containers)
    way = min(_WAY, max(2, min(_way(new), _way(kept))))
    crop = read_crop(model)
    with LoadedModel(model) as loaded:
        (now, groups), (before, earlier) = (
            run_trials(loaded, files, way=way, trials=settings.trials, seed=_SEED, crop=crop)
            for files in (new, kept)
        )
    threshold = settings.accuracy_drop
    if len(earlier) >= _FEWEST_GROUPS:
        spread = float(np.std(list(earlier.values()), ddof=1))
        scale = math.sqrt(1 / len(groups) + 1 / len(earlier))
        threshold = max(threshold, settings.divergence_factor * spread * scale)
    accuracy = {
        side: {"accuracy": of.accuracy, "ci95": of.accuracy_ci95, "n": of.accuracy_n, "groups": n}
        for side, of, n in (("span", now, len(groups)), ("reference", before, len(earlier)))
    }
    drop = before.accuracy - now.accuracy
    return {"way": way, **accuracy}, Measurement(f"{way}-way", ACCURACY_DROP, drop, threshold)


def _way(files: Sequence[ImageFile]) -> int:
    """The most candidates of a trial, going by names alone."""
    refs = [ImageRef.of(file)._replace(key=f"{file.uri}\0{file.container}") for file in files]
    return largest_way(ImageIndex.build(refs), PROTOCOL_WITHIN)


def _feature(schema: schema_pb2.Schema, name: str) -> Any:
    feature = schema.feature.add(name=name, type=schema_pb2.BYTES)
    feature.presence.CopyFrom(schema_pb2.FeaturePresence(min_fraction=1.0, min_count=1))
    feature.shape.dim.add(size=1)
    return feature


def _expected(old: ImageFigures, figure: str) -> list[str]:
    return [value for value, part in old.share(figure).items() if part >= _EXPECTED_SHARE]


def _validate(
    schema: schema_pb2.Schema, new: dict[str, Any], old: dict[str, Any]
) -> anomalies_pb2.Anomalies:
    return tfdv.validate_statistics(_statistics(new), schema, previous_statistics=_statistics(old))


def _statistics(columns: dict[str, Any]) -> statistics_pb2.DatasetFeatureStatisticsList:
    values = sum((len(set(column)) for column in columns.values()), start=1)
    # With fewer buckets than values TFDV compares the most frequent ones alone.
    options = tfdv.StatsOptions(num_rank_histogram_buckets=values)
    return tfdv.generate_statistics_from_dataframe(pd.DataFrame(columns), options)


def _drifts(anomalies: anomalies_pb2.Anomalies) -> list[tuple[str, float]]:
    return [
        (info.path.step[0], measured.value)
        for info in anomalies.drift_skew_info
        for measured in info.drift_measurements
    ]
