"""Names what an exported model promises: signatures, preprocessing, limits, the files beside it."""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

ColorMode = Literal["grayscale", "rgb"]
"""What is looked at: `grayscale`, the ink of a drawing, or `rgb`, an image as it is."""
Polarity = Literal["auto", "dark_on_light", "light_on_dark"]
"""Which of a grayscale image is ink; `auto` decides by the brightness of its border."""
Framing = Literal["whole", "ink", "box"]
"""What of a grayscale image is looked at: all of it, a window about the middle of its ink, or the
box around the ink, however large it is."""
Contrast = Literal["as_is", "paper"]
"""What ink 1 is: black, or the darkest there is on paper of any brightness."""


class Preprocessing(NamedTuple):
    """How an encoded image becomes what the network sees.

    Attributes:
      size: height of that, pixels.
      polarity: 'dark_on_light' (ink is dark), 'light_on_dark', or 'auto': whichever makes the
        image's border paper.
      framing: 'whole'; 'ink': a window about the middle of the ink, so that where a drawing
        lies does not matter; 'box': the box around the ink, so that its size does not either.
      aspect: its width, as a multiple of the height.
      color_mode: 'grayscale', or 'rgb', to which polarity, framing and contrast do not apply.
      contrast: 'as_is', or 'paper': ink is measured from the paper to the darkest strokes.
    """

    size: int
    polarity: Polarity = "auto"
    framing: Framing = "whole"
    aspect: float = 1.0
    color_mode: ColorMode = "grayscale"
    contrast: Contrast = "as_is"

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> "Preprocessing":
        """That of an exported model, by its model card. Early cards tell three of the fields.

        Raises:
          KeyError: the card is none of ours.
        """
        later = {name: card[name] for name in cls._fields if name != "size" and name in card}
        return cls(int(card["image_size"]), **later)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        channels = 3 if self.color_mode == "rgb" else 1
        return self.size, round(self.aspect * self.size), channels

    def as_card(self) -> dict[str, Any]:
        """The entries of a model card."""
        values = self._asdict()
        return {"image_size": values.pop("size"), **values}


MIN_CONTRAST: Final = 1 / 16
"""Smallest accepted difference between the lightest and the darkest pixel of an image, black being
0 and white 1. Ingestion asks for a little more, so that what was ingested is never refused."""
MIN_RGB_CONTRAST: Final = 6 / 255
"""The same of an image that is looked at in colour, in any one of red, green and blue."""
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
