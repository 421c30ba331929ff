"""Finds the classes that a model takes for each other, and draws them."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from components.evaluator.baselines import Picture, picture
from components.evaluator.recognisers import Wrong
from components.evaluator.statistics import wilson_interval
from components.evaluator.trials import TrialImages
from data_ingest.durable import write_atomically
from data_ingest.sampling.trials import Trial

_ACROSS: Final = 2
"""Confusions side by side in the picture."""
_WIDTH_INCHES: Final = 3.6
_LINE_INCHES: Final = 1.75
_ROLES: Final = ("query", "right", "chosen")


@dataclass(frozen=True)
class Confusion:
    """Two classes that were taken for each other, whichever was asked for."""

    classes: tuple[str, str]
    mistakes: int
    trials: int
    """In which one of the two was asked for and the other was a candidate."""
    rows: tuple[int, int, int]
    """Of the mistake with the greatest margin: the query, and one image of either class."""

    def document(self, images: TrialImages) -> dict[str, Any]:
        """As JSON values, with the images' file names as `query`, `right` and `chosen`."""
        names = (images.files[row].member for row in self.rows)
        values = {name: value for name, value in vars(self).items() if name != "rows"}
        return values | dict(zip(_ROLES, names, strict=True))


def most_confused(
    class_of: Callable[[int], str], trials: Iterable[Trial], wrong: Sequence[Wrong], *, most: int
) -> list[Confusion]:
    """The pairs of classes with the greatest share of mistakes, at most `most` of them.

    Shares of few trials are uncertain, so what orders them is the lower end of their 95 % interval.

    Args:
      class_of: gives the class of an image by the number that trials have for it.
      trials: that were answered.
      wrong: those that were not won.
      most: how many at the most.
    """
    worst: dict[tuple[str, str], Wrong] = {}
    mistakes: Counter[tuple[str, str]] = Counter()
    for one in wrong:
        pair = _pair(class_of, one.trial, one.chosen)
        mistakes[pair] += 1
        if pair not in worst or one.margin > worst[pair].margin:
            worst[pair] = one
    asked = Counter(
        pair
        for trial in trials
        for position in range(trial.way)
        if (pair := _pair(class_of, trial, position)) in mistakes
    )
    share = {pair: wilson_interval(count, asked[pair])[0] for pair, count in mistakes.items()}
    found = []
    for pair in sorted(mistakes, key=lambda pair: (-share[pair], pair))[:most]:
        trial = worst[pair].trial
        right, chosen = (trial.support[at][0] for at in (trial.answer, worst[pair].chosen))
        rows = (trial.query, right, chosen)
        found.append(Confusion(pair, mistakes[pair], asked[pair], rows))
    return found


def draw_confusions(confusions: Sequence[Confusion], images: TrialImages, path: Path) -> None:
    """Writes a PNG: of each pair the query, and a support image of its class and of the other.

    Raises:
      OSError: it cannot be written.
    """
    lines = max(1, -(-len(confusions) // _ACROSS))
    figure = Figure(figsize=(_ACROSS * _WIDTH_INCHES, lines * _LINE_INCHES), layout="constrained")
    for axes in (grid := figure.subplots(lines, _ACROSS, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, confusion in zip(grid.flat, confusions, strict=False):
        pictures = [_in_colour(picture(images.encoded(row))) for row in confusion.rows]
        side = len(pictures[0])
        axes.set_axis_on()
        axes.imshow(np.hstack(pictures))
        axes.vlines([side - 0.5, 2 * side - 0.5], -0.5, side - 0.5, color="black", lw=0.8)
        axes.set_yticks([])
        axes.set_xticks([side * (at + 0.5) for at in range(3)], _ROLES, fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(_title(confusion), fontsize=8, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _in_colour(shown: Picture) -> Picture:
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def _title(confusion: Confusion) -> str:
    first, second = confusion.classes
    group = first.rpartition("/")[0]
    second = second.removeprefix(f"{group}/") if group else second
    return f"{first}, {second}\n{confusion.mistakes} of {confusion.trials} trials"


def _pair(class_of: Callable[[int], str], trial: Trial, position: int) -> tuple[str, str]:
    asked, other = class_of(trial.query), class_of(trial.support[position][0])
    return min(asked, other), max(asked, other)
