"""Pair records in memory: every distinct image once, and pairs as row numbers.

30,000 pairs hold 60,000 encoded images but only as many distinct ones as there are drawings
(about 17,000 of Omniglot's background set), so each is decoded once. Memory is `S * S` bytes a
distinct image and 12 bytes a pair: 13 MB and 0.4 MB for Omniglot at 28 pixels, 0.8 GB for a
million images.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data_ingest.errors import InputError
from data_ingest.records import features
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from serving.saved_model.contract import Preprocessing
from serving.saved_model.preprocessing import decode_images

RECORDS_A_BATCH: Final = 1024
IMAGES_A_BATCH: Final = 512
SAMPLES: Final = 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairData:
    """The records of one split.

    Rows are sorted by group, class and content, and pairs by rows: the same records give the
    same object, whatever the order and the number of the files.
    """

    index: ImageIndex
    images: npt.NDArray[np.uint8]
    """`uint8[n, S, S]`, ink 255; row `i` is the image of row `i` of the index."""
    pairs: npt.NDArray[np.int32]
    """`int32[P, 2]`: rows of the two images of each pair."""
    labels: npt.NDArray[np.int32]
    """`int32[P]`: 1 same class, 0 different."""
    fingerprint: str
    """Of all images, classes, groups, writers and pairs."""
    samples: tuple[bytes, ...]
    """A few images as they were encoded."""

    def take(self, rows: Ints) -> "PairData":
        """These images only, rows in ascending order, and the pairs whose images are among them."""
        position = np.full(len(self.images), -1, np.int32)
        position[rows] = np.arange(len(rows), dtype=np.int32)
        pairs = position[self.pairs]
        kept = (pairs >= 0).all(axis=1)
        return PairData(
            index=self.index.take(rows),
            images=self.images[rows],
            pairs=pairs[kept],
            labels=self.labels[kept],
            fingerprint=hashlib.blake2b(
                self.fingerprint.encode() + rows.astype(np.int64).tobytes(), digest_size=16
            ).hexdigest(),
            samples=self.samples,
        )


def read_pair_data(patterns: Sequence[str], preprocessing: Preprocessing) -> PairData:
    """Reads all pairs of the TFRecord files that match the patterns.

    Args:
      patterns: as in `fn_args.train_files`; files that end in .gz are gzip.
      preprocessing: of the images.

    Raises:
      InputError: no file matches, no record in them, or an image that cannot be decoded.
    """
    files = sorted({name for pattern in patterns for name in tf.io.gfile.glob(pattern)})
    if not files:
        raise InputError(f"no pair records: nothing matches {', '.join(patterns)}")
    decoder = _Decoder(preprocessing)
    refs: list[ImageRef] = []
    row_of: dict[tuple[bytes, bytes], int] = {}
    pair_blocks: list[Ints] = []
    label_blocks: list[Ints] = []
    for records in _records(files):
        sides = []
        for side in ("a", "b"):
            columns = zip(
                records[f"image_{side}"],
                records[f"class_{side}"],
                records[f"group_{side}"],
                records[f"writer_{side}"],
                strict=True,
            )
            rows = np.empty(len(records[features.LABEL]), np.int64)
            for at, (image, class_name, group, writer) in enumerate(columns):
                digest = hashlib.blake2b(image, digest_size=16).digest()
                row = row_of.setdefault((class_name, digest), len(refs))
                if row == len(refs):
                    key = digest.hex()
                    refs.append(ImageRef(group.decode(), class_name.decode(), int(writer), key))
                    decoder.add(image)
                rows[at] = row
            sides.append(rows)
        pair_blocks.append(np.stack(sides, axis=1))
        label_blocks.append(records[features.LABEL])
    if not refs:
        raise InputError(f"no pair records in {', '.join(files)}")
    order = np.array(sort_order(refs))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    pairs = position[np.concatenate(pair_blocks)]
    labels = np.concatenate(label_blocks)
    by_rows = np.lexsort((labels, pairs[:, 1], pairs[:, 0]))
    sorted_pairs, sorted_labels = pairs[by_rows].astype(np.int32), labels[by_rows].astype(np.int32)
    return PairData(
        index=ImageIndex.build(refs),
        images=decoder.images()[order],
        pairs=sorted_pairs,
        labels=sorted_labels,
        fingerprint=_fingerprint([refs[at] for at in order], sorted_pairs, sorted_labels),
        samples=tuple(decoder.samples),
    )


def _records(files: Sequence[str]) -> Iterator[dict[str, Any]]:
    zipped = [name for name in files if name.endswith(".gz")]
    plain = [name for name in files if not name.endswith(".gz")]
    for names, compression in ((zipped, "GZIP"), (plain, "")):
        if names:
            yield from (
                tf.data.TFRecordDataset(names, compression_type=compression)
                .batch(RECORDS_A_BATCH)
                .map(features.parse_pairs, num_parallel_calls=tf.data.AUTOTUNE)
                .prefetch(1)
                .as_numpy_iterator()
            )


class _Decoder:
    """Decodes images as they come, so that encoded ones never pile up."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        size = preprocessing.size
        self.samples: list[bytes] = []
        self._waiting: list[bytes] = []
        self._done: list[npt.NDArray[np.uint8]] = [np.empty((0, size, size), np.uint8)]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def decode(images: tf.Tensor) -> tf.Tensor:
            ink = decode_images(images, preprocessing)
            return tf.cast(tf.round(ink[..., 0] * 255.0), tf.uint8)

        self._decode = decode

    def add(self, image: bytes) -> None:
        if len(self.samples) < SAMPLES:
            self.samples.append(image)
        self._waiting.append(image)
        if len(self._waiting) == IMAGES_A_BATCH:
            self._flush()

    def images(self) -> npt.NDArray[np.uint8]:
        if self._waiting:
            self._flush()
        return np.concatenate(self._done)

    def _flush(self) -> None:
        try:
            self._done.append(self._decode(tf.constant(self._waiting)).numpy())
        except tf.errors.InvalidArgumentError as error:
            reason = error.message.splitlines()[0]
            raise InputError(f"an image in the pair records cannot be decoded: {reason}") from error
        self._waiting = []


def _fingerprint(
    refs: Sequence[ImageRef],
    pairs: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int32],
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for ref in refs:
        digest.update(repr(tuple(ref)).encode())
    digest.update(pairs.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()
