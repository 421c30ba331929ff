"""Draws batch number i, a pure function of (data, recipe, i).

So training that was interrupted goes on with exactly the batches that it would have seen.
"""

import functools
import logging
import math
import time
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.trainer.augment import linear_map
from components.trainer.pair_data import Images, PairData, as_levels
from components.trainer.recipe import Recipe
from data_ingest.errors import InputError
from data_ingest.sampling.index import ImageIndex, ImageRef
from data_ingest.sources.glyphs import SIDE, WRITERS, draw_alphabet
from serving.saved_model.contract import Preprocessing
from serving.saved_model.preprocessing import framed

ALPHABETS: Final = 100
CHARACTERS: Final = 25
"""Of a generated alphabet."""
SEED: Final = 2**31
"""No synthetic data set can have it, so what is trained on is never what is evaluated on."""
RESTYLED_ROTATION: Final = math.radians(30.0)
"""Largest rotation of a class at `restyling` 1, radians either way."""
RESTYLED_SCALE: Final = 0.3
"""Largest change of its width and, independently, of its height, as a share."""
RESTYLED_SHEAR: Final = 0.4

Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One batch of a single replica."""

    rows: Ints
    """`int32[N]`: images, as rows of the index. For pairs: P first images, then P second ones."""
    labels: Ints
    """By class: `int32[N]`, equal where images are of one class. Pairs: `int32[P]`, 1 or 0."""
    maps: Floats
    """`float32[N, 2, 2]`: where (x, y) of a class as it is learnt comes from in its drawings, about
    the centre; the same for all images of a class (or of a pair)."""


class Batches(Protocol):
    """Batches by number."""

    def __getitem__(self, number: int) -> Batch: ...


class Feed(NamedTuple):
    """What training is fed from."""

    batches: Batches
    images: Images
    """`uint8[n, H, W, C]`: what the rows of the batches point at."""


def training_feed(data: PairData, recipe: Recipe) -> Feed:
    """The batches of the data and, as often as the recipe asks for, of generated alphabets.

    Raises:
      InputError: the data has fewer than two classes.
    """
    own = PairBatches(data, recipe) if recipe.loss == "pair" else ClassBatches(data.index, recipe)
    if not recipe.generated_share:
        return Feed(own, data.images)
    index, images = generated_images(recipe.preprocessing)
    mixed = MixedBatches(own, ClassBatches(index, recipe), len(data.images), recipe)
    return Feed(mixed, np.concatenate([data.images, images]))


class ClassBatches:
    """Class-balanced batches, a share of whose classes comes from a single group.

    Rivals from one's own alphabet are the hard ones; the rest of the batch keeps the network
    from specialising in it. Classes are drawn without replacement, and so are images of a class
    unless it has too few. Classes are turned by quarters and restyled: rotated, stretched, slanted
    and mirrored, those of the single group all alike. So every batch has an alphabet of its own,
    as nobody ever wrote it. Data with fewer classes than `classes_per_batch` gives batches of the
    same size with more images a class.
    """

    def __init__(self, index: ImageIndex, recipe: Recipe) -> None:
        count = len(index.classes)
        if count < 2:
            raise InputError(f"training needs images of two classes or more, the data has {count}")
        self._index = index
        self._seed = recipe.seed
        self._classes = min(recipe.classes_per_batch, count)
        self._images = recipe.images_per_batch // self._classes
        self._own = round(recipe.same_group_share * self._classes)
        self._turns = 4 if recipe.quarter_turns else 1
        self._restyling = recipe.restyling

    def __getitem__(self, number: int) -> Batch:
        draw = _generator(self._seed, number)
        index = self._index
        anchor = int(index.class_group[draw.integers(len(index.classes))])
        own = np.array(index.group_classes(anchor))
        own = draw.choice(own, min(self._own, len(own)), replace=False)
        others = np.ones(len(index.classes), bool)
        others[own] = False
        rest = np.flatnonzero(others)
        rest = draw.choice(rest, min(self._classes - len(own), len(rest)), replace=False)
        classes = np.concatenate([own, rest])
        maps = quarter_turns(draw.integers(self._turns, size=len(classes)))
        if self._restyling:
            styles = restyled(draw, len(rest) + 1, strength=self._restyling)
            maps = np.concatenate([np.repeat(styles[:1], len(own), axis=0), styles[1:]]) @ maps
        return Batch(
            rows=self._rows(draw, classes).ravel().astype(np.int32),
            labels=np.repeat(np.arange(len(classes)), self._images).astype(np.int32),
            maps=np.repeat(maps, self._images, axis=0).astype(np.float32),
        )

    def _rows(self, draw: np.random.Generator, classes: Rows) -> Rows:
        """Images of each class, `int64[C, K]`: any K of them, or K times any where it has fewer.

        All classes at a time: Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance"),
        since a choice a class takes longer than a GPU takes for the whole step.
        """
        sizes = self._index.class_sizes[classes]
        enough = sizes >= self._images
        picked = np.empty((len(classes), self._images), np.int64)
        for at in range(self._images):
            newest = sizes - self._images + at
            drawn = draw.integers(np.where(enough, newest + 1, sizes))
            taken = enough & (picked[:, :at] == drawn[:, np.newaxis]).any(axis=1)
            picked[:, at] = np.where(taken, newest, drawn)
        return self._index.class_start[classes][:, np.newaxis] + picked


class PairBatches:
    """The recorded pairs, every one once an epoch, in an order of its own each epoch."""

    def __init__(self, data: PairData, recipe: Recipe) -> None:
        self._pairs = data.pairs
        self._labels = data.labels
        self._seed = recipe.seed
        self._size = recipe.images_per_batch // 2
        self._turns = 4 if recipe.quarter_turns else 1
        self._order: tuple[int, Rows] | None = None

    def __getitem__(self, number: int) -> Batch:
        places = np.arange(number * self._size, (number + 1) * self._size)
        epochs, offsets = np.divmod(places, len(self._pairs))
        chosen = np.concatenate(
            [self._epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        pairs = self._pairs[chosen]
        turns = _generator(self._seed, number).integers(self._turns, size=len(chosen))
        return Batch(
            rows=np.concatenate([pairs[:, 0], pairs[:, 1]]).astype(np.int32),
            labels=self._labels[chosen],
            maps=quarter_turns(np.concatenate([turns, turns])),
        )

    def _epoch(self, epoch: int) -> Rows:
        if self._order is None or self._order[0] != epoch:
            draw = _generator(self._seed, epoch, stream=1)
            self._order = (epoch, draw.permutation(len(self._pairs)))
        return self._order[1]


class MixedBatches:
    """Batches of the data's own images and, at random, of others that follow them."""

    def __init__(self, own: Batches, others: Batches, first_other: int, recipe: Recipe) -> None:
        self._own = own
        self._others = others
        self._first_other = first_other
        self._seed = recipe.seed
        self._share = recipe.generated_share

    def __getitem__(self, number: int) -> Batch:
        if _generator(self._seed, number, stream=2).random() >= self._share:
            return self._own[number]
        batch = self._others[number]
        return batch._replace(rows=batch.rows + np.int32(self._first_other))


@functools.lru_cache(maxsize=1)
def generated_images(
    preprocessing: Preprocessing, *, alphabets: int = ALPHABETS, characters: int = CHARACTERS
) -> tuple[ImageIndex, Images]:
    """Draws alphabets: their index, and `uint8[n, H, W, 1]` with ink 255, a row each.

    They are the same for all seeds of training. The last ones are kept, since one model takes
    several trainings.
    """
    _log.info(f"Drawing {alphabets} alphabets to train on, besides the data's own")
    started = time.monotonic()

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE], tf.bool)])
    def prepared(drawings: tf.Tensor) -> tf.Tensor:
        return as_levels(framed(drawings, _ink, preprocessing))

    refs: list[ImageRef] = []
    images = []
    for number in range(1, alphabets + 1):
        group = f"Generated_{number:03}"
        drawn = draw_alphabet(number, characters=characters, writers=WRITERS, seed=SEED)
        for character, drawings in enumerate(drawn, start=1):
            name = f"{group}/character{character:02}"
            refs += [ImageRef(group, name, one, f"{one:02}") for one in range(1, WRITERS + 1)]
            images.append(prepared(tf.constant(drawings)).numpy())
    _log.info(f"Drew {len(refs)} images in {time.monotonic() - started:.0f} s")
    # Groups, classes and keys count up: the rows are in the order of the index.
    return ImageIndex.build(refs), np.concatenate(images)


def quarter_turns(turns: Rows) -> Floats:
    """Maps `float32[N, 2, 2]` of N anticlockwise quarter turns."""
    cos, sin = np.array([1, 0, -1, 0])[turns % 4], np.array([0, 1, 0, -1])[turns % 4]
    return np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2).astype(np.float32)


def restyled(draw: np.random.Generator, count: int, *, strength: float) -> Floats:
    """Random maps `float32[count, 2, 2]` of whole classes; half of them mirror."""
    angle, width, height, shear, mirrored = strength * draw.uniform(-1, 1, size=(5, count))
    angle = RESTYLED_ROTATION * angle
    width = np.exp(RESTYLED_SCALE * width) * np.where(mirrored > 0, 1, -1)
    height, shear = np.exp(RESTYLED_SCALE * height), RESTYLED_SHEAR * shear
    entries = linear_map(np.cos(angle), np.sin(angle), shear=shear, width=width, height=height)
    return np.stack(entries, axis=-1).reshape(-1, 2, 2).astype(np.float32)


def _ink(drawing: tf.Tensor) -> tf.Tensor:
    return tf.cast(drawing, tf.float32)[..., tf.newaxis]


def _generator(seed: int, number: int, *, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, number, 0, 0]))
