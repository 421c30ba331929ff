"""Names the kinds of images, by which preprocessing, augmentation and network are preset."""

from typing import Final, Literal, get_args

Kind = Literal["drawing", "photo", "signature"]
"""Ink on paper in any place and size; pictures with mid-tones up to the border; wide ink."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
