"""Declares the settings of the Evaluator and of the ServingGate, and the names of figures."""

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from data_ingest.sampling.protocols import PROTOCOL_RANDOM, PROTOCOL_SKILLED
from data_ingest.settings import Settings

ONE_SHOT_METRIC = re.compile(r"(official|within|between)_([1-9]\d*)way_accuracy")
VERIFICATION_METRICS = ("verification_accuracy", "auc", "eer", "tar_at_1pct_far", "ece")
LOWER_IS_BETTER = ("eer", "ece")
FORGERY_METRICS = {
    f"{figure}_{protocol}": (figure, protocol)
    for protocol in (PROTOCOL_RANDOM, PROTOCOL_SKILLED)
    for figure in VERIFICATION_METRICS
    if figure != "ece"  # Calibrated are scores among forgeries of both kinds.
}
"""Of signatures: figure and protocol of pairs; `eer_skilled` is `eer` with skilled forgeries."""
PAIR_METRICS = (*VERIFICATION_METRICS, *FORGERY_METRICS)

BASELINE_TITLES = {
    "pixel_1nn": "pixel 1-NN",
    "hog": "HOG",
    "lbp": "LBP",
    "modified_hausdorff": "Modified Hausdorff",
}
"""Of recognisers without learning, by name."""
Compared = dict[str, dict[str, float]]
"""By the name of a figure: what each baseline has, by its name."""


def one_shot_metric(protocol: str, way: int | str) -> str:
    """Name of the figure of some trials, as `ONE_SHOT_METRIC` reads it."""
    return f"{protocol}_{way}way_accuracy"


def trials_of(metric: str) -> tuple[str, int] | None:
    """Protocol and way of the trials that a figure is of; None where it is of all single pairs.

    Way is 0 where it is of pairs with one kind of forgery.
    """
    if metric in FORGERY_METRICS:
        return FORGERY_METRICS[metric][1], 0
    found = ONE_SHOT_METRIC.fullmatch(metric)
    return None if found is None else (found[1], int(found[2]))


class Threshold(Settings):
    """What a figure must satisfy for the model to be blessed."""

    min: float | None = Field(default=None, ge=0, le=1, description="not blessed below this")
    max: float | None = Field(default=None, ge=0, le=1, description="not blessed above this")
    max_drop: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="not blessed when worse than the latest blessed model by more than this",
    )

    @model_validator(mode="after")
    def _says_something(self) -> "Threshold":
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError("give at least one of min, max and max_drop")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


DEFAULT_THRESHOLDS = {
    "official_20way_accuracy": Threshold(min=0.80, max_drop=0.02),
    "within_20way_accuracy": Threshold(min=0.55, max_drop=0.03),
    "auc": Threshold(min=0.75, max_drop=0.02),
}


class EvaluateSettings(Settings):
    """When a model is good enough."""

    thresholds: dict[str, Threshold] = Field(
        default=DEFAULT_THRESHOLDS,
        description="by figure: official_20way_accuracy, within_5way_accuracy, auc, eer, ...; on "
        "trials that the data lacks, a default goes to the nearest it has, one of your own blesses "
        "nothing",
    )
    beat_baselines: bool = Field(
        default=True,
        description="a model of one's own images is not blessed unless it is right more often than "
        "pixels, HOG and LBP in the trials that have a threshold",
    )

    @field_validator("thresholds")
    @classmethod
    def _names_are_known(cls, thresholds: dict[str, Threshold]) -> dict[str, Threshold]:
        for name in thresholds:
            if name not in PAIR_METRICS and not ONE_SHOT_METRIC.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no figure; there are official_<way>way_accuracy, "
                    f"within_<way>way_accuracy, between_<way>way_accuracy, "
                    f"{', '.join(PAIR_METRICS)}"
                )
        return thresholds


class GateSettings(Settings):
    """What an export must stand before it is pushed."""

    compared_pairs: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="pairs on which the export's scores are compared with the trained model's",
    )
    max_score_difference: float = Field(
        default=1e-4, gt=0, le=0.1, description="largest difference allowed between the two"
    )
    latency_requests: int = Field(
        default=100, ge=1, le=10_000, description="requests a latency figure is measured over"
    )
    max_p99_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = Field(
        default=None,
        description="99th percentile of embedding one image, in ms, above which it is not blessed",
    )
