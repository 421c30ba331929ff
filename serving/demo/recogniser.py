"""What the demo's page asks: a gallery for each version of the model, and what the network sees."""

import json
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_ingest.sources.kinds import Crop
from serving.client import Client, Image
from serving.client.images import Cropped, encode_image
from serving.demo.pictures import Pictures
from serving.gallery import CohortImage, Gallery, open_gallery
from serving.gallery.embedder import ServerEmbedder
from serving.gallery.records import Identification
from serving.saved_model.contract import EXTRA, MODEL_CARD, Preprocessing


class Recogniser:
    """Thread-safe. Every method but `close` raises ServingError where there is no answer.

    Vectors of different versions must not be compared, so each version that is asked for gets a
    gallery of its own, with the names and images of the others.

    Attributes:
      pictures: what it began with.
      known: the images that are enrolled, by name.
    """

    def __init__(
        self,
        client: Client,
        folder: Path,
        pictures: Pictures,
        *,
        models: Path,
        crop: Crop | None = None,
    ) -> None:
        """Takes a client of the served model, which is the caller's to close.

        Args:
          client: pinned to no version.
          folder: for the galleries; only this object uses it.
          pictures: the first image of each class is enrolled; outsiders set the threshold.
          models: folder of the pushed versions, for what the network sees; need not exist.
          crop: what the model is given of each image; see `encode_image`.
        """
        self.pictures = pictures
        self.known = {name: [self._stored(of[0], crop)] for name, of in pictures.enrolled.items()}
        self._client = client
        self._folder = folder
        self._models = models
        self._crop = crop
        self._galleries: dict[str, Gallery] = {}
        self._changing = threading.Lock()

    def versions(self) -> list[str]:
        """Versions that answer, newest first."""
        ready = [str(one.version) for one in self._client.status() if one.state == "AVAILABLE"]
        return ready[::-1]

    def prepare(self) -> None:
        """Fills the gallery of the newest version and answers once, which takes seconds."""
        version = self.versions()[0]
        with self._changing:
            self._gallery(version)
        for images in list(self.known.values())[:1]:
            self.seen(images[0], version=version)

    def encode(self, image: Image) -> bytes:
        """The image as the model gets it; raises InvalidImage."""
        return encode_image(image, crop=self._crop)

    def identify(self, image: bytes, *, version: str, rate: float) -> Identification:
        """Whom an image shows, at so great a false-accept rate, and the most alike names."""
        with self._changing:
            gallery = self._gallery(version)
        return gallery.identify(image, false_accept_rate=rate)

    def enroll(self, name: str, image: bytes, *, version: str) -> None:
        """Enrols an image under a name, new or known."""
        with self._changing:
            self._gallery(version)
            for gallery in self._galleries.values():
                name = gallery.enroll(name, [image]).name
            images = self.known.setdefault(name, [])
            if image not in images:
                images.append(image)

    def forget(self, name: str | None) -> None:
        """Removes a name; nothing happens where there is none."""
        with self._changing:
            if name is None or self.known.pop(name, None) is None:
                return
            for gallery in self._galleries.values():
                gallery.remove(name)

    def compare(self, a: bytes, b: bytes, *, version: str) -> float:
        """The probability, in [0, 1], that both images show the same class."""
        return float(self._client.pinned(version=int(version)).score(a, b).score[0])

    def seen(self, image: bytes, *, version: str) -> NDArray[np.uint8] | None:
        """What the network gets to see, `uint8[H, W]` or `uint8[H, W, 3]`.

        None where this version's model card is not at hand, as with a server elsewhere.
        """
        card = self._models / version / EXTRA / MODEL_CARD
        try:
            how = Preprocessing.of_card(json.loads(card.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError):
            return None
        import tensorflow as tf

        from serving.saved_model.preprocessing import decode_images

        pixels = decode_images(tf.constant([bytes(image)]), how)[0].numpy()
        if how.color_mode == "grayscale":
            pixels = 1.0 - pixels[..., 0]  # ink is 1 to the network, and black to people
        levels: NDArray[np.uint8] = np.rint(255 * pixels).astype(np.uint8)
        return levels

    def close(self) -> None:
        """Closes the galleries."""
        for gallery in self._galleries.values():
            gallery.close()

    def _gallery(self, version: str) -> Gallery:
        if version not in self._galleries:
            embedder = ServerEmbedder(self._client.pinned(version=int(version)))
            gallery = open_gallery(self._folder / f"{version}.db", embedder, crop=self._crop)
            try:
                outsiders = [
                    CohortImage(name, self._stored(image, self._crop))
                    for name, images in self.pictures.outsiders.items()
                    for image in images
                ]
                if outsiders:
                    gallery.calibrate(outsiders)
                gallery.enroll_many(self.known.items())
            except BaseException:
                gallery.close()
                raise
            self._galleries[version] = gallery
        return self._galleries[version]

    @staticmethod
    def _stored(image: bytes, crop: Crop | None) -> bytes:
        """An image that ingestion has cropped already is not cropped again."""
        return image if crop is None else Cropped(image)
