"""The Siamese network: one embedder for both images, and a weighted L1 head."""

import math
from collections.abc import Callable
from typing import Any, Final

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.trainer import backbone, koch2015
from components.trainer.augment import warp
from components.trainer.pair_data import Images, PairData
from components.trainer.recipe import Recipe

EMBEDDER: Final = backbone.EMBEDDER
HEAD: Final = "head"
IMAGES_A_BATCH: Final = 256
"""Embedded at a time."""
TURN: Final = math.radians(8.0)
"""Angle by which a view is turned, radians."""
ZOOM: Final = 1.1
"""How many times larger or smaller a view is."""
VIEWS: Final = (
    (0.0, 1.0),
    *((angle, zoom) for angle in (TURN, -TURN) for zoom in (ZOOM, 1 / ZOOM)),
)
"""Angle and zoom of each view of a drawing. Shifts are left to the framing."""

MIRRORED: Final = 2
"""Views of an image where its mirror image is the other one."""

Floats = npt.NDArray[np.float32]


@keras.saving.register_keras_serializable(package="siamese")
class WeightedL1(keras.layers.Layer):
    """`logit = b0 - sum_k w_k |e_a,k - e_b,k|`, every `w_k >= 0`.

    The sign is constrained so that `w * e` lives in an L1 space in which any Manhattan index is
    exact. Arithmetic is float32 whatever the precision of the network.

    Attributes:
      w: `float32[D]`, starts at `10 / sqrt(D)`: unit vectors that point in random directions
        then differ by a logit of about 11, whatever D is.
      b0: `float32[]`, starts at `initial_b0`; calibration sets it in the end.
    """

    def __init__(self, *, initial_b0: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.initial_b0 = initial_b0

    def build(self, input_shape: Any) -> None:
        size = int(input_shape[0][-1])
        self.w = self.add_weight(
            name="w",
            shape=(size,),
            initializer=keras.initializers.Constant(10.0 / math.sqrt(size)),
            constraint=keras.constraints.NonNeg(),
        )
        self.b0 = self.add_weight(
            name="b0", shape=(), initializer=keras.initializers.Constant(self.initial_b0)
        )

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Logits of N pairs of embeddings, `float32[N, D]` each: `float32[N]`."""
        a, b = inputs
        return self.b0 - tf.reduce_sum(self.w * tf.abs(a - b), axis=-1)

    def distances(self, embeddings: tf.Tensor) -> tf.Tensor:
        """`sum_k w_k |e_i,k - e_j,k|` of all pairs of `[N, D]` embeddings: `float32[N, N]`."""
        weighted = tf.convert_to_tensor(self.w) * tf.cast(embeddings, tf.float32)
        return tf.reduce_sum(tf.abs(weighted[:, tf.newaxis] - weighted[tf.newaxis]), axis=-1)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {"initial_b0": self.initial_b0}

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (input_shape[0][0],)


def build_model(recipe: Recipe, *, mixed_precision: bool = False) -> keras.Model:
    """Builds the two-input model.

    Inputs `image_a` and `image_b` are `float32[N, H, W, C]` as `decode_images` gives them; the
    output `logit` is `float32[N]`. The layer 'embedder' gives the L2-normalised `float32[N, D]`
    embedding, or the mean of those of an image's views; the layer 'head' is a `WeightedL1`. The
    model saves to and loads from `.keras`.

    Args:
      recipe: network or backbone, widths, embedding and image size, colour mode, views.
      mixed_precision: compute in bfloat16; weights, embedding and head stay float32.

    Raises:
      InputError: the backbone is not there, or does not go with the images.
    """
    policy = keras.DTypePolicy("mixed_bfloat16" if mixed_precision else "float32")
    shape = recipe.preprocessing.shape
    image = keras.Input(shape, name="image")
    network = koch2015.network if recipe.network == "koch2015" else _residual
    if recipe.backbone is not None:
        network = backbone.features
    mirrored = recipe.mirroring
    seen = image
    if recipe.views:
        seen = Views(name=backbone.VIEWS, mirrored=mirrored, dtype="float32")(image)
    features = network(seen, recipe, policy)
    embedding = keras.layers.UnitNormalization(name=backbone.EMBEDDING, dtype="float32")(features)
    if recipe.views:
        count = MIRRORED if mirrored else len(VIEWS)
        embedding = MeanOfViews(name="mean_of_views", count=count, dtype="float32")(embedding)
    embedder = keras.Model(image, embedding, name=EMBEDDER)
    image_a = keras.Input(shape, name="image_a")
    image_b = keras.Input(shape, name="image_b")
    # Koch's initialisation gives all images nearly the same features: without a bias its head
    # starts undecided.
    initial_b0 = 0.0 if recipe.network == "koch2015" else 5.0
    head = WeightedL1(name=HEAD, initial_b0=initial_b0)
    logit = head((embedder(image_a), embedder(image_b)))
    return keras.Model({"image_a": image_a, "image_b": image_b}, logit, name="siamese")


def changing(model: keras.Model) -> list[keras.Variable]:
    """The weights that training changes: all but what is frozen of a backbone."""
    kept = {id(weight) for one in _backbones(model) for weight in one.non_trainable_weights}
    return [weight for weight in model.weights if id(weight) not in kept]


def trained_before(model: keras.Model) -> list[keras.Variable]:
    """The weights of a backbone that are trained further."""
    return [weight for one in _backbones(model) for weight in one.trainable_weights]


def _backbones(model: keras.Model) -> list[backbone.Backbone]:
    layers = model.get_layer(EMBEDDER).layers
    return [layer for layer in layers if isinstance(layer, backbone.Backbone)]


def embedding_function(model: keras.Model) -> Callable[[Images], Floats]:
    """A compiled function from images to weighted embeddings.

    It takes `uint8[N, H, W, C]` as `image_decoder` gives them, and gives `v = w * e`,
    `float32[N, D]`, whose L1 distances are the model's. It sees later changes of the model's
    weights.
    """
    embedder, head = model.get_layer(EMBEDDER), model.get_layer(HEAD)

    @tf.function(reduce_retracing=True)
    def embed(images: tf.Tensor) -> tf.Tensor:
        seen = tf.cast(images, tf.float32) / 255.0
        return tf.convert_to_tensor(head.w) * embedder(seen, training=False)

    return lambda images: embed(tf.constant(images)).numpy()


def embed_all(embed: Callable[[Images], Floats], images: Images) -> Floats:
    """Embeds `uint8[n, H, W, C]` in batches of one size: `float32[n, D]`."""
    blocks = []
    for start in range(0, len(images), IMAGES_A_BATCH):
        block = images[start : start + IMAGES_A_BATCH]
        # One shape only: a compiled function would otherwise be compiled again for the remainder.
        full = np.resize(block, (IMAGES_A_BATCH, *images.shape[1:])) if start else block
        blocks.append(embed(full)[: len(block)])
    return np.concatenate(blocks)


def pair_logits(model: keras.Model, data: PairData) -> Floats:
    """`float32[P]`: the logits of the pairs of `data`."""
    vectors = embed_all(embedding_function(model), data.images)
    first, second = vectors[data.pairs[:, 0]], vectors[data.pairs[:, 1]]
    logits: Floats = float(model.get_layer(HEAD).b0) - np.abs(first - second).sum(axis=1)
    return logits


def _residual(image: keras.KerasTensor, recipe: Recipe, policy: Any) -> keras.KerasTensor:
    """Stem, then residual blocks, with a 3x3 max pool of stride 2 after the stem and each block.

    The last block of a network for photographs has none. The stem pools at once: a residual block
    at full resolution costs a CPU as much as all others and gains no accuracy. Pools are padded:
    of an odd side they would drop the last row.
    """

    def convolved(x: Any, width: int, kernel: int, *, stride: int = 1, relu: bool = True) -> Any:
        x = keras.layers.Conv2D(
            width, kernel, strides=stride, padding="same", use_bias=False, dtype=policy
        )(x)
        x = FusedBatchNormalization(momentum=0.9, dtype=policy)(x)
        return keras.layers.ReLU(dtype=policy)(x) if relu else x

    def pooled(x: Any) -> Any:
        return keras.layers.MaxPooling2D(3, strides=2, padding="same", dtype=policy)(x)

    stem, *blocks = recipe.widths
    large = recipe.network == "photo"
    x = convolved(image, stem, 5, stride=2) if large else convolved(image, stem, 3)
    x = pooled(x)
    for at, width in enumerate(blocks):
        branch = convolved(convolved(x, width, 3), width, 3, relu=False)
        if x.shape[-1] != width:
            x = convolved(x, width, 1, relu=False)
        x = keras.layers.ReLU(dtype=policy)(keras.layers.Add(dtype=policy)([x, branch]))
        if not large or at < len(blocks) - 1:
            x = pooled(x)
    x = keras.layers.Flatten(dtype=policy)(x)
    return keras.layers.Dense(recipe.embedding_size, dtype=policy)(x)


@keras.saving.register_keras_serializable(package="siamese")
class Views(keras.layers.Layer):
    """Turns N images into V times as many, one view after the other; does nothing in training.

    Attributes:
      mirrored: the views are each image and its mirror image; else those of `VIEWS`.
    """

    def __init__(self, *, mirrored: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mirrored = mirrored

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """`float32[N, H, W, C]` to `float32[V * N, H, W, C]`, outside of drawings paper (0)."""
        if training:
            return images
        if self.mirrored:
            return tf.concat([images, tf.reverse(images, [2])], axis=0)
        return tf.concat([_view(images, *view) for view in VIEWS], axis=0)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {"mirrored": self.mirrored}

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (None, *input_shape[1:])


@keras.saving.register_keras_serializable(package="siamese")
class MeanOfViews(keras.layers.Layer):
    """Takes the mean of the embeddings of an image's views; does nothing in training.

    Attributes:
      count: V, how many views there are.
    """

    def __init__(self, *, count: int = len(VIEWS), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def call(self, embeddings: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """`float32[V * N, D]` to `float32[N, D]`."""
        if training:
            return embeddings
        return tf.reduce_mean(tf.stack(tf.split(embeddings, self.count)), axis=0)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {"count": self.count}

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (None, *input_shape[1:])


def _view(images: tf.Tensor, angle: float, zoom: float) -> tf.Tensor:
    count = tf.shape(images)[0]

    def each(value: float) -> tf.Tensor:
        return tf.fill([count], tf.constant(value, tf.float32))

    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    return warp(
        images,
        matrix=((each(cos), each(-sin)), (each(sin), each(cos))),
        shift=(each(0.0), each(0.0)),
        outside="REFLECT" if images.shape[-1] > 1 else "CONSTANT",
    )


@keras.saving.register_keras_serializable(package="siamese")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer over channels-last images, in one operation where Keras takes a dozen.

    Statistics are float32 whatever the precision of the network; they are averaged with the
    batch's variance times `n / (n - 1)`, which Keras leaves out.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises `[N, H, W, C]`: by the batch in training, else by the averages so far."""
        averages = (self.moving_mean, self.moving_variance)
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[] if training else tf.convert_to_tensor(averages[0]),
            variance=[] if training else tf.convert_to_tensor(averages[1]),
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            for average, value in zip(averages, (mean, variance), strict=True):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return normalized
