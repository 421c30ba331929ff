"""From which logit on two images are taken for the same person.

A stranger who is compared with M people has M chances of being mistaken for one. For a chance F of
that in all, each comparison may accept a stranger with probability `f = 1 - (1 - F)^(1/M)`
(comparisons taken as independent, which errs on the safe side: they are alike). So the threshold
rises with the gallery; verification is a single comparison.

How the share f is read off, and which people's pairs are asked, was chosen on the three background
alphabets that the measured model was not trained on (114 characters, half of them or two alphabets
to calibrate, the others as galleries and strangers): of what accepted no more strangers than asked
for, what recognised most. Left out were normal, logistic, Gumbel and Student tails (too many
strangers in galleries of 5 and 10, or nobody recognised), the middle of a normal and an exponential
tail (the same), shares without a standard error, and pairs across alphabets as what a model brings
(twice as many strangers as asked for in galleries of one new alphabet).

Reported on the 382 characters of ten evaluation alphabets, which nothing was chosen on but one
rule: that a cohort of `COHORT` outsiders decides alone was added, from held-out figures, when those
below had been seen. In brackets 95 % intervals (Wilson) over n = 10,000 strangers' images (100
names: 5,000; one alphabet: 8,460); galleries share characters, so for other characters they are
wider:

| names, one image each | by | asked 0.1 % | asked 1 % | asked 5 % |
|---|---|---|---|---|
| 5 | model | 0.00 (0.00-0.04) | 0.11 (0.06-0.20) | 0.58 (0.45-0.75) |
| 10 | model | 0.00 (0.00-0.04) | 0.15 (0.09-0.25) | 0.61 (0.48-0.78) |
| 20 | model | 0.03 (0.01-0.09) | 0.11 (0.06-0.20) | 0.73 (0.58-0.92) |
| 100 | model | 0.00 (0.00-0.08) | 0.10 (0.04-0.23) | 0.34 (0.21-0.54) |
| 10 of one alphabet | model | 0.02 (0.01-0.09) | 0.73 (0.57-0.94) | 3.59 (3.22-4.01) |
| 10 | 100 outsiders | 0.01 (0.00-0.06) | 0.56 (0.43-0.73) | 3.31 (2.98-3.68) |
| 100 | 100 outsiders | 0.00 (0.00-0.08) | 0.08 (0.03-0.21) | 1.80 (1.47-2.21) |
| 5 | scores | 0.00 (0.00-0.04) | 0.00 (0.00-0.04) | 0.12 (0.07-0.21) |
| 10 | gallery | 0.02 (0.01-0.07) | 0.30 (0.21-0.43) | 2.45 (2.16-2.77) |
| 20 | gallery | 0.13 (0.08-0.22) | 1.05 (0.87-1.27) | 4.39 (4.01-4.81) |

What that costs: of ten, 16 % of other images are recognised at 1 % and 43 % at 5 % by the model's
pairs, 38 and 72 % by those of 100 outsiders. The likeliest name is right for 96 % of them: it is
telling strangers from acquaintances that is hard for that model, not the acquaintances apart.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Final, Literal, NamedTuple

from serving.saved_model.impostors import SUPPORT, ImpostorPairs

Basis = Literal["model", "cohort", "gallery", "scores"]

COHORT: Final = 40
"""Outsiders who decide alone: of 20, a few more strangers were accepted than asked for; of 40 fewer
(of background alphabets held out of training)."""
_CALIBRATE: Final = "`oneshot gallery calibrate --images DIR`"
_NOTHING_KNOWN: Final = (
    "how alike different people look is not known: the model brings no figures of it, or is on a "
    f"server, and fewer than ten are enrolled. {_CALIBRATE} with images of outsiders, or "
    "`oneshot gallery calibrate --model FOLDER_OF_VERSIONS`, lets more be recognised"
)


@dataclass(frozen=True)
class Impostors:
    """All that is known of impostor pairs.

    Attributes:
      shipped: what came with the model, in order of `images`; may be empty.
      own: of a cohort, or else of the gallery; None where there are too few.
    """

    shipped: tuple[ImpostorPairs, ...]
    own: ImpostorPairs | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

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
    """From which logit on a query is taken for someone.

    A cohort of `COHORT` people decides, and so does a smaller one, or the gallery, where its pairs
    are enough for the rate. Where not, those that came with the model do; if people here are more
    alike than those, the stricter of the two. Without any of them the scores themselves must do: a
    score is a probability on pairs half of which show one person, so at most a share `exp(-t)` of
    impostor pairs exceeds logit t.

    Args:
      impostors: what is known, None if nothing.
      false_accept_rate: F, in (0, 0.5]: chance that a stranger is accepted by any of the
        comparisons.
      comparisons: M, the number of people that the query is compared with.
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
    single, several = known.shipped[0], _for_images(known.shipped, images)
    lift = max(several.quantile(rate) - single.quantile(rate), 0.0)
    shipped = single.quantile(rate) + lift
    if own is not None:
        cohort = own.source == "cohort"
        logit = own.quantile(rate) + (lift if cohort else 0.0)
        if own.supports(rate):
            return Threshold(logit, own.source, None)
        if cohort and own.people >= COHORT:
            return Threshold(logit, own.source, _too_few(own, rate))
        if own.more_alike_than(single):
            advice = f"{_MORE_ALIKE}; {_too_few(own, rate)}"
            return Threshold(max(logit, shipped), own.source, advice)
    advice = None if single.supports(rate) else _too_few(single, rate)
    return Threshold(shipped, single.source, advice)


def rate_per_comparison(false_accept_rate: float, comparisons: int) -> float:
    """`1 - (1 - F)^(1/M)`, exact for tiny F and huge M too."""
    return -math.expm1(math.log1p(-false_accept_rate) / max(comparisons, 1))


_MORE_ALIKE: Final = (
    "people here look more alike to the model than those it was tested on in training"
)


def _for_images(shipped: tuple[ImpostorPairs, ...], images: int) -> ImpostorPairs:
    """Pairs with means of as many images, or more; of the most that there are."""
    return next((pairs for pairs in shipped if pairs.images >= images), shipped[-1])


def _too_few(pairs: ImpostorPairs, rate: float) -> str:
    """What would be enough: a pair in `1 / rate` is above the threshold, and `SUPPORT` must be."""
    enough = math.ceil(math.sqrt(4 * SUPPORT / rate))
    return (
        f"{pairs.pairs} pairs of {pairs.people} people ({pairs.source}) are too few for so small a "
        f"false-accept rate among so many names: the threshold is an extrapolation. {_CALIBRATE} "
        f"with images of about {enough} outsiders makes it sure"
    )
