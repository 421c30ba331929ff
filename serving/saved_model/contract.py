"""Names what an exported model promises: signatures, preprocessing, limits, the files beside it."""

from typing import Final, Literal, NamedTuple

Polarity = Literal["auto", "dark_on_light", "light_on_dark"]
"""Which of an image is ink; `auto` decides by the brightness of its border."""
Framing = Literal["whole", "ink"]
"""What of an image is looked at: all of it, or a window about the middle of its ink."""


class Preprocessing(NamedTuple):
    """How an encoded image becomes the square drawing that the network sees.

    Attributes:
      size: side of the drawing, pixels.
      polarity: 'dark_on_light' (ink is dark), 'light_on_dark', or 'auto': whichever makes the
        image's border paper.
      framing: 'whole', or 'ink': a window about the middle of the ink, so that where a drawing
        lies does not matter.
    """

    size: int
    polarity: Polarity = "auto"
    framing: Framing = "whole"


MIN_CONTRAST: Final = 1 / 16
"""Smallest accepted difference between the lightest and the darkest pixel of an image, black being
0 and white 1. Ingestion asks for a little more, so that what was ingested is never refused."""
PREPROCESSING_VERSION: Final = 2
"""What an export does to images, in its model card; raised when the same image looks different.
Cards of version 1 do not say it."""
PREPROCESSING_NEWS: Final = (
    "decodes indexed PNGs and tRNS as viewers do, turns images by their EXIF, refuses blank pages"
)
"""What exports of this version do and earlier ones did not."""
EXTRA: Final = "assets.extra"
"""The folder of a SavedModel that holds the files below, for TF Serving and for us."""
KERAS_MODEL: Final = "model.keras"
WARMUP: Final = "tf_serving_warmup_requests"
MODEL_CARD: Final = "model_card.json"
MODEL_NAME: Final = "siamese"
SERVING: Final = "serving_default"
EMBED: Final = "embed"
MATCH: Final = "match"
EXAMPLES: Final = "examples"

SIGNATURES: Final = {
    SERVING: {
        "inputs": {"image_a": "string[N]", "image_b": "string[N]"},
        "outputs": {"score": "float32[N]", "logit": "float32[N]"},
    },
    EMBED: {
        "inputs": {"image": "string[N]"},
        "outputs": {"embedding": "float32[N, D]"},
    },
    MATCH: {
        "inputs": {"embedding_a": "float32[N, D]", "embedding_b": "float32[N, D]"},
        "outputs": {"score": "float32[N]", "logit": "float32[N]"},
    },
    EXAMPLES: {
        "inputs": {"examples": "string[N]"},
        "outputs": {"score": "float32[N]", "logit": "float32[N]"},
    },
}
