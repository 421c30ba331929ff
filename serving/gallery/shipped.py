"""What a model brings with it: how alike different people looked that it was not trained on.

A gallery of ten cannot tell how often a stranger in a thousand looks like someone. Who trained the
model had more people, some of them kept out of training. Their impostor pairs, summed up, lie
beside the model in `assets.extra/impostors.json`, and stand in until a gallery knows better.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from serving.gallery.impostors import Floats, ImpostorPairs, pairs_among, pairs_with_means

SHIPPED: Final = Path("assets.extra", "impostors.json")
MEANS: Final = (2, 4, 8)
"""Of so many images; of more of them the mean is hardly nearer to strangers."""
MAX_IMAGES: Final = 2500
"""A pair of each two of them: three million at most."""


def held_out_pairs(
    vectors: Floats, people: npt.ArrayLike, groups: npt.ArrayLike, *, bias: float
) -> tuple[ImpostorPairs, ...]:
    """Sums up the impostor pairs of held-out people; empty where they are too few.

    Only people of one group are compared: strangers are to be told apart in a gallery whose people
    are alike, of one alphabet or one family, too. Where nobody shares a group all are compared.

    Args:
      vectors: `[N, D]`, of single images; those of a person follow one another.
      people: `[N]`, whole numbers.
      groups: `[N]`, whole numbers.
      bias: the model's `b0`.
    """
    who, group = np.asarray(people, np.int64), np.asarray(groups, np.int64)
    if len(who) > MAX_IMAGES:
        some = np.linspace(0, len(who) - 1, MAX_IMAGES).astype(np.int64)
        vectors, who, group = vectors[some], who[some], group[some]
    if len(np.unique(group)) == len(np.unique(who)):
        group = np.zeros_like(group)
    single = ImpostorPairs.of(pairs_among(vectors, who, bias=bias, groups=group), source="model")
    means = [
        ImpostorPairs.of(
            pairs_with_means(vectors, who, bias=bias, images=images, groups=group),
            source="model",
            images=images,
        )
        for images in MEANS
    ]
    return () if single is None else (single, *[pairs for pairs in means if pairs is not None])


def write_shipped(model: Path, shipped: Sequence[ImpostorPairs]) -> None:
    """Puts them beside the model in this folder; nothing where there are none."""
    if shipped:
        text = json.dumps([asdict(pairs) for pairs in shipped])
        (model / SHIPPED).write_text(text + "\n", encoding="utf-8")


def read_shipped(model: Path) -> tuple[ImpostorPairs, ...]:
    """What lies beside the model in this folder; empty where it brings none."""
    try:
        text = (model / SHIPPED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(ImpostorPairs.from_fields(pairs) for pairs in json.loads(text))
