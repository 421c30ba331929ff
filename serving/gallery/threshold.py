"""Sets the logit from which on two images are taken for the same identity.

A stranger who is compared with M identities has M chances of being mistaken for one. For a chance F
of that in all, each comparison may accept a stranger with probability `f = 1 - (1 - F)^(1/M)`
(comparisons taken as independent, which errs on the safe side: they are alike). So the threshold
rises with the gallery; verification is a single comparison. What was measured of it is in
docs/gallery.md and docs/limits.md.
"""

import json
import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from serving.saved_model.impostors import SUPPORT, ImpostorPairs

Basis = Literal["model", "cohort", "gallery", "scores"]

COHORT: Final = 40
"""Outsiders who decide alone; with half as many, more strangers are accepted than asked for."""
MAX_RATE: Final = 0.5
"""Largest false-accept rate that can be asked for."""
MIN_RATE: Final = 1e-9
"""Least one that is told; the pairs of no gallery say anything of less."""
HALVINGS: Final = 40
_MORE_ALIKE: Final = (
    "identities here look more alike to the model than those it was tested on in training"
)
_CALIBRATE: Final = "`oneshot gallery calibrate --images DIR`"
_NOTHING_KNOWN: Final = (
    "how alike different identities look is not known: the model brings no figures of it, or is on "
    f"a server, and fewer than ten are enrolled. {_CALIBRATE} with images of outsiders, or "
    "`oneshot gallery calibrate --model FOLDER_OF_VERSIONS`, lets more be recognised"
)


@dataclass(frozen=True)
class Impostors:
    """All that is known of impostor pairs.

    Attributes:
      shipped: what came with the model, in order of `images`; may be empty.
      own: of a cohort, or else of the gallery; None where there are too few.
      seen: identities that `own` leaves out, because the model has seen images of them: to it
        they are less alike than strangers are. None where it is not known which it has seen.
    """

    shipped: tuple[ImpostorPairs, ...]
    own: ImpostorPairs | None
    seen: int | None = None

    def to_json(self) -> str:
        shipped = [pairs.to_fields() for pairs in self.shipped]
        own = None if self.own is None else self.own.to_fields()
        return json.dumps({"shipped": shipped, "own": own, "seen": self.seen})

    @classmethod
    def from_json(cls, text: str) -> "Impostors":
        fields = json.loads(text)
        if "shipped" not in fields:
            # Of a gallery that an earlier release calibrated, by other rules.
            return cls((), None)
        own = fields["own"]
        return cls(
            tuple(ImpostorPairs.from_fields(pairs) for pairs in fields["shipped"]),
            None if own is None else ImpostorPairs.from_fields(own),
            fields.get("seen"),
        )


class Threshold(NamedTuple):
    """The logit above which a query is accepted.

    Attributes:
      logit: in the model's units.
      basis: what it rests on: pairs that came with the model, of the cohort, of the gallery, or
        nothing but the meaning of the model's scores.
      advice: why it is not to be relied on, and what to do; None where it is.
    """

    logit: float
    basis: Basis
    advice: str | None


def threshold(
    impostors: Impostors | None, *, false_accept_rate: float, comparisons: int, images: int = 1
) -> Threshold:
    """From which logit on a query is taken for an identity.

    A cohort of `COHORT` outsiders decides, and so does a smaller one, or the gallery, where its
    pairs are enough for the rate. Where not, those that came with the model do; if identities here
    are more alike than those, the stricter of the two. Without any of them the scores themselves
    must do: a score is a probability on pairs half of which show one identity, so at most a share
    `exp(-t)` of impostor pairs exceeds logit t.

    Args:
      impostors: what is known, None if nothing.
      false_accept_rate: F, in (0, 0.5]: chance that a stranger is accepted by any of the
        comparisons.
      comparisons: M, the number of identities that the query is compared with.
      images: of how many the candidate's vector is the mean. Strangers are nearer to a mean.
    """
    known = impostors or Impostors((), None)
    rate = rate_per_comparison(false_accept_rate, comparisons)
    own = known.own
    if not known.shipped:
        if own is None:
            return Threshold(-math.log(rate / images), "scores", _NOTHING_KNOWN)
        # A mean of k images accepts strangers less often than k comparisons would. A gallery's own
        # pairs are of means already.
        rate /= images if own.source == "cohort" else 1
        advice = None if own.supports(rate) else _too_few(own, rate)
        return Threshold(own.quantile(rate), own.source, advice)
    single = known.shipped[0]
    # Of as many images, or more; of the most that there are.
    several = next((pairs for pairs in known.shipped if pairs.images >= images), known.shipped[-1])
    lift = max(several.quantile(rate) - single.quantile(rate), 0.0)
    shipped = single.quantile(rate) + lift
    if own is not None:
        cohort = own.source == "cohort"
        logit = own.quantile(rate) + lift
        if own.supports(rate):
            return Threshold(logit, own.source, None)
        if cohort and own.identities >= COHORT:
            return Threshold(logit, own.source, _too_few(own, rate))
        if own.more_alike_than(single):
            advice = f"{_MORE_ALIKE}; {_too_few(own, rate)}"
            return Threshold(max(logit, shipped), own.source, advice)
    advice = None if single.supports(rate) else _too_few(single, rate)
    return Threshold(shipped, single.source, advice)


def least_rate(impostors: Impostors | None, logit: float, *, images: int) -> float | None:
    """The least false-accept rate at which one comparison accepts this logit; None: no rate does.

    Args:
      impostors: see `threshold`.
      logit: of the query.
      images: see `threshold`.
    """

    def accepts(rate: float) -> bool:
        bound = threshold(impostors, false_accept_rate=rate, comparisons=1, images=images)
        return logit > bound.logit

    if not accepts(MAX_RATE):
        return None
    low, high = math.log(MIN_RATE), math.log(MAX_RATE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if accepts(math.exp(middle)) else (middle, high)
    return math.exp(high)


def rate_per_comparison(false_accept_rate: float, comparisons: int) -> float:
    """`1 - (1 - F)^(1/M)`, exact for tiny F and huge M too."""
    return -math.expm1(math.log1p(-false_accept_rate) / max(comparisons, 1))


def _too_few(pairs: ImpostorPairs, rate: float) -> str:
    """What would be enough: a pair in `1 / rate` is above the threshold, and `SUPPORT` must be."""
    enough = math.ceil(math.sqrt(4 * SUPPORT / rate))
    return (
        f"{pairs.pairs} pairs of {pairs.identities} identities ({pairs.source}) are too few for so "
        "small a false-accept rate among so many names: the threshold is an extrapolation. "
        f"{_CALIBRATE} with images of about {enough} outsiders makes it sure"
    )
