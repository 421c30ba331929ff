"""Verifies signatures by one and more genuine references, random and skilled forgeries apart."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from components.evaluator.recognisers import ModelRecogniser
from components.evaluator.statistics import (
    BOOTSTRAP_REPLICATES,
    BOOTSTRAP_SEED,
    Interval,
    area_under_roc,
    equal_error_rate,
    error_rates,
    normal_interval,
)
from data_ingest.durable import write_atomically
from data_ingest.sampling.draws import Draws, Flags, Ints
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import PROTOCOL_RANDOM, PROTOCOL_SKILLED

REFERENCES: Final = (1, 5, 10)
DRAWS: Final = 10
"""Of the references of each writer."""
FOLDS: Final = 10
"""Of the writers, for the choice of thresholds."""
FORGERIES: Final = (PROTOCOL_RANDOM, PROTOCOL_SKILLED)
FALSE_ACCEPT_RATES: Final = np.geomspace(0.001, 1, 61)
"""At which the ROC curve is told."""

_RANDOM: Final = 100
"""Random forgeries of a writer and draw, at most."""
_KINDS: Final = ("genuine", *FORGERIES)

Floats = npt.NDArray[np.float64]
Roc = list[tuple[float, float]]
"""False accepts and the most true accepts, as shares, at `FALSE_ACCEPT_RATES`."""


class Comparisons(NamedTuple):
    """Questioned signatures, each with references of the writer whose it claims to be."""

    query: Ints
    """`[N]`, rows of the index."""
    references: Ints
    """`[N, R]`, rows."""
    writer: Ints
    """`[N]`, from 0."""
    kind: Ints
    """`[N]`: 0 genuine, 1 a random forgery, 2 a skilled one."""


@dataclass(frozen=True)
class Verification:
    """How signatures were verified by so many references, with one kind of forgery.

    Intervals (95 %) are by bootstrap over writers: comparisons of one writer are not independent.
    """

    references: int
    forgeries: str
    """`random` or `skilled`."""
    writers: int
    """With a genuine signature besides the references."""
    genuine_n: int
    """Comparisons, over all draws of references."""
    forged_n: int
    eer: float
    eer_ci95: Interval
    auc: float
    auc_ci95: Interval
    accuracy: float
    """Mean of the shares of genuine signatures accepted and of forgeries refused, at the threshold
    that was chosen on other writers."""
    accuracy_ci95: Interval
    tar_at_1_percent_far: float
    roc: Roc

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def verify_signatures(
    recogniser: ModelRecogniser, index: ImageIndex, *, seed: int
) -> list[Verification]:
    """Figures for 1, 5 and 10 references, with random and with skilled forgeries.

    For every writer `DRAWS` times references are drawn from the genuine signatures; those of fewer
    are among those of more. What is questioned: all other genuine signatures; as random forgeries
    a genuine signature of each other writer (of 100, where there are more); all skilled ones of
    the writer. The score is `match` with the mean of the references' embeddings, as in the gallery.

    Args:
      recogniser: has embedded all images of the index.
      index: of the images.
      seed: of the draws.

    Returns:
      Empty where there are no forgeries; a number of references that fewer than two writers have
      is left out.
    """
    if not index.has_forgeries:
        return []
    figures: list[Verification] = []
    for references in REFERENCES:
        drawn = draw_comparisons(index, references=references, seed=seed)
        if drawn is not None:
            logits = recogniser.verify(drawn.query, drawn.references)
            figures += _figures(drawn, logits.astype(np.float64))
    return figures


def draw_comparisons(index: ImageIndex, *, references: int, seed: int) -> Comparisons | None:
    """What is compared, as `verify_signatures` says; None where fewer than two writers have enough.

    Draws of a writer depend on the seed, its name and the index alone, not on `references`.
    """
    writers = [int(one) for one in index.genuine if index.class_sizes[one] > references]
    if len(np.unique(index.class_group[writers])) < 2:
        return None
    parts = [
        part
        for number, writer in enumerate(writers)
        for part in _of_writer(index, writer, number, references=references, seed=seed)
    ]
    return Comparisons(*map(np.concatenate, zip(*parts, strict=True)))


def _of_writer(
    index: ImageIndex, writer: int, number: int, *, references: int, seed: int
) -> Iterator[Comparisons]:
    group = index.class_group[writer]
    signatures = np.array(index.class_rows(writer))
    forged = index.class_forged[index.row_class] & (index.row_group == group)
    skilled = np.flatnonzero(forged)
    others = index.genuine[index.class_group[index.genuine] != group]
    for draw in range(DRAWS):
        own = Draws(seed, f"forgeries/references/{index.classes[writer]}", draw)
        order = signatures[own.order(len(signatures))]
        strange = Draws(seed, f"forgeries/random/{index.classes[writer]}", draw)
        random = np.array(
            [
                index.class_start[other] + strange.below(int(index.class_sizes[other]))
                for other in others[strange.order(len(others))[:_RANDOM]]
            ],
            np.int64,
        )
        queries = (order[references:], random, skilled)
        sizes = [len(rows) for rows in queries]
        yield Comparisons(
            query=np.concatenate(queries),
            references=np.tile(order[:references], (sum(sizes), 1)),
            writer=np.full(sum(sizes), number),
            kind=np.repeat(np.arange(len(_KINDS)), sizes),
        )


class _Counts:
    """Comparisons per distinct logit, by kind, with writers weighted."""

    def __init__(self, drawn: Comparisons, logits: Floats) -> None:
        self.values, self._cell = np.unique(logits, return_inverse=True)
        self._writer = drawn.writer
        self._of_kind = [np.flatnonzero(drawn.kind == kind) for kind in range(len(_KINDS))]

    def of(self, kind: int, weights: Floats) -> Floats:
        """`[V]`, with a weight for each writer."""
        at = self._of_kind[kind]
        return np.bincount(
            self._cell[at], weights[self._writer[at]], minlength=len(self.values)
        ).astype(np.float64)

    def threshold(self, weights: Floats) -> float:
        """Where as many genuine signatures are refused as forgeries, half of either kind, accepted.

        Half way between the two logits that it lies between; of the kinds there are.
        """
        forged = [self.of(kind, weights) for kind in range(1, len(_KINDS))]
        mixed = np.sum([counts / counts.sum() for counts in forged if counts.any()], axis=0)
        genuine = self.of(0, weights)
        # What lies between them by writers of no weight is not to be looked at.
        there = genuine + mixed > 0
        values = self.values[there]
        rejected, accepted = error_rates(genuine[there], mixed[there])
        at = int(np.argmin(np.abs(rejected - accepted)))
        edges = [values[0] - 1, *values, values[-1] + 1]
        return float(edges[at] + edges[at + 1]) / 2


def _figures(drawn: Comparisons, logits: Floats) -> Iterator[Verification]:
    counts = _Counts(drawn, logits)
    writers = int(drawn.writer.max()) + 1
    accepted = _accepted(drawn, logits, counts, writers)
    right = np.where(drawn.kind == 0, accepted, ~accepted)
    replicates = np.random.default_rng(BOOTSTRAP_SEED).multinomial(
        writers, np.full(writers, 1 / writers), BOOTSTRAP_REPLICATES
    )
    for kind, forgeries in enumerate(FORGERIES, start=1):

        def measured(weights: Floats, kind: int = kind) -> tuple[float, float, float]:
            same, different = counts.of(0, weights), counts.of(kind, weights)
            each = weights[drawn.writer]
            shares = [
                np.average(right[drawn.kind == one], weights=each[drawn.kind == one])
                for one in (0, kind)
            ]
            accuracy = float(np.mean(shares))
            return equal_error_rate(same, different), area_under_roc(same, different), accuracy

        everybody = np.ones(writers)
        with_forgeries = np.bincount(drawn.writer[drawn.kind == kind], minlength=writers) > 0
        if not with_forgeries.any():
            continue
        values = measured(everybody)
        spread = np.std(
            [
                measured(weights.astype(np.float64))
                for weights in replicates
                if weights[with_forgeries].any()
            ],
            axis=0,
            ddof=1,
        )
        eer, auc, accuracy = (
            (value, normal_interval(value, float(deviation)))
            for value, deviation in zip(values, spread, strict=True)
        )
        curve = roc(counts.of(0, everybody), counts.of(kind, everybody))
        at = int(np.argmin(np.abs(FALSE_ACCEPT_RATES - 0.01)))
        yield Verification(
            references=drawn.references.shape[1],
            forgeries=forgeries,
            writers=writers,
            genuine_n=int(np.count_nonzero(drawn.kind == 0)),
            forged_n=int(np.count_nonzero(drawn.kind == kind)),
            eer=eer[0],
            eer_ci95=eer[1],
            auc=auc[0],
            auc_ci95=auc[1],
            accuracy=accuracy[0],
            accuracy_ci95=accuracy[1],
            tar_at_1_percent_far=curve[at][1],
            roc=curve,
        )


def _accepted(drawn: Comparisons, logits: Floats, counts: _Counts, writers: int) -> Flags:
    """`[N]`: which are taken for genuine, each at the threshold of the writers of other folds."""
    fold = np.arange(writers) % FOLDS
    thresholds = np.empty(writers)
    for one in np.unique(fold):
        thresholds[fold == one] = counts.threshold((fold != one).astype(np.float64))
    accepted: Flags = logits >= thresholds[drawn.writer]
    return accepted


def roc(same: Floats, different: Floats) -> Roc:
    """The ROC curve of pairs as `equal_error_rate` takes them."""
    rejected, accepted = error_rates(same, different)
    # False accepts fall along the curve: the first point that is low enough has the most true ones.
    first = np.searchsorted(-accepted, -FALSE_ACCEPT_RATES - 1e-12)
    return list(zip(FALSE_ACCEPT_RATES.tolist(), (1 - rejected[first]).tolist(), strict=True))


def draw_roc(figures: Sequence[Verification], path: Path) -> None:
    """Writes a PNG with the ROC curves of each number of references, a panel a kind of forgery.

    Raises:
      OSError: it cannot be written.
    """
    curves: dict[str, dict[str, Roc]] = {}
    for one in figures:
        images = "reference" if one.references == 1 else "references"
        label = f"{one.references} {images}, EER {100 * one.eer:.1f} %"
        curves.setdefault(one.forgeries, {})[label] = one.roc
    picture = Figure(figsize=(9, 4.2), layout="constrained")
    panels = picture.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (forgeries, named) in zip(panels, curves.items(), strict=True):
        for label, curve in named.items():
            axes.plot(*zip(*curve, strict=True), label=label)
        axes.set_xscale("log")
        axes.set_title(f"{forgeries} forgeries")
        axes.set_xlabel("share of forgeries accepted")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("share of genuine signatures accepted")
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
