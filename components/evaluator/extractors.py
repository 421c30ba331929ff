"""TFMA extractors that make TFX's Evaluator embed each image few times and keep little.

The Evaluator finds `custom_extractors` here through its `module_path`.
"""

import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.extractors import extractor, predictions_extractor
from tensorflow_model_analysis.proto import config_pb2
from tfx_bsl.tfxio import tensor_adapter

from data_ingest.records import features

IMAGES_PER_BATCH = 256
QUERY_SHARDS = 1024
MEASURED_FEATURES = (features.TRIAL, features.PROTOCOL, features.WAY, features.GROUP_A)


def custom_extractors(
    eval_shared_model: Any,
    eval_config: config_pb2.EvalConfig,
    tensor_adapter_config: tensor_adapter.TensorAdapterConfig | None,
) -> list[extractor.Extractor]:
    """TFMA's own extractors, with one put in front of them and one behind the prediction.

    Records come in no order, so a batch of them hardly shares an image, although each image is in
    twenty and more pairs. In front: records of one trial set (or, outside trials, of one group)
    are brought together, in batches of at most `IMAGES_PER_BATCH` distinct images. The `examples`
    signature embeds each distinct image of a batch once, and its memory is bounded by that number,
    whatever the record count. What is brought together is compressed, by which an image that a
    piece has many times takes the room of one. Behind: what no metric needs is dropped before
    anything is shuffled.
    """
    extractors = tfma.default_extractors(
        eval_shared_model=eval_shared_model,
        eval_config=eval_config,
        tensor_adapter_config=tensor_adapter_config,
    )
    names = [each.stage_name for each in extractors]
    behind = names.index(predictions_extractor.PREDICTIONS_EXTRACTOR_STAGE_NAME) + 1
    return [
        extractor.Extractor("GatherTrialSets", GatherTrialSets()),
        *extractors[:behind],
        extractor.Extractor("KeepWhatIsMeasured", beam.Map(keep_what_is_measured)),
        *extractors[behind:],
    ]


class GatherTrialSets(beam.PTransform):
    """Re-batches `{arrow_record_batch: RecordBatch}` so that records sharing images meet."""

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        return (
            extracts
            | "KeyByTrialSet" >> beam.FlatMap(split_by_trial_set)
            | "GatherTrialSet" >> beam.GroupByKey()
            | "Batch" >> beam.FlatMapTuple(lambda _, pieces: join_pieces(map(unpacked, pieces)))
            | "AsExtracts" >> beam.Map(lambda batch: {constants.ARROW_RECORD_BATCH_KEY: batch})
        )


def split_by_trial_set(extracts: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Cuts a batch into pieces of one trial set, of at most `IMAGES_PER_BATCH` images each.

    A piece is packed as Arrow does it. Its columns of images hold their digests: the model takes
    whole records.
    """
    batch: pa.RecordBatch = extracts[constants.ARROW_RECORD_BATCH_KEY]
    for name in (features.IMAGE_A, features.IMAGE_B):
        at = batch.schema.get_field_index(name)
        digests = [[blake2b(image, digest_size=16).digest()] for image in _values(batch, name)]
        field = batch.schema.field(at)
        batch = batch.set_column(at, field, pa.array(digests, field.type))
    rows: dict[bytes, list[int]] = {}
    columns = (features.TRIAL, features.PROTOCOL, features.GROUP_A)
    for row, (trial, protocol, group) in enumerate(
        zip(*(_values(batch, name) for name in columns), strict=True)
    ):
        key = trial.rpartition(b"/")[0] if trial else protocol + b"//" + group
        rows.setdefault(key, []).append(row)
    piece_rows = IMAGES_PER_BATCH // 2
    for key, of_key in rows.items():
        for start in range(0, len(of_key), piece_rows):
            yield key, packed(batch.take(pa.array(of_key[start : start + piece_rows])))


def join_pieces(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Joins pieces for as long as they hold at most `IMAGES_PER_BATCH` distinct images."""
    pending: list[pa.RecordBatch] = []
    images: set[bytes] = set()
    for piece in pieces:
        more = {*_values(piece, features.IMAGE_A), *_values(piece, features.IMAGE_B)}
        if pending and len(images | more) > IMAGES_PER_BATCH:
            yield _concatenate(pending)
            pending, images = [], set()
        pending.append(piece)
        images |= more
    if pending:
        yield _concatenate(pending)


def keep_what_is_measured(extracts: dict[str, Any]) -> dict[str, Any]:
    """Keeps labels, predictions and the features that are sliced by or grouped by.

    Pairs outside trials all have the empty trial, so grouping by trial would gather them on one
    worker. They are spread over queries; the one-shot metric leaves them out whatever their query.
    """
    kept = {key: value for key, value in extracts.items() if key != constants.INPUT_KEY}
    named = {name: extracts[constants.FEATURES_KEY][name] for name in MEASURED_FEATURES}
    trials = np.asarray(named[features.TRIAL])
    records = np.asarray(extracts[constants.INPUT_KEY]).reshape(-1)
    queries = [
        trial or b"no trial/%d" % (zlib.crc32(record) % QUERY_SHARDS)
        for trial, record in zip(trials.reshape(-1), records, strict=True)
    ]
    named[features.TRIAL] = np.array(queries, dtype=object).reshape(trials.shape)
    kept[constants.FEATURES_KEY] = named
    return kept


def _values(batch: pa.RecordBatch, name: str) -> list[bytes]:
    return batch.column(batch.schema.get_field_index(name)).flatten().to_pylist()  # type: ignore[no-any-return]


def packed(batch: pa.RecordBatch) -> bytes:
    """Compressed."""
    sink = pa.BufferOutputStream()
    # The level whose window is wider than the images of a trial set.
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=9))
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def unpacked(piece: bytes) -> pa.RecordBatch:
    """What `packed` was given."""
    return pa.ipc.open_stream(piece).read_next_batch()


def _concatenate(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined
