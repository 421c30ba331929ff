"""Puts a network that is there already under the head: a Keras Application or a Keras file."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import keras

from components.trainer.pretrained import APPLICATIONS, is_path, model_file
from components.trainer.recipe import Recipe, Trainable
from data_ingest.errors import InputError

BACKBONE: Final = "backbone"
EMBEDDER: Final = "embedder"
"""The part of a model of ours that is a network from images to vectors."""
VIEWS: Final = "views"
"""Its layer that makes views of an image, if it does."""
EMBEDDING: Final = "embedding"
"""Its layer that ends the embedding of one view."""
RGB: Final = 3
_EXACT: Final = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.UnitNormalization)
"""Layers that bfloat16 would leave too few digits."""
_URL: Final = re.compile(r"https?://\S+/([\w.-]+\.h5)")


@keras.saving.register_keras_serializable(package="siamese")
class Backbone(keras.layers.Layer):
    """Runs a network as in inference, in training too: no dropout, statistics as they are.

    Statistics of batches of few classes would ruin those that the network was trained with, and
    none of its weights change but those that are trained.

    Attributes:
      network: from images to vectors.
      application: which of `APPLICATIONS` it is; None: another, to which pixels are in [0, 1].
    """

    def __init__(
        self, network: keras.Model, *, application: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.application = application

    def call(self, images: Any) -> Any:
        """Images `float32[N, H, W, C]` in [0, 1] to features `[N, D]`.

        Ink in grayscale is repeated for a network that looks at colours.
        """
        channels = self.network.input_shape[-1]
        if channels == RGB and images.shape[-1] == 1:
            images = keras.ops.repeat(images, RGB, axis=-1)
        return self.network(_scaled(images, self.application), training=False)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        network = keras.saving.serialize_keras_object(self.network)
        return config | {"network": network, "application": self.application}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Backbone":
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**config | {"network": network})


def features(image: keras.KerasTensor, recipe: Recipe, policy: Any) -> keras.KerasTensor:
    """The layer 'backbone' and, on its features, a linear layer, which starts as a rotation.

    Args:
      image: `float32[N, H, W, C]` in [0, 1].
      recipe: `backbone`, `backbone_trainable` and the size of the embedding.
      policy: what all but the scaling of pixels is computed in.

    Raises:
      InputError: there is no such network, or it does not go with the images.
    """
    named = str(recipe.backbone)
    application = None if is_path(named) else named
    network = _application(named, recipe) if application else _of_file(named, recipe)
    _set_trainable(network, recipe.backbone_trainable, named)
    for layer in _layers(network):
        if not isinstance(layer, _EXACT):
            layer.dtype_policy = policy
    found = Backbone(network, application=application, name=BACKBONE, dtype="float32")(image)
    return keras.layers.Dense(
        recipe.embedding_size,
        kernel_initializer=keras.initializers.Orthogonal(seed=recipe.seed),
        dtype=policy,
    )(found)


def _application(name: str, recipe: Recipe) -> keras.Model:
    """One of `APPLICATIONS` with its weights, which Keras downloads or has downloaded before."""
    tall, wide, _ = recipe.preprocessing.shape
    try:
        with warnings.catch_warnings():
            # Some have weights for one size alone, which go with any.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            network: keras.Model = getattr(keras.applications, name)(
                include_top=False, weights="imagenet", input_shape=(tall, wide, RGB), pooling="avg"
            )
    except Exception as error:
        # Keras raises no other than `Exception` where a download fails.
        address = _URL.search(str(error))
        if address is None:
            raise
        place = Path(os.environ.get("KERAS_HOME") or "~/.keras", "models", address[1])
        raise InputError(
            f"train.backbone: the weights of {name} cannot be downloaded ({error}); without a "
            f"network bring {address[0]} as {place}, which KERAS_HOME moves elsewhere, or save the "
            "network as a .keras file where there is one, and name that"
        ) from None
    return network


def _of_file(named: str, recipe: Recipe) -> keras.Model:
    """A network from images of the recipe's size to vectors, out of a Keras file."""
    path = model_file(named)
    try:
        network: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, ImportError, AttributeError) as error:
        raise InputError(f"train.backbone: {path} cannot be read: {error}") from error
    network = _without_views(network)
    shape = recipe.preprocessing.shape
    taken, given = getattr(network, "input_shape", None), getattr(network, "output_shape", None)
    problem = ""
    if not isinstance(taken, tuple) or len(taken) != 1 + len(shape):
        problem = f"takes {taken}; a backbone takes one batch of images, (None, {_text(shape)})"
    elif not isinstance(given, tuple) or len(given) != 2 or given[1] is None:
        problem = (
            f"gives {given}, not one vector an image; end it in a layer such as "
            "GlobalAveragePooling2D"
        )
    elif not _fits(taken[1:], shape):
        problem = (
            f"takes images of {_text(taken[1:])} (height, width, channels), and they are "
            f"{_text(shape)}; set train.image_size, train.aspect and train.color_mode to what it "
            "takes"
        )
    if problem:
        raise InputError(f"train.backbone: {path} {problem}")
    return network


def _without_views(network: keras.Model) -> keras.Model:
    """The embedder of a model of ours, of one view of an image; other networks as they are."""
    layers = {layer.name: layer for layer in getattr(network, "layers", ())}
    if EMBEDDER in layers:
        network = layers[EMBEDDER]
        layers = {layer.name: layer for layer in network.layers}
    if VIEWS in layers and EMBEDDING in layers:
        return keras.Model(layers[VIEWS].output, layers[EMBEDDING].output, name=network.name)
    return network


def _set_trainable(network: keras.Model, what: Trainable, named: str) -> None:
    """Freezes all layers but those that are to be trained.

    The last blocks are those that work at the coarsest resolution, and what follows them.

    Raises:
      InputError: the layers do not say at which resolution they work.
    """
    network.trainable = what != "frozen"
    if what != "last":
        return
    layers = [*_layers(network)]
    areas = [(at, _area(layer)) for at, layer in enumerate(layers) if layer.weights]
    known = [(at, area) for at, area in areas if area]
    if not known:
        raise InputError(
            f"train.backbone_trainable: the layers of {named} do not say at which resolution they "
            "work; set it to frozen or all, or save the network with an input of fixed size"
        )
    coarsest = known[-1][1]
    first = 1 + max((at for at, area in known if area > coarsest), default=-1)
    for layer in layers[:first]:
        layer.trainable = False


def _layers(network: Any) -> Iterator[keras.layers.Layer]:
    """Layers in the order of the computation, those of networks in it in their place."""
    for layer in network.layers:
        inner = layer.network if isinstance(layer, Backbone) else layer
        if isinstance(inner, keras.Model):
            yield from _layers(inner)
        else:
            yield layer


def _area(layer: keras.layers.Layer) -> int:
    """Pixels of a layer's output; 0 where that is no image, or of no size that is known."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return 0
    image = len(shape) == 4 and None not in shape[1:3]
    return int(shape[1] * shape[2]) if image else 0


def _scaled(images: Any, application: str | None) -> Any:
    """Pixels of [0, 1] as an Application wants them; those of other networks as they are."""
    if application is None:
        return images
    scaling = APPLICATIONS[application].scaling
    if scaling == "included":
        return 255.0 * images
    return keras.applications.imagenet_utils.preprocess_input(255.0 * images, mode=scaling)


def _fits(taken: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a network takes images of `shape`; one that looks at colours takes grayscale too."""
    repeated = (*shape[:2], RGB) if shape[2] == 1 and taken[2] == RGB else tuple(shape)
    return all(a is None or a == b for a, b in zip(taken, repeated, strict=True))


def _text(shape: Sequence[int | None]) -> str:
    return ", ".join(map(str, shape))
