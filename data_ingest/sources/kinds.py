"""Names the kinds of images, and the bounds of the form in which each is stored."""

from typing import Final, Literal, NamedTuple, get_args

Kind = Literal["drawing", "photo", "signature"]
"""Ink on paper in any place and size; pictures with mid-tones up to the border; wide ink."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
NAMES: Final[dict[Kind, str]] = {
    "drawing": "drawings",
    "photo": "photographs",
    "signature": "signatures",
}
"""For people."""
Crop = Literal["face"]
"""What is cut out of an image before all else, see `faces.face_crop`."""
MAX_SIDE: Final = 4096
"""Largest height or width of what is stored or sent, pixels; an exported model, too, refuses
larger ones undecoded."""


class Form(NamedTuple):
    """Bounds of an image as it is stored."""

    max_side: int
    """Larger images are reduced to this height or width, pixels."""
    min_contrast: int
    """Least difference between the lightest and the darkest pixel, of 255 levels.

    Two levels more than an exported model asks for, whose decoder may round a pixel the other way.
    """
    is_photo: bool = False
    """Whether colours count as contrast, and all that is reduced becomes a JPEG."""
    crop: Crop | None = None
    """What is cut out of the image as it looks, before it is reduced; None: it is left whole."""


ANY_KIND: Final = Form(MAX_SIDE, 6, is_photo=True)
"""What some kind of model takes: the form of every kind is of this form, too."""
_FORMS: Final[dict[Kind, Form]] = {
    "drawing": Form(512, 18),
    "photo": Form(256, 8, is_photo=True),
    "signature": Form(640, 18),
}


def form_of(kind: Kind, max_side: int | None = None, crop: Crop | None = None) -> Form:
    """The form in which images of a kind are stored.

    Args:
      kind: of the images.
      max_side: `DatasetSettings.max_side`; None: that of the kind.
      crop: `DatasetSettings.crop`.
    """
    form = _FORMS[kind]._replace(crop=crop)
    return form if max_side is None else form._replace(max_side=max_side)
