"""The contract of an exported model: its signatures, and the names of the files beside it."""

from typing import Final, Literal

Polarity = Literal["auto", "dark_on_light", "light_on_dark"]
"""Which of an image is ink; `auto` decides by the brightness of its border."""


Framing = Literal["whole", "ink"]
"""What of an image is looked at: all of it, or a window about the middle of its ink."""
EXTRA: Final = "assets.extra"
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
