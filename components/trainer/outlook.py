"""Says what so many classes let one expect of a training, and afterwards whether it overfitted."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from data_ingest.sampling.splits import FEW_CLASSES
from data_ingest.sources.kinds import Kind

_LOST: Final = 0.03
"""Of the best accuracy on held-out classes, which a training may lose at its end."""
_KNOWN_BY_HEART: Final = 0.05
"""A loss, in nats: the images to train on are told apart with a probability of 95 %."""


class _Reached(NamedTuple):
    """What so many classes came to, on classes that were not among them."""

    classes: int
    what: str
    figure: str


# Each measured on classes of the same set that were held out: docs/accuracy.md.
_REACHED: Final[Mapping[Kind, tuple[_Reached, ...]]] = {
    "drawing": (
        _Reached(150, "characters of five alphabets", "88 % of 20-way trials"),
        _Reached(960, "characters of thirty alphabets", "92 % of 20-way trials"),
    ),
    "photo": (
        _Reached(13, "kinds of traffic signs", "78 % of 15-way trials"),
        _Reached(28, "people photographed alike", "90 % of 12-way trials"),
        _Reached(367, "people photographed anywhere", "74 % of 20-way trials"),
    ),
    "signature": (_Reached(17, "writers", "95 % of 20-way trials, without forgeries"),),
}


def expected(classes: int, kind: Kind) -> str:
    """A line on what can be expected of so many classes, by what others came to."""
    reached = _REACHED[kind]
    nearest = [one for one in reached if one.classes <= classes][-1:] or [reached[0]]
    others = [one for one in reached if one.classes > classes and one not in nearest][:1]
    told = ", ".join(
        f"{one.classes} {one.what} came to {one.figure}" for one in (*nearest, *others)
    )
    few = ""
    if classes < FEW_CLASSES:
        few = (
            "hardly anything is learnt of them that holds for others; a pretrained network "
            "(train.backbone) needs fewer; "
        )
    elif classes < reached[0].classes:
        few = "fewer than were ever measured here, so expect less; "
    return f"{classes:,} classes to train: {few}{told}; more classes help most"


def validated(way: int, classes: int, accuracy: float) -> str:
    """An accuracy of held-out classes for people, or that these are too few to have one.

    Args:
      way: candidates of a trial.
      classes: how many are held out.
      accuracy: in [0, 1].
    """
    if classes < FEW_CLASSES:
        return f"{way}-way of {classes} classes: too few to tell"
    return f"{way}-way {100 * accuracy:.1f} %"


def remarks(history: Sequence[Mapping[str, float]], *, way: int, classes: int) -> Iterator[str]:
    """What a person should know of a training that is over.

    Args:
      history: `step`, `loss` and `accuracy` of each validation.
      way: candidates of its trials.
      classes: how many are held out.
    """
    if not history:
        return
    if classes < FEW_CLASSES:
        yield (
            f"Validation: {classes} classes are held out, too few to tell how good the model is "
            "and which of its weights are best; more classes, or a greater pairs.holdout_share"
        )
    last, best = history[-1], max(history, key=lambda one: one["accuracy"])
    if last["loss"] > _KNOWN_BY_HEART:
        return
    known = f"Overfitting: the loss is down to {last['loss']:.3f}, so the images to train on are"
    if classes < FEW_CLASSES:
        yield f"{known} known by heart, and the held-out classes cannot tell what that costs"
    elif last["accuracy"] < best["accuracy"] - _LOST:
        yield (
            f"{known} known by heart, while held-out classes fell from "
            f"{100 * best['accuracy']:.1f} % at step {best['step']:.0f} to "
            f"{100 * last['accuracy']:.1f} %: the weights of that step are kept; fewer train.steps "
            "or more classes"
        )
    elif best["accuracy"] < (1 + 1 / way) / 2:
        yield (
            f"{known} known by heart, while held-out classes stay at "
            f"{100 * best['accuracy']:.1f} % of {way}-way trials: more classes, or a pretrained "
            "network (train.backbone)"
        )
