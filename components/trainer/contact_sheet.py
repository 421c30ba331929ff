"""Draws a contact sheet: images as they are, and beside each what the network sees of it."""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from components.trainer.pair_data import image_decoder
from data_ingest.sources.images import upright
from serving.saved_model.contract import Preprocessing

CONTACT_SHEET: Final = "contact_sheet.png"
"""Beside the facts of a training."""
_ACROSS: Final = 4
"""Images side by side."""
_INCHES: Final = 1.4
_DPI: Final = 110


def contact_sheet(images: Sequence[bytes], preprocessing: Preprocessing) -> bytes:
    """A PNG of encoded images, each with what the network sees of it on its right.

    Args:
      images: one or more in their stored form.
      preprocessing: what becomes of them.

    Raises:
      tf.errors.InvalidArgumentError: an image is refused.
    """
    seen = image_decoder(preprocessing)(images)
    lines = -(-len(images) // _ACROSS)
    size = (2 * _ACROSS * _INCHES, lines * _INCHES + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, 2 * _ACROSS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for at, (image, result) in enumerate(zip(images, seen, strict=True)):
        line, column = divmod(at, _ACROSS)
        with Image.open(io.BytesIO(image)) as opened:
            _show(grid[line, 2 * column], np.asarray(upright(opened)))
        _show(grid[line, 2 * column + 1], result)
    height, width, channels = preprocessing.shape
    colours = "in colour" if channels == 3 else "ink white"
    figure.suptitle(
        f"Images and, on the right of each, what the network sees: {width} x {height}, {colours}",
        fontsize=9,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def _show(axes: Axes, pixels: np.ndarray) -> None:
    shown = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
