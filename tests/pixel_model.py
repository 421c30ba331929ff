"""A model without training: an embedding is an image's pixels, small."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


class PixelModel:
    """Takes the place of `LoadedModel`; images that are nearer have a higher logit.

    Attributes:
      embedded: the images it was given, in that order.
    """

    def __init__(self, path: Path) -> None:
        self.embedded: list[bytes] = []
        made.append(self)

    def __enter__(self) -> "PixelModel":
        return self

    def __exit__(self, *error: object) -> None: ...

    def run(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, object]:
        if signature == "embed":
            self.embedded += inputs["image"]
            return {"embedding": np.stack([_pixels(image) for image in inputs["image"]])}
        one, other = (np.asarray(inputs[f"embedding_{which}"]) for which in "ab")
        return {"logit": 3 - 6 * np.linalg.norm(one - other, axis=1)}


made: list[PixelModel] = []
"""Every one so far."""


def _pixels(encoded: bytes) -> npt.NDArray[np.float64]:
    with Image.open(io.BytesIO(encoded)) as opened:
        small = opened.convert("L").resize((6, 6))
    return 1 - np.asarray(small, np.float64).ravel() / 255
