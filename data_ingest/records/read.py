"""Lists, reads and checks images, by Beam, in blocks that any worker can hold."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
import tensorflow as tf
from apache_beam.metrics import Metrics

from data_ingest.errors import InputError
from data_ingest.progress import advance
from data_ingest.records.catalog import RUNS, Catalog, CatalogPart, Found, Rejected, build_catalog
from data_ingest.records.plan import make_plan
from data_ingest.sampling.index import ImageRef
from data_ingest.sampling.official_runs import OfficialRuns, read_official_runs
from data_ingest.settings import PairSettings
from data_ingest.sources.kinds import Form
from data_ingest.sources.layout import (
    ImageFile,
    ImageReader,
    list_images,
    refuse_useless_pattern,
)

NAMESPACE: Final = "oneshot"
"""Of all counters."""

READING: Final = "Reading images"
_PORTION_IMAGES: Final = 512
_BLOCK_BYTES: Final = 8 * 2**20
_MAX_BLOCKS: Final = _PORTION_IMAGES
_IMAGE: Final = "image"


class Portion(NamedTuple):
    """Files that one worker reads in one go."""

    source: str
    number: int
    first: int
    """Position of the first in the source's list of files."""
    images: tuple[ImageFile, ...]


class Inputs(NamedTuple):
    """What is to be read."""

    portions: tuple[Portion, ...]
    official: OfficialRuns


def list_inputs(
    containers: Mapping[str, Sequence[Path]], *, writer_pattern: str | None = None
) -> Inputs:
    """Lists the images of all inputs, without reading them.

    Args:
      containers: zips and root folders by source (`background`, `evaluation`, `runs`; or
        `images`).
      writer_pattern: `DatasetSettings.writer_pattern`.

    Raises:
      InputError: a container cannot be listed, there are several of the official runs, or the
        pattern finds no writer.
    """
    official = OfficialRuns([], [])
    portions: list[Portion] = []
    for source, places in containers.items():
        files = [
            file
            for place in places
            if source != RUNS
            for file in list_images(place, writer_pattern)
        ]
        if source == RUNS:
            if len(places) != 1:
                raise InputError(f"expected one archive of official runs, got {len(places)}")
            official = read_official_runs(places[0])
            files = official.images
        for first in range(0, len(files), _PORTION_IMAGES):
            part = tuple(files[first : first + _PORTION_IMAGES])
            portions.append(Portion(source, len(portions), first, part))
    if writer_pattern is not None:
        files = [file for portion in portions for file in portion.images]
        refuse_useless_pattern(files, writer_pattern)
    return Inputs(tuple(portions), official)


def expected_protocols(
    containers: Mapping[str, Sequence[Path]],
    settings: PairSettings,
    *,
    writer_pattern: str | None = None,
) -> set[tuple[str, int]]:
    """Which (protocol, way) the `one_shot` split of these inputs will hold, without reading images.

    Way is 0 for verification pairs. Images rejected later may make trials of some way impossible.

    Args:
      containers: zips and root folders by input split, as `Dataset.containers()` gives them.
      settings: how they are to be sampled.
      writer_pattern: `DatasetSettings.writer_pattern`.

    Raises:
      InputError: the inputs cannot be listed, or there is too little for the splits.
    """
    inputs = list_inputs(containers, writer_pattern=writer_pattern)
    plan = make_plan(catalog_of_names(inputs), settings, official=inputs.official.trials)
    if plan.problem:
        raise InputError(plan.problem)
    return plan.protocols


def catalog_of_names(inputs: Inputs) -> Catalog:
    """What the inputs hold if each image can be used and is another than all others."""
    parts = []
    for portion in inputs.portions:
        # Going by names: an image is another than all others if its name is.
        found = tuple(
            Found(ImageRef.of(image), image.uri.encode(), image.path, 0, listing, 0, 0)
            for listing, image in enumerate(portion.images, start=portion.first)
        )
        parts.append(CatalogPart(portion.source, found, ()))
    return build_catalog(parts)


def catalog_of_images(inputs: Inputs) -> Catalog:
    """What the inputs hold, by reading every image in this process."""
    parts = []
    with ImageReader() as reader:
        for portion in inputs.portions:
            rejected: list[tuple[ImageFile, str]] = []
            found = tuple(
                Found.of(image, data, portion.first + offset)
                for offset, image, data in reader.sound(portion.images, rejected)
            )
            unusable = tuple(Rejected(portion.source, bad.path, why) for bad, why in rejected)
            parts.append(CatalogPart(portion.source, found, unusable))
    return build_catalog(parts)


class ReadImages(beam.DoFn):
    """Portion → what was found in it and rejected; the images in their stored form go to blocks.

    A block is a file. It ends with its portion, or earlier when it holds 8 MiB.
    """

    def __init__(self, form: Form, blocks: str) -> None:
        self._form = form
        self._blocks = blocks
        self._read = Metrics.counter(NAMESPACE, "images_read")

    def setup(self) -> None:
        self._reader = ImageReader(self._form)
        tf.io.gfile.makedirs(self._blocks)

    def teardown(self) -> None:
        self._reader.close()

    def process(self, portion: Portion) -> Iterator[CatalogPart]:
        block = portion.number * _MAX_BLOCKS
        images: list[bytes] = []
        found: list[Found] = []
        rejected: list[tuple[ImageFile, str]] = []
        held = 0
        for offset, image, data in self._reader.sound(portion.images, rejected):
            found.append(Found.of(image, data, portion.first + offset, block, len(images)))
            images.append(data)
            held += len(data)
            if held >= _BLOCK_BYTES:
                write_block(self._blocks, block, images)
                block, images, held = block + 1, [], 0
        self._read.inc(len(portion.images))
        advance(READING, len(portion.images))
        for _, reason in rejected:
            Metrics.counter(NAMESPACE, f"images_rejected/{reason}").inc()
        if images:
            write_block(self._blocks, block, images)
        unusable = tuple(Rejected(portion.source, bad.path, reason) for bad, reason in rejected)
        yield CatalogPart(portion.source, tuple(found), unusable)


@contextmanager
def written_whole(path: str, *, beside: str) -> Iterator[str]:
    """A name in the folder `beside` to write to: it becomes `path`, or is removed on an error."""
    partial = f"{beside}/partial-{uuid.uuid4().hex}"
    try:
        yield partial
        tf.io.gfile.rename(partial, path, overwrite=True)
    except BaseException:
        if tf.io.gfile.exists(partial):
            tf.io.gfile.remove(partial)
        raise


def write_block(folder: str, number: int, images: Sequence[bytes]) -> None:
    """Writes images to a file of a folder, whole or not at all, as one column of Arrow."""
    batch = pa.record_batch([pa.array(images, pa.binary())], names=[_IMAGE])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with (
        written_whole(f"{folder}/{number}.arrow", beside=folder) as partial,
        tf.io.gfile.GFile(partial, "wb") as file,
    ):
        file.write(sink.getvalue().to_pybytes())


def read_block(folder: str, number: int, positions: Iterable[int]) -> list[bytes]:
    """Some of the images of a block."""
    with tf.io.gfile.GFile(f"{folder}/{number}.arrow", "rb") as file:
        column = pa.ipc.open_stream(file.read()).read_all().column(_IMAGE)
    return [column[position].as_py() for position in positions]
