"""A model without TensorFlow or a server: it knows drawings again by their pixels."""

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image
from scipy.special import expit

from data_ingest.sources.glyphs import draw_alphabet, encode_png
from serving.client import Scores, Target, VersionStatus
from serving.errors import Code

OLD: Final = "1700000000"
NEW: Final = "1700000005"
SIDE: Final = 16
BIAS: Final = 8.0


class PixelClient:
    """What the demo uses of a client. The older version looks at negatives."""

    crop = None

    def __init__(self, version: int | None = None) -> None:
        self.target = Target("siamese", version=version)

    def pinned(self, *, version: int) -> "PixelClient":
        return PixelClient(version)

    def status(self) -> list[VersionStatus]:
        return [VersionStatus(int(one), "AVAILABLE", Code.OK, "") for one in (OLD, NEW)]

    def embed(self, images: Sequence[bytes]) -> Any:
        drawn = [Image.open(io.BytesIO(image)).convert("L") for image in images]
        small = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BOX)) for one in drawn]
        vectors = np.stack(small).reshape(len(small), -1).astype(np.float32) / 255
        return 1 - vectors if self.target.version == int(OLD) else vectors

    def match(self, a: Any, b: Any) -> Scores:
        logits = BIAS - np.abs(a - b).sum(axis=-1)
        return Scores(expit(logits), logits)

    def score(self, a: bytes, b: bytes) -> Scores:
        return self.match(self.embed([a]), self.embed([b]))

    def close(self) -> None:
        """There is nothing to close."""


def glyph(character: int) -> bytes:
    """A drawing of none of those that the demo begins with."""
    drawn = list(draw_alphabet(9, characters=character + 1, writers=1, seed=7))
    return encode_png(drawn[character][0])
