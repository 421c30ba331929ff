"""Gathers what is known of a run's data: splits, statistics, anomalies, images left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList

from data_ingest.records.catalog import SUMMARY_FILE as SAMPLING_FILE
from data_ingest.sampling.protocols import SPLITS
from pipeline.reports.words import FEATURES
from pipeline.reports.words import SPLITS as SPLIT_WORDS
from pipeline.runs.summary import RunSummary, read_json


def splits(summary: RunSummary) -> list[dict[str, Any]]:
    """A row a split: what it is for, and how many groups, classes, images and pairs it has."""
    sampling = read_json(Path(summary.artifacts.get("examples", "")) / SAMPLING_FILE)
    found = sampling.get("splits", {})
    return [
        {
            "title": SPLIT_WORDS[name][0],
            "text": SPLIT_WORDS[name][1],
            "groups": len(found[name]["groups"]),
            "classes": found[name]["classes"],
            "images": found[name]["images"],
            "pairs": sum(part["pairs"] for part in found[name]["pairs"]),
        }
        for name in SPLITS
        if name in found
    ]


def statistics(summary: RunSummary) -> list[dict[str, Any]]:
    """A row a feature of the records: what TFDV counted of it in each split."""
    folder = Path(summary.artifacts.get("statistics", ""))
    rows: dict[str, dict[str, Any]] = {name: {"title": FEATURES[name]} for name in FEATURES}
    for split in SPLITS:
        file = folder / f"Split-{split}" / "FeatureStats.pb"
        if not file.is_file():
            return []
        parsed = DatasetFeatureStatisticsList.FromString(file.read_bytes())
        for feature in parsed.datasets[0].features:
            name = feature.name or ".".join(feature.path.step)
            if name in rows:
                rows[name][split] = ", ".join(_facts(feature))
    return [{"splits": [row.get(split, "") for split in SPLITS], **row} for row in rows.values()]


def anomalies(summary: RunSummary) -> list[dict[str, str]] | None:
    """What TFDV found wrong, a row a feature and split; None where it is not known."""
    folder = Path(summary.artifacts.get("anomalies", ""))
    files = [(split, folder / f"Split-{split}" / "SchemaDiff.pb") for split in SPLITS]
    if not all(file.is_file() for _, file in files):
        return None
    found = []
    for split, file in files:
        infos = Anomalies.FromString(file.read_bytes()).anomaly_info
        for name, info in sorted(infos.items()):
            title = FEATURES.get(name, name)
            found.append(
                {"split": SPLIT_WORDS[split][0], "feature": title, "text": info.description}
            )
    return found


def _facts(feature: Any) -> Iterator[str]:
    """What TFDV counted of one feature."""
    if feature.HasField("num_stats"):
        stats = feature.num_stats
        yield f"{stats.min:g} to {stats.max:g}"
        if stats.min != stats.max:
            yield f"mean {stats.mean:.3g}"
    elif feature.HasField("string_stats"):
        stats = feature.string_stats
        yield f"{stats.unique:,} different"
    else:
        stats = feature.bytes_stats
        yield f"{stats.avg_num_bytes:,.0f} bytes on average"
    if stats.common_stats.num_missing:
        yield f"{stats.common_stats.num_missing:,} missing"
