"""Small drawings and pair records for tests of training and export."""

import io
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from components.trainer.pair_data import PairData, read_pair_data
from components.trainer.recipe import Recipe, TrainSettings
from data_ingest.records.features import Pair, serialize_pair
from serving.saved_model.contract import Preprocessing

SIDE = 20


def drawing(class_number: int, writer: int) -> npt.NDArray[np.uint8]:
    """A character of three strokes, shaky by the writer: `uint8[SIDE, SIDE]`, ink 0 on 255."""
    rng = np.random.default_rng(class_number)
    hand = np.random.default_rng([class_number, writer])
    points = rng.uniform(3, SIDE - 4, (4, 2)) + hand.normal(0, 0.5, (4, 2))
    page = np.full((SIDE, SIDE), 255, np.uint8)
    for start, end in itertools.pairwise(points):
        for along in np.linspace(0, 1, 3 * SIDE):
            row, column = np.clip(np.rint(start + along * (end - start)), 1, SIDE - 2).astype(int)
            page[row, column] = 0
    return page


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()


def make_pairs(
    *, groups: int, classes: int, writers: int = 6, first: int = 0, pairs: int = 120
) -> list[Pair]:
    """Pairs, every other one of the same class, by different writers."""
    rng = np.random.default_rng(first)
    made = []
    for number in range(pairs):
        a = int(rng.integers(groups * classes))
        b = (
            a
            if number % 2 == 0
            else (a + int(rng.integers(1, groups * classes))) % (groups * classes)
        )
        writer_a, writer_b = (int(writer) + 1 for writer in rng.permutation(writers)[:2])
        names = [f"group{first + c // classes:02d}" for c in (a, b)]
        made.append(
            Pair(
                image_a=png(drawing(1000 * first + a, writer_a)),
                image_b=png(drawing(1000 * first + b, writer_b)),
                label=int(a == b),
                class_a=f"{names[0]}/character{a % classes:02d}",
                class_b=f"{names[1]}/character{b % classes:02d}",
                group_a=names[0],
                group_b=names[1],
                writer_a=writer_a,
                writer_b=writer_b,
                trial="",
                protocol="train",
                way=0,
            )
        )
    return made


def write_records(folder: Path, pairs: list[Pair], *, shards: int = 1) -> str:
    """Writes gzip TFRecords; returns the pattern that matches them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        name = folder / f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        with tf.io.TFRecordWriter(str(name), "GZIP") as writer:
            for pair in pairs[shard::shards]:
                writer.write(serialize_pair(pair))
    return str(folder / "*")


def tiny_settings(**overrides: object) -> TrainSettings:
    """A network that trains in milliseconds a step."""
    values = {
        "steps": 6,
        "image_size": 16,
        "widths": (4, 8),
        "embedding_size": 8,
        "classes_per_batch": 4,
        "images_per_class": 2,
        "validate_every": 3,
    }
    return TrainSettings(**(values | overrides))


def tiny_recipe(**overrides: object) -> Recipe:
    return tiny_settings(**overrides).recipe()


def tiny_data(
    folder: Path,
    *,
    first: int = 0,
    groups: int = 2,
    classes: int = 5,
    pairs: int = 120,
    size: int = 16,
) -> PairData:
    made = make_pairs(groups=groups, classes=classes, first=first, pairs=pairs)
    return read_pair_data([write_records(folder, made)], Preprocessing(size))


def trial_records(
    name: str, candidates: list[bytes], *, query: bytes, answer: int = 0
) -> list[Pair]:
    return [
        Pair(
            image_a=query,
            image_b=image,
            label=int(position == answer),
            class_a="g/a",
            class_b=f"g/{position}",
            group_a="g",
            group_b="g",
            writer_a=1,
            writer_b=2,
            trial=name,
            protocol="within",
            way=len(candidates),
        )
        for position, image in enumerate(candidates)
    ]
