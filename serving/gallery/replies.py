"""A gallery's answers as JSON, for the command line and the server alike."""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from serving.gallery.answers import Status
from serving.gallery.records import Identity
from serving.gallery.threshold import Impostors


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
            "threshold": answer.threshold,
            "calibration": None if answer.impostors is None else summary_of(answer.impostors),
        }
    fields: dict[str, Any] = answer._asdict()
    if "candidates" in fields:
        fields["candidates"] = [candidate._asdict() for candidate in fields["candidates"]]
    return fields


def summary_of(impostors: Impostors) -> dict[str, Any]:
    """What thresholds are calibrated on, without the distribution itself."""
    return {
        "source": impostors.source,
        "people": impostors.people,
        "pairs": impostors.pairs,
        "mean": impostors.mean,
        "std": impostors.std,
    }


def _time(seconds: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
