"""Decides what a model is judged by: which thresholds, on which of the trials that the data has."""

import logging
import math
import textwrap
from collections.abc import Sequence, Set
from typing import Final, NamedTuple

from components.evaluator.settings import (
    DEFAULT_THRESHOLDS,
    EvaluateSettings,
    Threshold,
    one_shot_metric,
    trials_of,
)
from data_ingest.sampling.protocols import (
    PROTOCOL_BETWEEN,
    PROTOCOL_OFFICIAL,
    PROTOCOL_WITHIN,
)

NOT_ENOUGH_EVIDENCE: Final = "NOT ENOUGH EVIDENCE"
FALLBACK_THRESHOLD: Final = Threshold(min=0.6)
"""Of `auc`, where the user names no trials: without any threshold TFX blesses nothing."""

_log = logging.getLogger(__name__)


class Evidence(NamedTuple):
    """What is asked of a model, and whether the data can show it."""

    thresholds: dict[str, Threshold]
    """By figure. Those that are lacking are among them, so that they refuse the model."""
    notes: tuple[str, ...]
    """Sentences: which default is held against other trials than it names."""
    lacking: tuple[str, ...]
    """Figures of trials that the data does not have: nothing is blessed."""


def evidence(settings: EvaluateSettings, protocols: Set[tuple[str, int]]) -> Evidence:
    """Fits the thresholds to the trials that there are.

    A default on trials within groups that the data does not have is held against those within
    groups of the nearest way, else between groups; its `min` is then that of as many candidates
    (`min_for_way`). The default on the official trials is Omniglot's and left out elsewhere. A
    threshold of the user's own is never moved: without its trials it is lacking, and so are the
    defaults where none on trials is left.

    Args:
      settings: what the user asks for.
      protocols: (protocol, way) of the trials that the data has.
    """
    gated: dict[str, Threshold] = {}
    left_out: dict[str, Threshold] = {}
    moved: dict[str, Threshold] = {}
    notes: list[str] = []
    lacking: list[str] = []
    for name, threshold in settings.thresholds.items():
        trials = trials_of(name)
        if trials is None or trials in protocols:
            gated[name] = threshold
            continue
        if DEFAULT_THRESHOLDS.get(name) != threshold:
            gated[name] = threshold
            lacking.append(name)
            continue
        left_out[name] = threshold
        protocol, way = trials
        nearest = None if protocol == PROTOCOL_OFFICIAL else _nearest(protocols, way)
        if nearest is not None and threshold.min is not None:
            other, least = one_shot_metric(*nearest), min_for_way(threshold.min, way, nearest[1])
            moved.setdefault(other, threshold.model_copy(update={"min": least}))
            notes.append(f"{name}: the data has no such trials; {other} takes its place")
    gated = moved | gated
    if not any(map(trials_of, gated)):
        own = {
            name: of for name, of in left_out.items() if not name.startswith(PROTOCOL_OFFICIAL)
        } or left_out
        gated |= own
        lacking += own
        gated.setdefault("auc", FALLBACK_THRESHOLD)
    return Evidence(gated, tuple(notes), tuple(lacking))


def min_for_way(lowest: float, way: int, other: int) -> float:
    """What an accuracy in trials of `way` candidates comes to in trials of `other` ones.

    A trial is taken for log2(way) questions of yes or no, each of which is answered as well: 0.55
    of 20 candidates are 0.725 of 5 and 0.871 of 2. Rounded to three digits.
    """
    return round(math.pow(lowest, math.log(other) / math.log(way)), 3)


def lack_of_evidence(lacking: Sequence[str], there: Sequence[str]) -> str:
    """Says for people why nothing is blessed.

    Args:
      lacking: figures that have a threshold and no trials.
      there: figures of the trials that there are.
    """
    makes = f"trials for {', '.join(there)}" if there else "no trials at all"
    return (
        f"{NOT_ENOUGH_EVIDENCE}, so no model is blessed: {', '.join(lacking)} cannot be measured, "
        f"since the images that are kept for evaluation make {makes}. A trial takes classes of one "
        "group (or, between groups, of two), each with two images, by different writers where "
        "these are known; figures of forgeries take writers with the classes genuine and forged. "
        "Add images, or choose pairs.ways and evaluate.thresholds that they meet"
    )


def tell_of_evidence(asked: Evidence, protocols: Set[tuple[str, int]]) -> None:
    """Logs before a training what it will be judged by, and in large letters if by nothing."""
    for note in asked.notes:
        _log.info("%s", note)
    if asked.lacking:
        there = sorted(one_shot_metric(*trials) for trials in protocols if trials[1])
        text = textwrap.fill(lack_of_evidence(asked.lacking, there), 76)
        line = "=" * 78
        _log.warning("\n%s\n%s\n%s", line, textwrap.indent(text, "  "), line)


def _nearest(protocols: Set[tuple[str, int]], way: int) -> tuple[str, int] | None:
    for protocol in (PROTOCOL_WITHIN, PROTOCOL_BETWEEN):
        ways = [other for kind, other in protocols if kind == protocol]
        if ways:
            return protocol, min(ways, key=lambda other: (abs(other - way), other))
    return None
