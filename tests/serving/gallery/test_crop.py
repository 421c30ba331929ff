"""A gallery of faces, on every database."""

import io

import pytest
from PIL import Image

from data_ingest.sources.images import stored_form
from data_ingest.sources.kinds import ANY_KIND
from serving.client import Client
from serving.client.images import Cropped
from serving.client.types import InvalidImage
from serving.errors import Code, ServingError
from serving.gallery.embedder import ServerEmbedder
from serving.gallery.gallery import Gallery
from serving.gallery.records import Unembedded
from serving.gallery.store import Store
from tests.drawn_face import drawn_face
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import FakeModels, photo

FACES = ANY_KIND._replace(crop="face")


def face(radius: float = 60.0) -> bytes:
    stream = io.BytesIO()
    drawn_face(radius=radius).save(stream, "PNG")
    return stream.getvalue()


def kept(store: Store) -> list[bytes]:
    model = store.begin(FakeModels(latest="2").facts("2"))
    found: list[Unembedded] = store.missing(model, after=0, limit=9)
    return [image for identity in found for image in identity.images]


def test_a_gallery_keeps_crops_and_remembers_that_it_does(open_one: OpenStore) -> None:
    gallery = Gallery(open_one(), FakeModels(), crop="face")
    gallery.enroll("Ada", [face()])
    # A file of its own, opened by who says nothing of a crop.
    store = open_one()
    again = Gallery(store, FakeModels())
    assert again.crop == "face"
    again.enroll("Grace", [face(80.0)])
    assert kept(store) == [stored_form(face(), FACES), stored_form(face(80.0), FACES)]
    assert again.identify(face()).candidates[0].name == "Ada"
    assert again.verify("Ada", face()).same
    with pytest.raises(InvalidImage, match="no face found; give a photo"):
        again.identify(photo("a wall"))
    with pytest.raises(InvalidImage, match="'Alan', image 1: no face found"):
        again.enroll("Alan", [face(50.0), photo("a wall")])


def test_a_new_gallery_crops_as_its_model_was_trained(open_one: OpenStore) -> None:
    models = FakeModels()
    models.trained_with_crop = "face"
    gallery = Gallery(open_one(), models)
    assert gallery.crop == "face"
    gallery.enroll("Ada", [face()])
    assert Gallery(open_one(), FakeModels()).crop == "face"


def test_whole_images_and_crops_are_not_mixed(open_one: OpenStore) -> None:
    Gallery(open_one(), FakeModels()).enroll("Ada", [face()])
    models = FakeModels()
    models.trained_with_crop = "face"
    assert Gallery(open_one(), models).crop is None
    with pytest.raises(ServingError, match="holds whole images") as refused:
        Gallery(open_one(), FakeModels(), crop="face")
    assert refused.value.code is Code.FAILED_PRECONDITION


def test_a_crop_is_not_cropped_again(open_one: OpenStore) -> None:
    store = open_one()
    gallery = Gallery(store, FakeModels(), crop="face")
    crop = Cropped(stored_form(face(), FACES))
    gallery.enroll("Ada", [crop])
    assert kept(store) == [bytes(crop)]
    assert Image.open(io.BytesIO(crop)).size == (192, 192)


def test_the_client_of_a_gallery_does_not_crop() -> None:
    with (
        Client("http://localhost:1", crop="face") as client,
        pytest.raises(ValueError, match="the gallery crops images itself"),
    ):
        ServerEmbedder(client)
