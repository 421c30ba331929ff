"""Finds the record that whatever reads pair records has stumbled over.

Ingestion stores only what can be decoded. Records that an earlier release wrote, or that a disk
has changed since, may be different.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import tensorflow as tf

from data_ingest.errors import InputError
from data_ingest.records.features import read_file
from data_ingest.sources.images import ImageRejected, image_digest, stored_form


@contextmanager
def naming_unsound(files: Iterable[str]) -> Iterator[None]:
    """Says which record it was where something inside fails over one; until then it costs nothing.

    Args:
      files: TFRecords of pairs, each in the folder of a split of an Examples artifact.

    Raises:
      InputError: a file is damaged, or an image in it is none that ingestion stores; the message
        names the file, the class of the image and the artifact.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        for name in sorted(files):
            problem = first_unsound(name)
            if problem:
                artifact = name.rsplit("/", 2)[0]
                raise InputError(
                    f"{problem}, be it damaged or written by an earlier release. Delete "
                    f"{artifact} and run again: the images are then read anew, and those that "
                    "cannot be used are left out"
                ) from error
        raise


def first_unsound(name: str) -> str | None:
    """What is wrong with a file of pairs, or with the first image in it that is unsound.

    Args:
      name: as for `read_file`.
    """
    sound: set[bytes] = set()
    try:
        for number, pair in enumerate(read_file(name)):
            for image, class_name, letter in (
                (pair.image_a, pair.class_a, "a"),
                (pair.image_b, pair.class_b, "b"),
            ):
                digest = image_digest(image)
                reason = None if digest in sound else _problem(image)
                if reason:
                    trial = f" of {pair.trial}" if pair.trial else ""
                    where = f"{name}: image_{letter} of record {number}{trial}"
                    return f"{where}, class {class_name}, cannot be used ({reason})"
                sound.add(digest)
    except (tf.errors.OpError, ValueError) as error:
        text = error.message if isinstance(error, tf.errors.OpError) else str(error)
        return f"{name} cannot be read ({text.splitlines()[0]})"
    return None


def _problem(image: bytes) -> str | None:
    try:
        return None if stored_form(image) == image else "not in a form that is stored"
    except ImageRejected as rejected:
        return rejected.reason
