"""Tells the kind of images by how a sample of them looks."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from data_ingest.errors import reading
from data_ingest.sources.images import ImageRejected, reduced
from data_ingest.sources.kinds import NAMES, Kind
from data_ingest.sources.layout import ImageFile, ImageReader

_SAMPLE: Final = 64
_SIDE: Final = 128
"""Pixels, to which images are reduced to be looked at."""
_NEAR: Final = 0.1
"""What is no farther from the paper's brightness than this is paper."""
_NEAR_SHARE: Final = 0.15
"""And no farther than this share of what the farthest pixel is: fog is not paper."""
_OFF_PAPER: Final = 0.2
"""What is farther from the paper in any channel than this is ink."""
_PAPER_SHARE: Final = 0.7
"""Least share of paper: drawings have 0.87 to 0.96, signatures from 0.77, faces up to 0.55."""
_BORDER_SPREAD: Final = 0.08
"""Most that the border's brightness spreads: drawings 0, signatures 0.05, photographs 0.13 up."""
_WIDE: Final = 1.4
"""Least width of signatures, as a multiple of their height: 1.5 to 5.2."""
_COLOUR_SPREAD: Final = 0.15
"""Least spread between images of their ink's colour where that tells them apart: pens have 0.02."""


class KindFound(NamedTuple):
    """A kind, and why it is that."""

    kind: Kind
    reason: str
    """In a few words for people."""

    def __str__(self) -> str:
        return f"{NAMES[self.kind]} ({self.reason}; dataset.kind overrules it)"


class _Looks(NamedTuple):
    paper: float
    """Share of the pixels that are as bright as the middle of the border's."""
    border: float
    """Standard deviation of the border's brightness, in [0, 0.5]."""
    width: float
    """As a multiple of the height."""
    colour: tuple[float, float, float]
    """Mean red, green and blue of what is not paper, less their mean and those of the paper."""

    @property
    def is_ink(self) -> bool:
        return self.paper >= _PAPER_SHARE and self.border <= _BORDER_SPREAD


def kind_of(files: Sequence[ImageFile]) -> KindFound:
    """Looks at some of the images, spread over all classes, and tells the kind of all.

    What has mid-tones up to its border is a photo, and so is what has its own colours on plain
    paper. Other ink on plain paper is a signature where it is wide, else a drawing. Where none can
    be read it is a drawing.

    Raises:
      InputError, ReadError: as `ImageReader.read`.
    """
    looks = []
    count = min(_SAMPLE, len(files))
    with ImageReader() as reader:
        for file in (files[number * len(files) // count] for number in range(count)):
            try:
                with reading(file.path):
                    looks.append(_looks(reader.read(file)))
            except ImageRejected:
                continue
    if not looks:
        return KindFound("drawing", "none of the images looked at can be read")
    inked = sum(one.is_ink for one in looks)
    paper, border, width, colours = (np.array(column) for column in zip(*looks, strict=True))
    middle = _Looks(np.median(paper), np.median(border), np.median(width), (0, 0, 0))
    of = f"of {len(looks)} images looked at"
    if not middle.is_ink:
        return KindFound("photo", f"mid-tones up to the border in {len(looks) - inked} {of}")
    if np.max(np.std(colours, axis=0)) >= _COLOUR_SPREAD:
        return KindFound("photo", f"the colours on plain paper differ between {len(looks)} {of}")
    told = f"ink on plain paper in {inked} {of}"
    if middle.width >= _WIDE:
        return KindFound("signature", f"{told}, {middle.width:.1f} times as wide as high")
    return KindFound("drawing", told)


def _looks(data: bytes) -> _Looks:
    image = reduced(data, _SIDE)
    colours = np.asarray(image.convert("RGB"), np.float32) / 255
    edge = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    gray = colours.mean(axis=2)
    border = edge.mean(axis=1)
    off = np.abs(gray - np.median(border))
    paper = np.median(edge, axis=0)
    ink = colours[np.abs(colours - paper).max(axis=2) > _OFF_PAPER]
    red, green, blue = (ink.mean(axis=0) if len(ink) else paper) - paper
    mean = (red + green + blue) / 3
    return _Looks(
        float(np.mean(off <= min(_NEAR, _NEAR_SHARE * off.max()))),
        float(border.std()),
        image.width / image.height,
        (float(red - mean), float(green - mean), float(blue - mean)),
    )
