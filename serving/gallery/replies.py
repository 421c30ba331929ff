"""A gallery's answers as JSON, for the command line and the server alike."""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from serving.gallery.answers import Status
from serving.gallery.records import Identity


def reply_of(answer: Any) -> dict[str, Any]:
    """The fields of an answer, ready for `json.dumps`."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, Identity):
        return {
            "name": answer.name,
            "images": list(answer.images),
            "created": _time(answer.created),
            "updated": _time(answer.updated),
        }
    if isinstance(answer, Status):
        return {
            "names": answer.counts.names,
            "images": answer.counts.images,
            "model_version": answer.model_version,
            "latest_version": answer.latest_version,
            "false_accept_rate": answer.false_accept_rate,
            "threshold": answer.threshold.logit,
            "calibration": calibration_of(answer),
        }
    fields: dict[str, Any] = answer._asdict()
    if "candidates" in fields:
        fields["candidates"] = [candidate._asdict() for candidate in fields["candidates"]]
    return fields


def calibration_of(status: Status) -> dict[str, Any]:
    """What thresholds rest on, without the distribution itself.

    `source` is "model", "cohort" or "gallery", or "scores" where no people are known; `advice` is
    null where the threshold is to be relied on.
    """
    source, advice = status.threshold.basis, status.threshold.advice
    known = status.impostors
    pairs = None
    if known is not None and source != "scores":
        pairs = known.shipped[0] if source == "model" else known.own
    return {
        "source": source,
        "people": 0 if pairs is None else pairs.people,
        "pairs": 0 if pairs is None else pairs.pairs,
        "mean": None if pairs is None else pairs.mean,
        "std": None if pairs is None else pairs.std,
        "advice": advice,
    }


def _time(seconds: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
