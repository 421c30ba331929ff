"""Says which image of a request the model refuses, and why."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from serving.client.images import encode_image
from serving.client.types import InvalidImage
from serving.errors import Code, ServingError
from serving.saved_model.contract import EMBED, EXAMPLES, SERVING, SIGNATURES
from serving.server.batching import Arrays, Run

IMAGE_REFUSED: Final = "image refused: "
"""How the model's own words about an image begin."""
SIGNATURES_OF_IMAGES: Final = frozenset({SERVING, EMBED, EXAMPLES})


class _Place(NamedTuple):
    image: bytes
    name: str
    row: int


def name_refused_image(
    inputs: Arrays, first: int, message: str, *, signature: str, embed: Run
) -> str:
    """The message of a refused request with the image that it is about.

    Args:
      inputs: of `signature`, one of `SIGNATURES_OF_IMAGES`.
      first: the instance of the request that the first row of `inputs` is.
      message: the model's.
      embed: runs the signature `embed` of the same model.

    Returns:
      `image_a of instance 3: image refused: ...`; the same message where no image is to blame.
    """
    places = list(_places(signature, inputs))
    found = _first_refused(places, embed) if places else None
    if found is None:
        return message
    place, reason = found
    if not reason.startswith(IMAGE_REFUSED):
        reason = IMAGE_REFUSED + _fault(place.image)
    return f"{place.name} of instance {first + place.row}: {reason}"


def _places(signature: str, inputs: Arrays) -> Iterator[_Place]:
    if signature != EXAMPLES:
        for row, images in enumerate(zip(*inputs.values(), strict=False)):
            yield from (
                _Place(image, name, row) for name, image in zip(inputs, images, strict=True)
            )
        return
    for row, record in enumerate(inputs["examples"]):
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            continue
        for name in SIGNATURES[SERVING]["inputs"]:
            yield from (_Place(image, name, row) for image in features[name].bytes_list.value)


def _first_refused(places: Sequence[_Place], embed: Run) -> tuple[_Place, str] | None:
    """The first image that is refused and what the model says of it, by halving."""
    images = np.empty(len(places), object)
    images[:] = [place.image for place in places]
    try:
        embed({"image": images})
    except ServingError as error:
        if error.code is not Code.INVALID_ARGUMENT:
            return None
        if len(places) == 1:
            return places[0], error.message
        half = len(places) // 2
        return _first_refused(places[:half], embed) or _first_refused(places[half:], embed)
    return None


def _fault(image: bytes) -> str:
    """What is wrong with an image of which the decoder says nothing intelligible."""
    try:
        encode_image(image)
    except InvalidImage as error:
        return error.message
    return "the model cannot decode it; save it anew as PNG"
