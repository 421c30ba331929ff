"""Which span a retraining is for, and what it has come to so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.history import RunRecord


class LandedSpan(Protocol):
    """As much of a `data_ingest.span.Span` as is looked at."""

    @property
    def number(self) -> int: ...

    @property
    def excluded(self) -> str | None: ...


@dataclass(frozen=True)
class Choice:
    """A span to train for.

    Attributes:
      span: its number; None where there is nothing to train on.
      window: numbers of the spans that are trained on, ascending.
      earlier: the newest whole run for this span; None if there is none, and it is to be trained.
      begun: whether a stage of it has been done.
    """

    span: int | None
    window: tuple[int, ...] = ()
    earlier: RunRecord | None = None
    begun: bool = False


def choose(
    spans: Sequence[LandedSpan], runs: Sequence[RunRecord], *, asked: int | None, length: int
) -> Choice:
    """Chooses the span that was asked for, or the newest if nothing is known of it yet.

    Older spans than the newest are never chosen unasked: its window holds them, and a model of
    older images would take the place of one of newer images.

    Args:
      spans: all that have landed, ascending.
      runs: the history, the newest first.
      asked: number of the span; None: the newest that is not yet trained on.
      length: how many spans are trained on; 0: all.
    """
    usable = [span.number for span in spans if span.excluded is None]
    number = asked if asked is not None else max(usable, default=None)
    if number is None:
        return Choice(None)
    of_span = [run for run in runs if run.span == number]
    whole = next((run for run in of_span if run.is_whole), None)
    if asked is None and (whole is not None or any(run.state == "skipped" for run in of_span)):
        return Choice(None, earlier=whole)
    window = [other for other in usable if other <= number]
    return Choice(
        number,
        tuple(window[-length:] if length else window),
        whole,
        begun=any(run.state == "done" for run in of_span),
    )
