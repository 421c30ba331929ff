"""Says in plain words what figures, steps, classes and reasons are called in the code."""

import re
from collections.abc import Sequence
from typing import Final

from components.evaluator.settings import (
    FORGERY_METRICS,
    LOWER_IS_BETTER,
    PAIR_METRICS,
    trials_of,
)

BASELINES: Final = {
    "pixel_1nn": ("Pixels", "Pixels: the candidate whose pixels differ least (nearest neighbour)."),
    "hog": ("HOG", "HOG: histograms of oriented gradients, the directions of edges."),
    "lbp": ("LBP", "LBP: local binary patterns, a description of texture."),
    "modified_hausdorff": (
        "Hausdorff",
        "Hausdorff: the modified Hausdorff distance between the strokes of two drawings.",
    ),
}
"""Of recognisers without learning: heading and explanation, by name."""

STEPS: Final = {
    "PairExampleGen": "Images to pairs",
    "CuratedSchemaGen": "Schema",
    "StatisticsGen": "Statistics",
    "ExampleValidator": "Validation",
    "WarmStartResolver": "Model to start from",
    "BaselineResolver": "Model to beat",
    "ServedModel": "Model to beat",
    "Trainer": "Training",
    "Evaluator": "Evaluation",
    "ServingGate": "Serving gate",
    "Pusher": "Push",
}
"""What the steps of the pipeline are called, by their names in TFX."""

SPLITS: Final = {
    "train": ("Training", "the network learns from it"),
    "eval": ("Validation", "chooses the weights and calibrates the scores"),
    "one_shot": ("Test", "the figures of this report; never seen in training"),
}

FEATURES: Final = {
    "image_a": "First image",
    "image_b": "Second image",
    "label": "Same class",
    "class_a": "Class of the first",
    "class_b": "Class of the second",
    "group_a": "Group of the first",
    "group_b": "Group of the second",
    "writer_a": "Writer of the first",
    "writer_b": "Writer of the second",
    "trial": "Trial",
    "protocol": "Kind of trial",
    "way": "Candidates",
}
"""What a record of a pair holds."""

_PAIR_FIGURES: Final = {
    "verification_accuracy": (
        "Pairs judged right",
        "Share of pairs on the right side of a score of 50 %.",
    ),
    "auc": (
        "AUC, area under the ROC curve",
        "How often a pair of one class scores above a pair of two classes. Guessing has 50 %. ROC, "
        "receiver operating characteristic, is the curve of right against false accepts.",
    ),
    "eer": (
        "EER, equal error rate",
        "The error at the threshold where as many pairs of one class are refused as pairs of two "
        "classes are accepted. Lower is better.",
    ),
    "tar_at_1pct_far": (
        "TAR at 1 % FAR",
        "True accept rate: how many pairs of one class are accepted at the threshold whose false "
        "accept rate, the share of pairs of two classes that are accepted, is 1 %.",
    ),
    "ece": (
        "ECE, expected calibration error",
        "How far a score is, on average, from the share of pairs with that score that are of one "
        "class. Lower is better.",
    ),
}
_METRIC: Final = re.compile(
    rf"\b(?:(?:official|within|between)_[1-9]\d*way_accuracy|(?:{'|'.join(PAIR_METRICS)}))\b"
)
_SHARE: Final = re.compile(r"\b[01]\.\d+\b|(?<=below )\d\b|(?<=above )\d\b")
_NUMBERED: Final = re.compile(r"\b(run|item|set|character|class)0*(\d+)\b")


def percent(share: float | None, digits: int = 1) -> str:
    """`0.9234` → `92.3 %`; empty without a value."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign: `+1.3`."""
    shown = f"{100 * difference:+.1f}"
    return "±0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def figure_title(name: str, dataset: str = "") -> str:
    """What a figure is: `within_20way_accuracy` → `20 candidates of one group`."""
    trials = trials_of(name)
    if trials is None or not trials[1]:
        if name in FORGERY_METRICS:
            figure, forgeries = FORGERY_METRICS[name]
            return f"{_PAIR_FIGURES[figure][0]}, {forgeries} forgeries"
        return _PAIR_FIGURES[name][0]
    protocol, way = trials
    group = "alphabet" if dataset == "omniglot" else "group"
    where = {"within": f"of one {group}", "between": f"of all {group}s"}
    if protocol == "official":
        return f"Omniglot's official trials, {way} candidates"
    return f"{way} candidates {where[protocol]}"


def figure_explained(name: str) -> str:
    """What a figure of pairs says; empty for trials."""
    return _PAIR_FIGURES.get(FORGERY_METRICS.get(name, (name,))[0], ("", ""))[1]


def falls(name: str) -> bool:
    """Whether less of a figure is better."""
    return name.startswith(LOWER_IS_BETTER)


def plain(name: str) -> str:
    """A group or class for people: `run08/class03` → `run 8, class 3`."""
    spaced = _NUMBERED.sub(r"\1 \2", name.replace("/", ", "))
    return spaced.replace("_", " ")


def both(classes: Sequence[str]) -> str:
    """Two classes for people, their group named once if it is the same."""
    first, second = classes
    group = first.rpartition("/")[0]
    same = group and second.startswith(f"{group}/")
    return f"{plain(first)} and {plain(second.removeprefix(f'{group}/') if same else second)}"


def sentence(reason: str, dataset: str = "") -> str:
    """A reason with figures named in words, and their values in percent."""
    if not _METRIC.match(reason):
        return reason
    unit = "points" if " worse than " in reason else "%"
    told = _SHARE.sub(lambda found: f"{round(100 * float(found[0]), 1):g} {unit}", reason)
    return _METRIC.sub(lambda found: figure_title(found[0], dataset), told)
