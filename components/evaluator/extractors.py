"""TFMA extractors that make TFX's Evaluator embed each image few times and handle trials whole.

The Evaluator finds `custom_extractors` here through its `module_path`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.extractors import extractor
from tensorflow_model_analysis.proto import config_pb2
from tfx_bsl.tfxio import tensor_adapter

from data_ingest.records import features

IMAGES_PER_BATCH = 256
MEASURED_FEATURES = (features.TRIAL, features.PROTOCOL, features.WAY, features.GROUP_A)
COLUMNS = (features.IMAGE_A, features.IMAGE_B, features.LABEL, *MEASURED_FEATURES)


def custom_extractors(
    eval_shared_model: Any,
    eval_config: config_pb2.EvalConfig,
    tensor_adapter_config: tensor_adapter.TensorAdapterConfig | None,
) -> list[extractor.Extractor]:
    """TFMA's extractors, as far as needed, with one in front of them and one behind the prediction.

    Records come in no order, so a batch of them hardly shares an image, although each image is in
    twenty and more pairs. In front: records of one trial set (or, outside trials, of one group)
    are brought together, in batches of at most `IMAGES_PER_BATCH` distinct images. The model
    embeds each distinct image of a batch once, and its memory is bounded by that number, whatever
    the record count. What is brought together is compressed, by which an image that a piece has
    many times takes the room of one. Behind: what follows takes its time for each element, so an
    element is not a pair, as usual with TFMA, but all pairs of a trial.
    """
    del tensor_adapter_config  # There is none without a schema.
    return [
        extractor.Extractor("GatherTrialSets", GatherTrialSets()),
        tfma.extractors.FeaturesExtractor(eval_config),
        tfma.extractors.LabelsExtractor(eval_config),
        tfma.extractors.PredictionsExtractor(eval_config, eval_shared_model),
        extractor.Extractor("ByTrial", beam.FlatMap(by_trial)),
        tfma.extractors.SliceKeyExtractor(eval_config=eval_config, materialize=False),
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

    A piece is packed as Arrow does it, with the columns that are needed: the model takes images.
    """
    batch: pa.RecordBatch = extracts[constants.ARROW_RECORD_BATCH_KEY].select(COLUMNS)
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


def by_trial(extracts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Takes a batch apart into labels and logits `[K]` of the K pairs that a trial has in it.

    Pairs outside trials come by protocol and group.
    """
    named = {
        name: np.asarray(extracts[constants.FEATURES_KEY][name]).reshape(-1)
        for name in MEASURED_FEATURES
    }
    rows: dict[tuple[Any, ...], list[int]] = {}
    for row, values in enumerate(zip(*named.values(), strict=True)):
        rows.setdefault(values, []).append(row)
    for values, part in rows.items():
        features_of_part = zip(named, values, strict=True)
        yield {
            constants.FEATURES_KEY: {name: np.array([value]) for name, value in features_of_part},
            **{
                key: _rows(extracts[key], part)
                for key in (constants.LABELS_KEY, constants.PREDICTIONS_KEY)
            },
        }


def _rows(values: Any, rows: list[int]) -> Any:
    if isinstance(values, Mapping):
        return {key: _rows(of_key, rows) for key, of_key in values.items()}
    return np.asarray(values).reshape(-1)[rows]


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
