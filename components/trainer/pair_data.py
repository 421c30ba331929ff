"""Reads pair records into memory: every distinct image once, pairs as row numbers.

Memory is `H * W * C` bytes a distinct image, however many pairs have it, and 12 bytes a pair.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data_ingest.errors import InputError
from data_ingest.records import features
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from serving.saved_model.contract import Preprocessing
from serving.saved_model.preprocessing import decode_images

RECORDS_A_BATCH: Final = 1024
SAMPLES: Final = 16

Ints = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PairData:
    """The records of one split.

    Rows are sorted by group, class and content, and pairs by rows: the same records give the
    same object, whatever the order and the number of the files.
    """

    index: ImageIndex
    images: Images
    """`uint8[n, H, W, C]`, as the network sees them; row `i` is that of row `i` of the index."""
    pairs: npt.NDArray[np.int32]
    """`int32[P, 2]`: rows of the two images of each pair."""
    labels: npt.NDArray[np.int32]
    """`int32[P]`: 1 same class, 0 different."""
    fingerprint: str
    """Of all images, classes, groups, writers and pairs."""
    samples: tuple[bytes, ...]
    """A few images as they were encoded."""
    digests: npt.NDArray[np.uint64]
    """`uint64[n]`: `digest_of` each image as it was encoded."""

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
            digests=self.digests[rows],
        )


def read_pair_data(patterns: Sequence[str], preprocessing: Preprocessing) -> PairData:
    """Reads all pairs of the TFRecord files that match the patterns.

    Args:
      patterns: as in `fn_args.train_files`; files that end in .gz are gzip.
      preprocessing: of the images.

    Raises:
      InputError: no file matches, no record in them, or as `naming_unsound`.
    """
    files = sorted({name for pattern in patterns for name in tf.io.gfile.glob(pattern)})
    if not files:
        raise InputError(f"no pair records: nothing matches {', '.join(patterns)}")
    with naming_unsound(files):
        return _read_files(files, preprocessing)


def _read_files(files: Sequence[str], preprocessing: Preprocessing) -> PairData:
    decode = image_decoder(preprocessing)
    refs: list[ImageRef] = []
    row_of: dict[tuple[bytes, bytes], int] = {}
    samples: list[bytes] = []
    # Decoded block by block, so that encoded images never pile up.
    images: list[Images] = []
    pair_blocks: list[Ints] = []
    label_blocks: list[Ints] = []
    for records in _records(files):
        new: list[bytes] = []
        sides = []
        for side in ("a", "b"):
            names = (f"{name}_{side}" for name in ("image", "class", "group", "writer"))
            rows = []
            for image, class_name, group, writer in zip(
                *(records[name] for name in names), strict=True
            ):
                digest = hashlib.blake2b(image, digest_size=16)
                row = row_of.setdefault((class_name, digest.digest()), len(refs))
                if row == len(refs):
                    key = digest.hexdigest()
                    refs.append(ImageRef(group.decode(), class_name.decode(), int(writer), key))
                    new.append(image)
                rows.append(row)
            sides.append(rows)
        # From all of the block: records lie in the order of classes.
        samples += new[:: max(1, len(new) // SAMPLES)][: SAMPLES - len(samples)]
        if new:
            images.append(decode(new))
        pair_blocks.append(np.array(sides, np.int64).T)
        label_blocks.append(records[features.LABEL])
    if not refs:
        raise InputError(f"no pair records in {', '.join(files)}")
    order = np.array(sort_order(refs))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    pairs = position[np.concatenate(pair_blocks)].astype(np.int32)
    labels = np.concatenate(label_blocks).astype(np.int32)
    by_rows = np.lexsort((labels, pairs[:, 1], pairs[:, 0]))
    pairs, labels = pairs[by_rows], labels[by_rows]
    return PairData(
        index=ImageIndex.build(refs),
        images=np.concatenate(images)[order],
        pairs=pairs,
        labels=labels,
        fingerprint=_fingerprint([refs[at] for at in order], pairs, labels),
        samples=tuple(samples),
        digests=np.array([int(refs[at].key[:16], 16) for at in order], np.uint64),
    )


def image_decoder(preprocessing: Preprocessing) -> Callable[[Sequence[bytes]], Images]:
    """A compiled function from N encoded images to `uint8[N, *preprocessing.shape]`.

    Of drawings, ink is 255.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode(images: tf.Tensor) -> tf.Tensor:
        return as_levels(decode_images(images, preprocessing))

    return lambda images: np.asarray(decode(tf.constant(images)))


def as_levels(seen: tf.Tensor) -> tf.Tensor:
    """What `decode_images` gives, `float32[N, H, W, C]` in [0, 1], as `uint8[N, H, W, C]`."""
    return tf.cast(tf.round(seen * 255.0), tf.uint8)


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
