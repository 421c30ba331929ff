import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_ingest.sources.faces import (
    SIDE,
    Face,
    MissingFacesExtra,
    NoSingleFace,
    face_crop,
)
from data_ingest.sources.images import ImageRejected, stored_form
from data_ingest.sources.kinds import ANY_KIND, form_of
from tests.drawn_face import drawn_face, with_faces

FACES = ANY_KIND._replace(crop="face")
AHEAD = np.array([(-0.5, 0), (0.5, 0), (0, 0.57), (-0.41, 1.16), (0.42, 1.15)])
"""Eyes, nose and mouth, the eyes 1 apart."""


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def likeness(one: Image.Image, other: Image.Image) -> float:
    return float(np.corrcoef(np.asarray(one).ravel(), np.asarray(other).ravel())[0, 1])


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"at": (120, 165)},
        {"radius": 45.0},
        {"radius": 80.0},
        {"turn": 10.0},
        {"turn": -12.0, "radius": 70.0, "at": (165, 140)},
        {"size": (900, 700), "at": (500, 400), "radius": 150.0},
    ],
)
def test_wherever_the_face_is_its_crop_is_nearly_the_same(elsewhere: dict[str, object]) -> None:
    photo, twin = drawn_face(), drawn_face(**elsewhere)  # type: ignore[arg-type]
    crop, twins = face_crop(photo), face_crop(twin)
    assert crop.size == twins.size == (SIDE, SIDE)
    assert likeness(crop, twins) > 0.97
    assert likeness(photo, twin.resize(photo.size)) < 0.95


def test_no_face_is_told() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    with pytest.raises(NoSingleFace, match=r"^no face found$"):
        face_crop(Image.fromarray(noise))


def test_faces_alike_in_size_are_several_and_a_passer_by_is_not() -> None:
    wall = Image.new("RGB", (600, 300), (120, 140, 150))
    three = with_faces(wall.copy(), ((110, 150), 45, 0), ((300, 150), 50, 0), ((490, 150), 48, 0))
    with pytest.raises(NoSingleFace, match=r"^several faces \(3\)$"):
        face_crop(three)
    passer_by = with_faces(wall.copy(), ((200, 150), 60, 0), ((480, 120), 25, 0))
    assert likeness(face_crop(passer_by), face_crop(drawn_face())) > 0.97


class At:
    """A detector that finds a face at fixed points, once; wherever it is asked again, none."""

    def __init__(self, points: npt.NDArray[np.float64]) -> None:
        self.found = [Face(100.0, points)]

    def __call__(self, image: npt.NDArray[np.uint8], /) -> Sequence[Face]:
        found, self.found = self.found, []
        return found


@pytest.mark.parametrize("scale", [20.0, 40.0, 300.0])
def test_the_eyes_come_to_their_places(scale: float) -> None:
    side = round(4 * scale)
    points = AHEAD * scale + (side / 2, side / 3)
    photo = np.zeros((side, side), np.uint8)
    for x, y in points[:2].round().astype(int):
        photo[y - 1 : y + 2, x - 1 : x + 2] = 255
    if scale > 100:  # seen at 160 pixels first
        points = points * 160 / side
    crop = face_crop(Image.fromarray(photo), At(points))
    assert crop.mode == "L"
    bright = np.asarray(crop, float)
    for half, place in ((slice(0, SIDE // 2), 0.36), (slice(SIDE // 2, SIDE), 0.64)):
        seen = bright[:, half]
        rows, columns = np.indices(seen.shape)
        x = half.start + (columns * seen).sum() / seen.sum()
        y = (rows * seen).sum() / seen.sum()
        assert (x, y) == pytest.approx((place * SIDE, 0.44 * SIDE), abs=1.5)


def test_a_face_is_stored_small_and_a_photo_without_one_is_rejected() -> None:
    stored = stored_form(png(drawn_face(size=(900, 700), at=(500, 400), radius=150.0)), FACES)
    image = Image.open(io.BytesIO(stored))
    assert (image.format, image.size) == ("JPEG", (SIDE, SIDE))
    assert stored_form(stored) == stored
    # Clients send what ingestion stores.
    assert stored == stored_form(
        png(drawn_face(size=(900, 700), at=(500, 400), radius=150.0)),
        form_of("photo", crop="face"),
    )
    with pytest.raises(ImageRejected) as rejected:
        stored_form(png(Image.radial_gradient("L")), FACES)
    assert rejected.value.reason == "no face found"


def test_a_photo_is_turned_by_its_exif_before_its_face_is_looked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    photo = drawn_face()
    photo.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    assert stored_form(stream.getvalue(), FACES) == stored_form(png(photo), FACES)


def test_without_its_extra_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingFacesExtra):
        face_crop(drawn_face())
    with pytest.raises(ImageRejected, match="needs the faces extra"):
        stored_form(png(drawn_face()), FACES)


def test_threads_do_not_disturb_each_other() -> None:
    photos = [png(drawn_face(at=(at, 150), size=(300 + at, 300))) for at in range(100, 180, 10)]
    alone = [stored_form(photo, FACES) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda photo: stored_form(photo, FACES), photos * 2)) == alone * 2
