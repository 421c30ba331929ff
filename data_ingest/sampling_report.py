"""What an ingestion read and wrote, as JSON beside the records."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import tensorflow as tf

from data_ingest.catalog import Rejected, count_reasons
from data_ingest.plan import Plan

SUMMARY_FILE: Final = "sampling.json"
REJECTED_FILE: Final = "rejected.jsonl"


class ShardCount(NamedTuple):
    """How many records of a kind a file holds."""

    split: str
    protocol: str
    way: int
    label: int
    pairs: int


def summarize(
    plan: Plan, counts: Sequence[ShardCount], *, dataset: str
) -> tuple[dict[str, Any], Sequence[Rejected]]:
    """What was read and written, as JSON values, and the rejected images."""
    catalog = plan.catalog
    totals: dict[tuple[str, str, int, int], int] = {}
    for count in counts:
        totals[count[:4]] = totals.get(count[:4], 0) + count.pairs
    splits: dict[str, dict[str, Any]] = {}
    for stream in plan.streams:
        # The official runs copy images of the evaluation alphabets under names of their own.
        if stream.split not in splits:
            index = stream.located.index
            splits[stream.split] = {
                "groups": list(index.groups),
                "classes": len(index.classes),
                "images": len(index),
                "pairs": [],
            }
    for (split, protocol, way, label), pairs in sorted(totals.items()):
        splits[split]["pairs"].append(
            {"protocol": protocol, "way": way, "label": label, "pairs": pairs}
        )
    summary = {
        "dataset": dataset,
        "problem": plan.problem,
        "images": {
            "read": dict(catalog.read),
            "duplicates": dict(catalog.duplicates),
            "rejected": count_reasons(catalog.rejected),
        },
        "splits": splits,
    }
    return summary, catalog.rejected


def write_reports(
    report: tuple[dict[str, Any], Sequence[Rejected]], directory: str
) -> dict[str, Any]:
    """Writes both files into `directory` and passes the summary on."""
    summary, rejected = report
    lines = [json.dumps(reject._asdict()) + "\n" for reject in rejected]
    _write_text(f"{directory}/{REJECTED_FILE}", "".join(lines))
    _write_text(f"{directory}/{SUMMARY_FILE}", json.dumps(summary, indent=1) + "\n")
    return summary


def _write_text(path: str, text: str) -> None:
    with tf.io.gfile.GFile(path, "w") as stream:
        stream.write(text)
