"""Draws the vectors that `bench_gallery` enrols, and those that it asks about.

    python -m benchmarks.gallery_vectors --model output/serving_model/siamese \\
        --images images_background.zip images_evaluation.zip --output vectors.npz

embeds drawings with a pushed model, once for many benchmarks.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt
from PIL import Image

from data_ingest.sources.layout import ImageReader, list_images
from serving.gallery.embedder import FolderEmbedder

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

UNKNOWN: Final = 0.2
"""Share of the queries that are of no enrolled identity."""
MADE_UP_DIMENSIONS: Final = 128
MADE_UP_CHARACTERS: Final = 10_000
MADE_UP_DRAWINGS: Final = 10
MADE_UP_NORM: Final = 3.4
MADE_UP_NOISE: Final = 0.5
"""How much two drawings of a character differ, next to how much characters differ."""
_SEED: Final = 1


@dataclass(frozen=True)
class Drawings:
    """`vectors[N, D]` of drawings, and `characters[N]`, numbered from 0 on, that they show."""

    vectors: Floats
    characters: Ints


@dataclass(frozen=True)
class Population:
    """`enrolled[N, D]`, `newcomers[M, D]`, `queries[Q, D]`.

    `nearest[Q]` is the row of `enrolled` that is nearest to each query, by exact search.
    """

    enrolled: Floats
    newcomers: Floats
    queries: Floats
    nearest: Ints


def positions(image: bytes) -> list[bytes]:
    """A drawing turned and mirrored, the eight ways there are."""
    found = []
    with Image.open(io.BytesIO(image)) as drawing:
        for method in (None, *Image.Transpose):
            buffer = io.BytesIO()
            (drawing if method is None else drawing.transpose(method)).save(buffer, "PNG")
            found.append(buffer.getvalue())
    return found


def embedded_drawings(model: Path, places: Sequence[Path]) -> Drawings:
    """What a model makes of the images in zips or folders of `<group>/<class>/<image>`.

    Each drawing is embedded in eight positions, as eight characters: there are more than a
    thousand kinds of identities among a million.
    """
    files = [file for place in places for file in list_images(place)]
    with ImageReader() as reader:
        images = [positions(reader.read(file)) for file in files]
    embedder = FolderEmbedder(model)
    vectors = embedder.embed([i for eight in images for i in eight], version=embedder.latest())
    embedder.close()
    _, classes = np.unique([file.class_name for file in files], return_inverse=True)
    characters = classes[:, None] * 8 + np.arange(8)
    return Drawings(vectors, characters.ravel().astype(np.int64))


def made_up_drawings() -> Drawings:
    """Like a trained model's: of 128 dimensions some 18 matter, and all have one length."""
    random = np.random.default_rng(_SEED)
    # Variances fall like 1/k: the participation ratio of trained models.
    scale = (1 + np.arange(MADE_UP_DIMENSIONS)) ** -0.5
    rotation = np.linalg.qr(random.normal(size=(MADE_UP_DIMENSIONS, MADE_UP_DIMENSIONS)))[0]
    characters = np.repeat(np.arange(MADE_UP_CHARACTERS), MADE_UP_DRAWINGS)
    latent = random.normal(size=(MADE_UP_CHARACTERS, MADE_UP_DIMENSIONS))[characters]
    latent += MADE_UP_NOISE * random.normal(size=latent.shape)
    vectors = (latent * scale) @ rotation
    vectors *= MADE_UP_NORM / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Drawings(vectors.astype(np.float32), characters)


def draw_population(drawings: Drawings, size: int, *, newcomers: int, queries: int) -> Population:
    """Draws any number of identities from some thousand drawings.

    The vector of an identity is the mean of a character plus what sets one drawing of another
    character apart from its mean: spread like the vectors of real drawings. A query of an identity
    is off by the difference of two drawings of one character. A fifth of the queries are of
    characters that are kept out of the enrolled ones.
    """
    random = np.random.default_rng(_SEED)
    characters = drawings.characters
    counts = np.bincount(characters)
    means = np.zeros((len(counts), drawings.vectors.shape[1]))
    np.add.at(means, characters, drawings.vectors)
    means = (means / counts[:, None]).astype(np.float32)
    # A mean of n is nearer to each of them than the one of the whole class would be.
    often = np.flatnonzero(counts[characters] > 1)
    hands = drawings.vectors[often] - means[characters[often]]
    hands *= np.sqrt(counts / np.maximum(counts - 1, 1))[characters[often], None].astype(np.float32)
    lengths = np.linalg.norm(drawings.vectors, axis=1)
    shuffled = random.permutation(len(counts))
    outsiders, insiders = np.split(shuffled, [max(1, len(counts) // 10)])

    def identities(among: Ints, count: int) -> Floats:
        drawn = hands[random.integers(len(hands), size=count)]
        return np.asarray(means[random.choice(among, count)] + drawn, np.float32)

    def at_length(vectors: Floats) -> Floats:
        wanted = random.choice(lengths, len(vectors)).astype(np.float32)
        vectors *= (wanted / np.linalg.norm(vectors, axis=1))[:, None]
        return vectors

    enrolled = at_length(identities(insiders, size))
    new = at_length(identities(insiders, newcomers))
    unknown = int(queries * UNKNOWN)
    again = enrolled[random.choice(size, queries - unknown, replace=queries > size)]
    one, other = random.integers(len(hands), size=(2, len(again)))
    known = again + (hands[one] - hands[other])
    asked = at_length(np.concatenate([known, identities(outsiders, unknown)]))
    asked = asked[random.permutation(queries)]
    _, nearest = faiss.knn(asked, enrolled, 1, metric=faiss.METRIC_L1)
    return Population(enrolled, new, asked, nearest[:, 0])


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a pushed model")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        help="zips or folders of <group>/<class>/<image>",
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    drawings = embedded_drawings(arguments.model, arguments.images)
    np.savez(arguments.output, **asdict(drawings))


if __name__ == "__main__":
    main()
