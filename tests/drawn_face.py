"""Draws a face that detectors take for one: no picture of a person."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SHARP = 4
"""How many times as large it is drawn."""
_SKIN = (224, 178, 150)
_DARK = (190, 140, 115)
_BROWN = (60, 40, 30)


def drawn_face(
    *,
    size: tuple[int, int] = (300, 300),
    at: tuple[int, int] = (150, 150),
    radius: float = 60.0,
    turn: float = 0.0,
) -> Image.Image:
    """A face on a plain wall, RGB.

    Args:
      size: width and height of the picture, pixels.
      at: the middle of the face.
      radius: about half of its width.
      turn: degrees, against the clock.
    """
    return with_faces(Image.new("RGB", size, (120, 140, 150)), (at, radius, turn))


def with_faces(wall: Image.Image, *faces: tuple[tuple[int, int], float, float]) -> Image.Image:
    """A picture with faces added, each of `at`, `radius` and `turn`; see `drawn_face`."""
    for at, radius, turn in faces:
        face = _face(radius).rotate(turn, Image.Resampling.BICUBIC)
        wall.paste(face, (at[0] - face.width // 2, at[1] - face.height // 2), face)
    noise = np.random.default_rng(1).normal(0, 2, (wall.height, wall.width, 3))
    return Image.fromarray(np.clip(np.asarray(wall) + noise, 0, 255).astype(np.uint8))


def _face(radius: float) -> Image.Image:
    unit = radius * _SHARP
    side = round(5 * unit)
    image = Image.new("RGBA", (side, side), (*_DARK, 0))
    draw = ImageDraw.Draw(image)

    def point(x: float, y: float) -> tuple[float, float]:
        return side / 2 + x * unit, side / 2 + y * unit

    def oval(x: float, y: float, across: float, down: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse((*point(x - across, y - down), *point(x + across, y + down)), fill=fill)

    oval(0, -0.25, 1, 1.25, _BROWN)  # hair
    oval(0, 1.4, 0.5, 0.8, _DARK)  # neck
    oval(0, 0.05, 0.85, 1.15, _SKIN)
    for side_of in (-1, 1):
        eye = 0.36 * side_of
        oval(eye, -0.1, 0.2, 0.11, (205, 155, 130))
        oval(eye, -0.1, 0.16, 0.08, (245, 245, 240))
        oval(eye, -0.1, 0.075, 0.08, _BROWN)
        oval(eye, -0.1, 0.035, 0.04, (10, 10, 10))
        brow = [point(eye - 0.2, -0.3), point(eye, -0.36), point(eye + 0.2, -0.3)]
        draw.line(brow, fill=_BROWN, width=round(0.07 * unit))
        oval(0.86 * side_of, 0, 0.1, 0.22, _DARK)
        oval(0.09 * side_of, 0.36, 0.04, 0.03, (120, 70, 60))
    nose = [point(-0.06, -0.05), point(-0.13, 0.33), point(0, 0.4), point(0.13, 0.33)]
    draw.line(nose, fill=(195, 145, 120), width=round(0.05 * unit), joint="curve")
    oval(0, 0.66, 0.3, 0.1, (185, 90, 85))
    lips = [point(-0.3, 0.65), point(0, 0.68), point(0.3, 0.65)]
    draw.line(lips, fill=(120, 50, 50), width=round(0.03 * unit))
    small = image.filter(ImageFilter.GaussianBlur(0.05 * unit))
    return small.resize((side // _SHARP,) * 2, Image.Resampling.BOX)
