"""Finds the pictures that the demo's gallery begins with: of classes no model was trained on."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from data_ingest.sampling.protocols import PROTOCOL_OFFICIAL, PROTOCOL_SKILLED
from data_ingest.sources.glyphs import draw_alphabet, encode_png

ENROLLED: Final = 20
OUTSIDERS: Final = 100
IMAGES: Final = 4
"""Of one class, at most."""
RECORDS: Final = 4000
"""Pairs that are looked at: those of Omniglot have all its evaluation classes."""
_OTHER_CLASSES: Final = (PROTOCOL_OFFICIAL, PROTOCOL_SKILLED)
"""Their classes are numbered runs, which repeat the other classes, and forgeries."""
_SEED: Final = 20_000
"""Another than those of generated training data."""


class Pictures(NamedTuple):
    """Encoded images by class. Of those enrolled the first is the reference."""

    enrolled: dict[str, list[bytes]]
    outsiders: dict[str, list[bytes]]


def recorded_pictures(split: Path) -> Pictures:
    """Those of a split that ingestion wrote.

    Raises:
      OSError, tf.errors.DataLossError, ValueError: it is not there, or damaged.
    """
    from data_ingest.records.features import read_pairs

    pairs = (pair for pair in read_pairs(split) if pair.protocol not in _OTHER_CLASSES)
    return _divided(
        found
        for pair in itertools.islice(pairs, RECORDS)
        for found in ((pair.class_a, pair.image_a), (pair.class_b, pair.image_b))
    )


def generated_pictures() -> Pictures:
    """Generated glyphs, always the same."""
    return _divided(
        (f"Generated/{alphabet}-{character:02}", encode_png(ink))
        for alphabet in (1, 2)
        for character, drawn in enumerate(
            draw_alphabet(alphabet, characters=30, writers=IMAGES, seed=_SEED), start=1
        )
        for ink in drawn
    )


def _divided(found: Iterable[tuple[str, bytes]]) -> Pictures:
    """Every so many classes one is enrolled, so that all groups are among both."""
    classes: dict[str, dict[bytes, None]] = {}
    for name, image in found:
        images = classes.setdefault(name.replace("/", " ").replace("_", " "), {})
        if len(images) < IMAGES:
            images[image] = None
    names = sorted(classes)
    chosen = names[:: max(2, len(names) // ENROLLED)][:ENROLLED]
    others = [name for name in names if name not in chosen]
    others = others[:: -(-len(others) // OUTSIDERS) or 1]
    enrolled, outsiders = (
        {name: list(classes[name]) for name in part} for part in (chosen, others)
    )
    return Pictures(enrolled, outsiders)
