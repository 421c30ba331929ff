"""Makes files of pair records from files of images, by Beam; no worker holds all images.

Images are read, checked and brought to their stored form once, in blocks, which are files beside
the output until it is complete. What is known of the images, without the bytes, is combined into
one compact catalog and that into a plan, which goes to all workers as a side input. For each output
file they work out which images it needs, take those from the blocks and write it. So no image goes
through a shuffle, and memory does not grow with how often images are paired. What a file holds and
in which order is a pure function of (seed, images).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.metrics import Metrics

from data_ingest.progress import advance
from data_ingest.records.catalog import (
    COPIES_FILE,
    REJECTED_FILE,
    SUMMARY_FILE,
    build_catalog,
    count_reasons,
    in_two_classes,
)
from data_ingest.records.features import Pair, serialize_pair
from data_ingest.records.plan import Plan, Shard, Stream, make_plan
from data_ingest.records.read import NAMESPACE, Inputs, ReadImages, read_block, written_whole
from data_ingest.sampling.pairs import Pairs
from data_ingest.settings import PairSettings
from data_ingest.sources.kinds import Crop, Kind, form_of

_BLOCKS: Final = "blocks"
"""Folder of the images while records are written."""
_NAMED: Final = 20


def write_pairs(
    pipeline: beam.Pipeline,
    inputs: Inputs,
    settings: PairSettings,
    *,
    directory: str,
    max_rejected_share: float,
    dataset: str = "",
    kind: Kind = "drawing",
    max_side: int | None = None,
    crop: Crop | None = None,
) -> None:
    """Adds to a pipeline all that writes the records of all splits, and beside them three reports.

    Files are gzip TFRecords `Split-<split>/data_tfrecord-00000-of-00008.gz` under `directory`.
    `sampling.json` says what was read and written, or, under `problem`, what the user must put
    right, in which case no records are written. `rejected.jsonl` names each rejected image and
    the reason, `copies.jsonl` each copy that was left out and the image of its class that was kept.
    Images are stored in the form of their `kind`, with `DatasetSettings.max_side`
    and `crop` where given.
    """
    blocks = f"{directory}/{_BLOCKS}"
    plan = (
        pipeline
        | "ListImages" >> beam.Create(inputs.portions)
        | "ReadImages" >> beam.ParDo(ReadImages(form_of(kind, max_side, crop), blocks))
        | "ListParts" >> beam.combiners.ToList()
        | "BuildCatalog" >> beam.Map(build_catalog)
        | "MakePlan"
        >> beam.Map(
            make_plan,
            settings,
            official=inputs.official.trials,
            max_rejected_share=max_rejected_share,
        )
    )
    counts = (
        plan
        | "ListShards" >> beam.FlatMap(lambda made: made.shards)
        | "SpreadShards" >> beam.Reshuffle()
        | "WriteShards" >> beam.FlatMap(_write_shard, beam.pvalue.AsSingleton(plan), directory)
        | "CountRecords" >> beam.CombinePerKey(sum)
    )
    _ = plan | "WriteReports" >> beam.Map(
        _write_reports, beam.pvalue.AsDict(counts), directory, dataset, kind
    )


_Counted = tuple[str, str, int, int]
"""Split, protocol, way and label of records."""


def _write_shard(shard: Shard, plan: Plan, directory: str) -> Iterator[tuple[_Counted, int]]:
    """Writes the file of a shard; how many of a kind it has."""
    stream = plan.streams[shard.stream]
    drawn = stream.draw(shard.start, shard.stop)
    if not stream.way:
        drawn = _near_their_like(drawn)
    rows = np.unique(np.concatenate([drawn.row_a, drawn.row_b]))
    block, position = stream.located.block[rows], stream.located.position[rows]
    images: dict[int, bytes] = {}
    for number in np.unique(block):
        here = block == number
        found = read_block(f"{directory}/{_BLOCKS}", int(number), position[here].tolist())
        images.update(zip(rows[here].tolist(), found, strict=True))
    write_file(directory, shard, _records(stream, drawn, images))
    total = sum(one.pairs for one in plan.streams)
    advance("Writing pairs", shard.stop - shard.start, total)
    for value in (0, 1):
        pairs = int(np.count_nonzero(drawn.label == value))
        name = f"pairs/{stream.split}/{stream.protocol}/{value}"
        Metrics.counter(NAMESPACE, name).inc(pairs)
        yield (stream.split, stream.protocol, stream.way, value), pairs


def _near_their_like(drawn: Pairs) -> Pairs:
    """Pairs outside trials in the order of their images: gzip sees copies within 32 KiB."""
    order = np.lexsort((drawn.row_b, drawn.row_a))
    return drawn._replace(
        row_a=drawn.row_a[order], row_b=drawn.row_b[order], label=drawn.label[order]
    )


def write_file(directory: str, shard: Shard, records: Iterable[bytes]) -> None:
    """Writes a shard's file whole or not at all."""
    folder = f"{directory}/Split-{shard.split}"
    name = f"data_tfrecord-{shard.file:05d}-of-{shard.files:05d}.gz"
    tf.io.gfile.makedirs(folder)
    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
    # Not in the split's folder: whoever lists that must never meet half a file.
    with (
        written_whole(f"{folder}/{name}", beside=directory) as partial,
        tf.io.TFRecordWriter(partial, options) as writer,
    ):
        for record in records:
            writer.write(record)


def _records(stream: Stream, drawn: Pairs, images: Mapping[int, bytes]) -> Iterator[bytes]:
    index = stream.located.index
    columns = (drawn.row_a.tolist(), drawn.row_b.tolist(), drawn.label.tolist(), drawn.trial)
    for row_a, row_b, label, trial in zip(*columns, strict=True):
        yield serialize_pair(
            Pair(
                image_a=images[row_a],
                image_b=images[row_b],
                label=label,
                class_a=index.class_name(row_a),
                class_b=index.class_name(row_b),
                group_a=index.group_name(row_a),
                group_b=index.group_name(row_b),
                writer_a=index.writer(row_a),
                writer_b=index.writer(row_b),
                trial=trial,
                protocol=stream.protocol,
                way=stream.way,
            )
        )


def _write_reports(
    plan: Plan, counts: Mapping[_Counted, int], directory: str, dataset: str, kind: Kind
) -> None:
    catalog = plan.catalog
    splits: dict[str, dict[str, Any]] = {}
    for stream in plan.streams:
        # The official runs copy images of the evaluation alphabets under names of their own.
        if stream.split not in splits:
            index = stream.located.index
            splits[stream.split] = {
                "groups": list(index.groups),
                "classes": len(index.genuine),
                "images": len(index),
                "classes_of_one_image": int(
                    np.count_nonzero(index.class_sizes[index.genuine] == 1)
                ),
                "pairs": [],
            }
    for (split, protocol, way, label), pairs in sorted(counts.items()):
        splits[split]["pairs"].append(
            {"protocol": protocol, "way": way, "label": label, "pairs": pairs}
        )
    noise = in_two_classes(bad[1:] for bad in catalog.rejected)
    summary = {
        "dataset": dataset,
        "kind": kind,
        "problem": plan.problem,
        "images": {
            "read": dict(catalog.read),
            "duplicates": dict(catalog.duplicates),
            "rejected": count_reasons(bad[1:] for bad in catalog.rejected),
            "copies": [list(copy[1:]) for copy in catalog.copies[:_NAMED]],
            "in_two_classes": [list(files) for files in noise[:_NAMED]],
        },
        "splits": splits,
    }
    texts = {
        file: "".join(json.dumps(one._asdict()) + "\n" for one in listed)
        for file, listed in ((REJECTED_FILE, catalog.rejected), (COPIES_FILE, catalog.copies))
    }
    texts[SUMMARY_FILE] = json.dumps(summary, indent=1) + "\n"
    for name, text in texts.items():
        with tf.io.gfile.GFile(f"{directory}/{name}", "w") as file:
            file.write(text)
    if tf.io.gfile.exists(f"{directory}/{_BLOCKS}"):
        tf.io.gfile.rmtree(f"{directory}/{_BLOCKS}")
