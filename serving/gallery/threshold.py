"""From which logit on two images are taken for the same person.

A stranger who is compared with M people has M chances of being mistaken for one. For a chance F of
that in all, each comparison may accept a stranger with probability `f = 1 - (1 - F)^(1/M)`
(comparisons taken as independent, which errs on the safe side: they are alike). So the threshold
rises with the gallery; verification is a single comparison.

The logit that a share f of *impostor pairs* (images of different people) exceeds is read off their
sorted logits while at least `SUPPORT` pairs lie above it. Beyond, it is the middle between two
tails: a normal distribution with the mean and deviation of all pairs, which is too short (there are
look-alikes), and an exponential one fitted to the highest pairs, which is too long (no distance is
negative). Strangers accepted where 1 % / 5 % were asked for, with 382 Omniglot characters that the
model was not trained on:

| names | calibrated on the gallery itself | on a cohort of 100 outsiders |
|---|---|---|
| 5 | 3.4 / 6.1 % | 0.7 / 3.9 % |
| 10 | 1.9 / 6.3 % | 1.1 / 4.8 % |
| 20 | 1.1 / 7.0 % | 1.0 / 4.0 % |
| 100 | 0.7 / 4.7 % | 0.8 / 4.7 % |
| 180 | 0.7 / 3.4 % | 0.8 / 4.2 % |

These figures are in-sample: about nine estimators of the tail were compared on these same
characters, of evaluation alphabets, and the one nearest to what was asked was taken. They are no
evidence for other people; the choice has yet to be checked on held-out background alphabets.
"""

import json
import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Source = Literal["cohort", "gallery"]

SUPPORT: Final = 10
"""Pairs above an empirical quantile that make it worth believing."""
MIN_PAIRS: Final = 10
"""Pairs, from five people, below which nothing is estimated."""
SAMPLE: Final = 200
"""Enrolled people whose pairs are looked at: 19,900 of them are enough."""
TAIL_SHARE: Final = 0.02
POINTS: Final = 300
UNCALIBRATED: Final = 0.0
"""Threshold where no impostors are known: the model holds "same" for as likely as "different"."""


@dataclass(frozen=True)
class Impostors:
    """Logits of pairs of images of different people, summed up.

    Attributes:
      source: whose images: of a cohort of outsiders, or the enrolled ones.
      people: how many of them.
      pairs: how many pairs.
      mean: of the logits.
      std: of the logits.
      tail_pairs: how many of the highest logits the exponential tail is fitted to.
      tail_start: the highest logit below those.
      tail_mean: their mean excess over it.
      ranks: `r`, ascending from 1, at most half of `pairs`.
      logits: the `r`-th highest logit for each of `ranks`.
    """

    source: Source
    people: int
    pairs: int
    mean: float
    std: float
    tail_pairs: int
    tail_start: float
    tail_mean: float
    ranks: tuple[int, ...]
    logits: tuple[float, ...]

    @property
    def saturated(self) -> bool:
        """Whether more people would not be looked at anyway."""
        return self.people >= SAMPLE

    @classmethod
    def of(cls, logits: npt.ArrayLike, *, source: Source, people: int) -> "Impostors | None":
        """Sums up `[P]` logits; None where they are fewer than `MIN_PAIRS`."""
        descending = np.sort(np.asarray(logits, np.float64))[::-1]
        pairs = len(descending)
        if pairs < MIN_PAIRS:
            return None
        tail = min(max(SUPPORT, round(TAIL_SHARE * pairs)), pairs // 2)
        ranks = np.unique(np.geomspace(1, pairs // 2, POINTS).round().astype(int))
        return cls(
            source=source,
            people=people,
            pairs=pairs,
            mean=float(descending.mean()),
            std=float(descending.std(ddof=1)),
            tail_pairs=tail,
            tail_start=float(descending[tail]),
            tail_mean=float((descending[:tail] - descending[tail]).mean()),
            ranks=tuple(ranks.tolist()),
            logits=tuple(descending[ranks - 1].tolist()),
        )

    def quantile(self, rate: float) -> float:
        """The logit above which a share `rate`, in (0, 0.5], of impostor pairs lies at the most."""
        above = math.floor(rate * self.pairs)
        if above >= SUPPORT:
            return self._ranked(above)
        normal = self.mean - self.std * NormalDist().inv_cdf(rate)
        expected = rate * self.pairs
        exponential = self.tail_start + self.tail_mean * math.log(self.tail_pairs / expected)
        return max((normal + exponential) / 2, self._ranked(SUPPORT))

    def _ranked(self, above: int) -> float:
        """The lowest known logit that at most `above` pairs exceed."""
        place = int(np.searchsorted(self.ranks, above + 1, side="right")) - 1
        return self.logits[place]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Impostors":
        fields = json.loads(text)
        fields.update(ranks=tuple(fields["ranks"]), logits=tuple(fields["logits"]))
        return cls(**fields)


def rate_per_comparison(false_accept_rate: float, comparisons: int) -> float:
    """`1 - (1 - F)^(1/M)`, exact for tiny F and huge M too."""
    return -math.expm1(math.log1p(-false_accept_rate) / max(comparisons, 1))


def threshold(impostors: Impostors | None, *, false_accept_rate: float, comparisons: int) -> float:
    """The logit above which a query is accepted.

    Args:
      impostors: what is known of impostor pairs, None if nothing.
      false_accept_rate: F, in (0, 0.5]: chance that a stranger is accepted by any of the
        comparisons.
      comparisons: M, the number of people that the query is compared with.
    """
    if impostors is None:
        return UNCALIBRATED
    return impostors.quantile(rate_per_comparison(false_accept_rate, comparisons))


def impostor_logits(
    vectors: npt.NDArray[np.float32], people: npt.ArrayLike, *, bias: float
) -> npt.NDArray[np.float32]:
    """`[P]` logits of all pairs of different people.

    Args:
      vectors: `[N, D]`.
      people: `[N]`, who each vector is of.
      bias: the model's `b0`.
    """
    who = np.asarray(people)
    parts = [
        bias - np.abs(vectors[at + 1 :] - vectors[at]).sum(axis=1)[who[at + 1 :] != who[at]]
        for at in range(len(vectors) - 1)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])
