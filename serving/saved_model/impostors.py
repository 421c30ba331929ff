"""Sums up how alike different identities look to a model, from pairs of their images.

The share of *impostor pairs* (images of different identities) above a logit is known from some
identities only, who have look-alikes among them or have not. So it is taken one standard error
higher, an error over identities and not over pairs: five images each of two look-alikes are 25
pairs and one piece of evidence. Fewer than `SUPPORT` pairs are no evidence at all; above them the
share is taken to fall exponentially, as fast as among the highest pairs.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from serving.saved_model.contract import EXTRA

Source = Literal["model", "cohort", "gallery"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SHIPPED: Final = Path(EXTRA, "impostors.json")
SUPPORT: Final = 10
"""Pairs above a logit that make their share worth believing."""
MIN_IDENTITIES: Final = 10
"""Identities below which nothing is estimated: the pairs of fewer promise too much."""
MEANS: Final = (1, 2, 4, 8)
"""Of so many images; of more of them the mean is hardly nearer to strangers."""
MAX_IMAGES: Final = 2500
"""A pair of each two of them: three million at most."""
TAIL_SHARE: Final = 0.02
POINTS: Final = 64
ALIKE_SHARE: Final = 0.5
ALIKE_ERRORS: Final = 2.0


class Pairs(NamedTuple):
    """Impostor pairs: their logits and the numbers of the two identities, each `[P]`."""

    logits: Floats
    first: Ints
    second: Ints


@dataclass(frozen=True)
class ImpostorPairs:
    """Impostor pairs, summed up.

    Attributes:
      source: whose images: held out when the model was trained, of a cohort of outsiders, or the
        enrolled ones.
      images: of how many images the mean was compared with a single one.
      identities: how many; `people` in JSON.
      pairs: how many.
      mean: of the logits.
      std: of the logits.
      logits: descending; at least `SUPPORT` pairs lie above the first.
      rates: ascending; the share of pairs above each of `logits`, and a standard error.
      tail_mean: how much further up the share falls to 1/e.
      alike_logit: the logit that `ALIKE_SHARE` of the pairs exceed.
      alike_rate: that share less `ALIKE_ERRORS` standard errors.
    """

    source: Source
    images: int
    identities: int
    pairs: int
    mean: float
    std: float
    logits: tuple[float, ...]
    rates: tuple[float, ...]
    tail_mean: float
    alike_logit: float
    alike_rate: float

    @classmethod
    def of(cls, pairs: Pairs, *, source: Source, images: int = 1) -> "ImpostorPairs | None":
        """Sums up; None where the pairs are of fewer than `MIN_IDENTITIES`."""
        identities, ends = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
        if len(identities) < MIN_IDENTITIES:
            return None
        order = np.argsort(-pairs.logits, kind="stable")
        logits = pairs.logits[order].astype(np.float64)
        count = len(logits)
        tail = min(max(SUPPORT, round(TAIL_SHARE * count)), count // 2)
        ranks = np.unique(np.geomspace(min(SUPPORT, tail), count // 2 + 1, POINTS).round())
        alike = max(round(ALIKE_SHARE * count), 1)
        errors = _errors(ends.reshape(2, -1)[:, order], np.append(ranks, alike).astype(np.int64))
        rates = (ranks + 1) / (count + 1) + errors[:-1]
        return cls(
            source=source,
            images=images,
            identities=len(identities),
            pairs=count,
            mean=float(logits.mean()),
            std=float(logits.std(ddof=1)),
            logits=tuple(logits[ranks.astype(np.int64) - 1].tolist()),
            rates=tuple(np.maximum.accumulate(rates).tolist()),
            tail_mean=float((logits[:tail] - logits[tail]).mean()),
            alike_logit=float(logits[alike - 1]),
            alike_rate=float(alike / count - ALIKE_ERRORS * errors[-1]),
        )

    def to_fields(self) -> dict[str, Any]:
        """The fields for JSON."""
        fields = asdict(self)
        return {"people": fields.pop("identities"), **fields}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "ImpostorPairs":
        """From what `to_fields` gave, by way of JSON."""
        lists = {name: tuple(fields[name]) for name in ("logits", "rates")}
        others = {name: value for name, value in fields.items() if name != "people"}
        return cls(**{**others, **lists, "identities": fields["people"]})

    def supports(self, rate: float) -> bool:
        """Whether enough pairs lie above the threshold for this rate of a comparison."""
        return rate >= self.rates[0]

    def quantile(self, rate: float) -> float:
        """The logit above which a share `rate`, in (0, 0.5], of impostor pairs lies at the most."""
        if not self.supports(rate):
            return self.logits[0] + self.tail_mean * math.log(self.rates[0] / rate)
        return self.logits[bisect_right(self.rates, rate) - 1]

    def more_alike_than(self, others: "ImpostorPairs") -> bool:
        """Whether these identities look more alike than `others`, beyond reasonable doubt."""
        above = [
            rate
            for rate, logit in zip(others.rates, others.logits, strict=True)
            if logit <= self.alike_logit
        ]
        # Where all that is known of the others lies above, at least half of them are as alike.
        return bool(above) and self.alike_rate > above[0]


def held_out_pairs(
    vectors: Floats, identities: npt.ArrayLike, groups: npt.ArrayLike, *, bias: float
) -> tuple[ImpostorPairs, ...]:
    """Sums up the impostor pairs of held-out identities; empty where they are too few.

    Only identities of one group are compared: strangers are to be told apart in a gallery whose
    identities are alike, of one alphabet or one family, too. Where none shares a group all are
    compared.

    Args:
      vectors: `[N, D]`, of single images; those of an identity follow one another.
      identities: `[N]`, whole numbers.
      groups: `[N]`, whole numbers.
      bias: the model's `b0`.
    """
    who, group = np.asarray(identities, np.int64), np.asarray(groups, np.int64)
    if len(who) > MAX_IMAGES:
        some = np.linspace(0, len(who) - 1, MAX_IMAGES).astype(np.int64)
        vectors, who, group = vectors[some], who[some], group[some]
    if len(np.unique(group)) == len(np.unique(who)):
        group = np.zeros_like(group)
    found = []
    for images in MEANS:
        pairs = pairs_among(vectors, who, bias=bias, groups=group, images=images)
        found.append(ImpostorPairs.of(pairs, source="model", images=images))
    return () if found[0] is None else tuple(pairs for pairs in found if pairs is not None)


def write_shipped(model: Path, shipped: Sequence[ImpostorPairs]) -> None:
    """Puts them beside the model in this folder; nothing where there are none."""
    if shipped:
        text = json.dumps([pairs.to_fields() for pairs in shipped])
        (model / SHIPPED).write_text(text + "\n", encoding="utf-8")


def read_shipped(model: Path) -> tuple[ImpostorPairs, ...]:
    """What lies beside the model in this folder; empty where it brings none."""
    try:
        text = (model / SHIPPED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(ImpostorPairs.from_fields(pairs) for pairs in json.loads(text))


def lifts(shipped: Sequence[ImpostorPairs], images: Sequence[int]) -> npt.NDArray[np.float64]:
    """By how much logits of impostors rise where one of the two is a mean, `float64[N]`.

    Where both are, they rise by the sum of both.

    Args:
      shipped: what came with the model; without, nothing is known, and all are 0.
      images: of how many images, `[N]`.
    """
    if not shipped:
        return np.zeros(len(images))
    known = [pairs.images for pairs in shipped]
    return np.interp(images, known, [pairs.mean - shipped[0].mean for pairs in shipped])


def pairs_among(
    vectors: Floats,
    identities: npt.ArrayLike,
    *,
    bias: float,
    groups: npt.ArrayLike | None = None,
    images: int = 1,
) -> Pairs:
    """Pairs of single images, and of single images and means, of different identities.

    Args:
      vectors: `[N, D]`.
      identities: `[N]`, whole numbers: what each vector is of.
      bias: the model's `b0`.
      groups: `[N]`; with them only pairs within a group.
      images: of how many images the first of each pair is the mean.
    """
    who = np.asarray(identities, np.int64)
    group = np.zeros(len(who)) if groups is None else np.asarray(groups)
    members = [np.flatnonzero(who == identity) for identity in np.unique(who)]
    rows = [
        mine[at : at + images]
        for mine in members
        for at in range(0, len(mine) - images + 1, images)
    ]
    means = np.reshape([vectors[mine].mean(axis=0) for mine in rows], (-1, vectors.shape[1]))
    one = np.array([mine[0] for mine in rows], np.int64)[:, np.newaxis]
    compared = (who[one] != who) & (group[one] == group)
    if images == 1:  # each pair of images once
        compared &= one < np.arange(len(who))
    mean, other = np.nonzero(compared)
    logits = bias - cdist(means, vectors, "cityblock")[mean, other]
    return Pairs(logits.astype(np.float32), who[one[mean, 0]], who[other])


def _errors(ends: Ints, ranks: Ints) -> npt.NDArray[np.float64]:
    """Standard errors of the shares of the first `ranks` pairs, over identities.

    To first order a mean over pairs varies as twice the mean of each identity's own share does.

    Args:
      ends: `[2, P]`, the identities of the pairs in descending order of their logits, from 0
        without a gap.
      ranks: `[R]`.
    """
    totals = np.bincount(ends.ravel())
    shares = [np.bincount(ends[:, :rank].ravel(), minlength=len(totals)) / totals for rank in ranks]
    return np.asarray(2 * np.std(shares, axis=1, ddof=1) / math.sqrt(len(totals)))
