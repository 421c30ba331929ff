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
RECOLOURED_SHARE: Final = 0.5
"""Of the classes in colour, those whose hue is changed at `restyling` 1 and above."""

FORGED_SHARE: Final = 1 / 3
"""Of a writer's images in a batch."""

Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One batch of a single replica."""

    rows: Ints
    """`int32[N]`: images, as rows of the index. For pairs: P first images, then P second ones."""
    labels: Ints
    """By class: `int32[N]`, equal where images are of one class; a forgery has one of its own.
    Pairs: `int32[P]`, 1 or 0."""
    maps: Floats
    """`float32[N, 2, 2]`: where (x, y) of a class as it is learnt comes from in its drawings, about
    the centre; the same for all images of a class (or of a pair)."""
    hues: Floats
    """`float32[N]`: radians by which the colours of a class are turned as it is learnt."""


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
    and mirrored, those of the single group all alike, and in colour every other one takes another
    hue. So every batch has an alphabet of its own, as nobody ever wrote it. Data with fewer
    classes than `classes_per_batch` gives batches of the same size with more images a class.

    Where there are forgeries, classes are those of the genuine signatures, with three images or
    more, and `FORGED_SHARE` of a writer's images are forgeries: rivals of all, positives of none.
    """

    def __init__(self, index: ImageIndex, recipe: Recipe) -> None:
        count = len(index.genuine)
        if count < 2:
            raise InputError(f"training needs images of two classes or more, the data has {count}")
        self._index = index
        self._seed = recipe.seed
        self._classes = min(recipe.classes_per_batch, count)
        if index.has_forgeries:
            self._classes = min(self._classes, max(2, recipe.images_per_batch // 3))
        self._images = recipe.images_per_batch // self._classes
        # Two genuine ones at least: a single one would be nobody's positive.
        self._forged = min(max(1, round(FORGED_SHARE * self._images)), self._images - 2)
        forged_row = index.class_forged[index.row_class]
        self._forged_rows = np.flatnonzero(forged_row)
        self._forged_sizes = np.bincount(
            index.row_group[forged_row], minlength=len(index.groups)
        ).astype(np.int64)
        self._forged_start = np.cumsum(self._forged_sizes) - self._forged_sizes
        self._own = round(recipe.same_group_share * self._classes)
        self._turns = 4 if recipe.quarter_turns else 1
        self._restyling = recipe.restyling
        self._in_colour = recipe.color_mode == "rgb"

    def __getitem__(self, number: int) -> Batch:
        draw = _generator(self._seed, number)
        index = self._index
        genuine_group = index.class_group[index.genuine]
        anchor = genuine_group[draw.integers(len(index.genuine))]
        own = index.genuine[genuine_group == anchor]
        own = draw.choice(own, min(self._own, len(own)), replace=False)
        others = ~index.class_forged
        others[own] = False
        rest = np.flatnonzero(others)
        rest = draw.choice(rest, min(self._classes - len(own), len(rest)), replace=False)
        classes = np.concatenate([own, rest])
        maps = quarter_turns(draw.integers(self._turns, size=len(classes)))
        if self._restyling:
            styles = restyled(draw, len(rest) + 1, strength=self._restyling)
            maps = np.concatenate([np.repeat(styles[:1], len(own), axis=0), styles[1:]]) @ maps
        rows = some_of(draw, index.class_sizes[classes], self._images)
        rows += index.class_start[classes][:, np.newaxis]
        labels = np.repeat(np.arange(len(classes)), self._images).reshape(rows.shape)
        if index.has_forgeries:
            self._forge(draw, classes, rows, labels)
        hues = np.zeros(len(classes))
        if self._restyling and self._in_colour:
            turned = draw.random(len(classes)) < RECOLOURED_SHARE * min(self._restyling, 1.0)
            hues = turned * draw.uniform(0, 2 * math.pi, size=len(classes))
        return Batch(
            rows=rows.ravel().astype(np.int32),
            labels=labels.ravel().astype(np.int32),
            maps=np.repeat(maps, self._images, axis=0).astype(np.float32),
            hues=np.repeat(hues, self._images).astype(np.float32),
        )

    def _forge(self, draw: np.random.Generator, classes: Rows, rows: Rows, labels: Rows) -> None:
        """Puts forgeries into the last columns of `rows` and `labels`, `int64[C, K]`."""
        group = self._index.class_group[classes]
        known = np.flatnonzero(self._forged_sizes[group])
        group = group[known]
        picked = some_of(draw, self._forged_sizes[group], self._forged)
        picked += self._forged_start[group][:, np.newaxis]
        last = slice(self._images - self._forged, None)
        rows[known, last] = self._forged_rows[picked]
        labels[known, last] = len(classes) + np.arange(picked.size).reshape(picked.shape)


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
            hues=np.zeros(2 * len(chosen), np.float32),
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


def some_of(draw: np.random.Generator, sizes: Rows, count: int) -> Rows:
    """Of each of C sets numbers below its size, `int64[C, count]`: any, or, of fewer, any often.

    All sets at a time: Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance"), since
    a choice a set takes longer than a GPU takes for the whole step.
    """
    enough = sizes >= count
    picked = np.empty((len(sizes), count), np.int64)
    for at in range(count):
        newest = sizes - count + at
        drawn = draw.integers(np.where(enough, newest + 1, sizes))
        taken = enough & (picked[:, :at] == drawn[:, np.newaxis]).any(axis=1)
        picked[:, at] = np.where(taken, newest, drawn)
    return picked


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
