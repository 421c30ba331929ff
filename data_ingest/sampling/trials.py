"""One-shot trials: which of `way` candidates is of the query's class?

Everything here is a pure function of (index, settings, seed).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from data_ingest.errors import InputError
from data_ingest.sampling.draws import Draws
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import (
    PROTOCOL_BETWEEN,
    PROTOCOL_OFFICIAL,
    PROTOCOL_VERIFICATION,
    PROTOCOL_WITHIN,
)
from data_ingest.settings import PairSettings

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNKNOWN_WRITER: Final = 0


class NotEnoughClasses(InputError):
    """No trial with that many candidates can be made."""


class Trial(NamedTuple):
    """One query against `way` candidates. Images are rows of the index it was drawn from."""

    trial_id: str
    """`within/20way/set003/item07`: unique over protocols and ways."""
    protocol: str
    way: int
    query: int
    support: tuple[int, ...]
    """One image of each of `way` classes, in random order."""
    answer: int
    """Position in `support` of the image that is of the query's class."""


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Classes that a set of trials can be drawn from."""

    classes: Ints
    """Each has enough images that are not known to be of one writer."""
    writers: Ints
    drawn: Flags
    """`[classes, writers]`: has the class an image by that writer?"""


@dataclass(frozen=True)
class TrialSampler:
    """Sets of `way` trials over the same candidates, each candidate's class queried once.

    Set `s` is a pure function of (index, seed, s). Two writers are drawn for a set: one drew all
    candidates, the other all queries. Where no two writers have drawn enough classes, query and
    candidate of a class are still by two writers, or, where writers are unknown, two images.

    Attributes:
      index: the images.
      protocol: within or between groups.
      way: candidates a trial.
      seed: of all draws.
      shots: a class takes part if it has so many images by other writers than the query's. A trial
        has one of them; `data_ingest.sampling.trials` adds the others.
    """

    index: ImageIndex
    protocol: str
    way: int
    seed: int
    shots: int = 1
    _cache: dict[int, _Candidates] = field(default_factory=dict, repr=False, compare=False)

    @property
    def stream(self) -> str:
        return f"trials/{self.protocol}/{self.way}"

    def check(self) -> None:
        """Raises `NotEnoughClasses` where `way` is more than the index can give."""
        largest = largest_way(self.index, self.protocol, shots=self.shots)
        if self.way > largest:
            place = "any one group has" if self.protocol == PROTOCOL_WITHIN else "two groups have"
            of_shots = f" of {self.shots} shots" if self.shots > 1 else ""
            raise NotEnoughClasses(
                f"{self.way}-way {self.protocol} trials{of_shots} need {self.way} classes with "
                f"{self.shots + 1} images each, by different writers where these are known, but "
                f"{largest} are the most that {place}"
            )

    def trials(self, set_number: int) -> list[Trial]:
        """The `way` trials of one set; `check` must have passed."""
        draws = Draws(self.seed, self.stream, set_number)
        if self.protocol == PROTOCOL_WITHIN:
            groups = self._groups
            turn = Draws(self.seed, f"{self.stream}/turn", set_number // len(groups))
            group = int(groups[turn.order(len(groups))[set_number % len(groups)]])
            candidates = self._candidates(group, self.index.group_classes(group))
        else:
            candidates = self._candidates(-1, range(len(self.index.classes)))
        classes, queries, supports = self._draw_set(draws, candidates)
        order = draws.order(self.way)
        support = tuple(int(row) for row in supports[order])
        place = np.argsort(order)
        prefix = f"{self.protocol}/{self.way}way/set{set_number:03d}"
        return [
            Trial(
                trial_id=f"{prefix}/item{item + 1:02d}",
                protocol=self.protocol,
                way=self.way,
                query=int(queries[item]),
                support=support,
                answer=int(place[item]),
            )
            for item in range(len(classes))
        ]

    @cached_property
    def _groups(self) -> Ints:
        return np.flatnonzero(_usable_in_groups(self.index, self.shots) >= self.way)

    @cached_property
    def _usable(self) -> Flags:
        return usable_classes(self.index, shots=self.shots)

    def _candidates(self, key: int, classes: range) -> _Candidates:
        if key not in self._cache:
            usable = np.array(classes, np.int64)[self._usable[list(classes)]]
            rows = np.flatnonzero(np.isin(self.index.row_class, usable))
            rows = rows[self.index.row_writer[rows] != UNKNOWN_WRITER]
            writers, writer_at = np.unique(self.index.row_writer[rows], return_inverse=True)
            drawn = np.zeros((len(usable), len(writers)), bool)
            drawn[np.searchsorted(usable, self.index.row_class[rows]), writer_at] = True
            self._cache[key] = _Candidates(usable, writers.astype(np.int64), drawn)
        return self._cache[key]

    def _draw_set(self, draws: Draws, candidates: _Candidates) -> tuple[Ints, Ints, Ints]:
        """`way` classes, and for each its query row and its candidate row."""
        two = self._two_writers(draws, candidates)
        if two is None:
            classes = self._draw_classes(draws, candidates.classes)
            supports = np.array([self._any_row(draws, number) for number in classes], np.int64)
            queries = np.array([self._other_row(draws, int(row)) for row in supports], np.int64)
            return classes, queries, supports
        both = candidates.drawn[:, two[0]] & candidates.drawn[:, two[1]]
        classes = self._draw_classes(draws, candidates.classes[both])
        query_writer, support_writer = (int(candidates.writers[at]) for at in two)
        queries = np.array([self._row_by(draws, c, query_writer) for c in classes], np.int64)
        supports = np.array([self._row_by(draws, c, support_writer) for c in classes], np.int64)
        return classes, queries, supports

    def _two_writers(self, draws: Draws, candidates: _Candidates) -> tuple[int, int] | None:
        drawn = candidates.drawn.astype(np.int64)
        common = drawn.T @ drawn
        np.fill_diagonal(common, 0)
        pairs = np.argwhere(common >= self.way)
        for at in draws.order(len(pairs)):
            first, second = (int(writer) for writer in pairs[at])
            both = candidates.drawn[:, first] & candidates.drawn[:, second]
            groups = np.unique(self.index.class_group[candidates.classes[both]])
            if self.protocol == PROTOCOL_WITHIN or len(groups) >= 2:
                return first, second
        return None

    def _draw_classes(self, draws: Draws, classes: Ints) -> Ints:
        shuffled = classes[draws.order(len(classes))]
        if self.protocol == PROTOCOL_WITHIN:
            return shuffled[: self.way]
        # Spread over the groups: every group's first class before any group's second.
        group = self.index.class_group[shuffled]
        by_group = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[by_group], group[by_group])
        rank = np.empty(len(group), np.int64)
        rank[by_group] = np.arange(len(group)) - starts
        priority = draws.order(len(self.index.groups))
        return shuffled[np.lexsort((priority[group], rank))][: self.way]

    def _any_row(self, draws: Draws, class_number: int) -> int:
        rows = self.index.class_rows(class_number)
        return rows[draws.below(len(rows))]

    def _other_row(self, draws: Draws, row: int) -> int:
        rows = np.array(self.index.class_rows(int(self.index.row_class[row])))
        writers = self.index.row_writer[rows]
        own = self.index.row_writer[row]
        unknown = (writers == UNKNOWN_WRITER) | (own == UNKNOWN_WRITER)
        others = rows[(rows != row) & ((writers != own) | unknown)]
        return int(others[draws.below(len(others))])

    def _row_by(self, draws: Draws, class_number: int, writer: int) -> int:
        rows = np.array(self.index.class_rows(class_number))
        rows = rows[self.index.row_writer[rows] == writer]
        return int(rows[draws.below(len(rows))])


def within_group_trials(index: ImageIndex, *, way: int, trials: int, seed: int) -> Iterator[Trial]:
    """One-shot trials whose candidates all come from one group (Koch 2015, section 4.3).

    Sets of `way` classes of one group give `way` trials each. Query and candidates are drawn by
    two different writers, where writers are known, so that a trial never asks for the writer's
    hand instead of the character. Sets are spread evenly over the groups with enough classes.

    Raises:
      NotEnoughClasses: no group has `way` classes with two images each.
    """
    return _trials(TrialSampler(index, PROTOCOL_WITHIN, way, seed), trials)


def between_group_trials(index: ImageIndex, *, way: int, trials: int, seed: int) -> Iterator[Trial]:
    """One-shot trials whose candidates come from as many groups as possible ("unstructured").

    Much easier than `within_group_trials`, which it otherwise resembles.

    Raises:
      NotEnoughClasses: there are fewer than two groups, or fewer than `way` classes with two
        images each.
    """
    return _trials(TrialSampler(index, PROTOCOL_BETWEEN, way, seed), trials)


def largest_way(index: ImageIndex, protocol: str, *, shots: int = 1) -> int:
    """The most candidates that a trial of this protocol can have; 0 where there is no trial."""
    in_groups = _usable_in_groups(index, shots)
    if protocol == PROTOCOL_WITHIN:
        largest = int(in_groups.max(initial=0))
    else:
        largest = int(in_groups.sum()) if np.count_nonzero(in_groups) >= 2 else 0
    return largest if largest >= 2 else 0


def effective_ways(index: ImageIndex, protocol: str, ways: Iterable[int]) -> tuple[int, ...]:
    """The ways asked for, larger ones than the data has replaced by the largest; descending."""
    largest = largest_way(index, protocol)
    return tuple(sorted({min(way, largest) for way in ways}, reverse=True)) if largest else ()


def available_protocols(
    index: ImageIndex, settings: PairSettings, *, official_ways: Iterable[int] = ()
) -> set[tuple[str, int]]:
    """Which (protocol, way) a `one_shot` split over this index holds; way 0 outside trials."""
    protocols = {(PROTOCOL_VERIFICATION, 0)}
    protocols |= {(PROTOCOL_OFFICIAL, way) for way in official_ways}
    for protocol, trials in trial_protocols(settings):
        if trials:
            ways = effective_ways(index, protocol, settings.ways)
            protocols |= {(protocol, way) for way in ways}
    return protocols


def trial_protocols(settings: PairSettings) -> tuple[tuple[str, int], tuple[str, int]]:
    """The sampled protocols with the number of trials a way."""
    return (
        (PROTOCOL_WITHIN, settings.within_trials),
        (PROTOCOL_BETWEEN, settings.between_trials),
    )


def _trials(sampler: TrialSampler, count: int) -> Iterator[Trial]:
    sampler.check()
    draw: Callable[[int], list[Trial]] = sampler.trials
    sets = range(-(-count // sampler.way))
    return islice((trial for number in sets for trial in draw(number)), count)


def usable_classes(index: ImageIndex, *, shots: int = 1) -> Flags:
    """`[C]`: has the class a query, and `shots` images not known to be by its or one writer?"""
    known = index.row_writer != UNKNOWN_WRITER
    hands = np.stack([index.row_class[known], index.row_writer[known]])
    writers = np.bincount(np.unique(hands, axis=1)[0], minlength=len(index.classes))
    unknown = np.bincount(index.row_class[~known], minlength=len(index.classes))
    usable: Flags = writers + unknown > shots
    return usable


def _usable_in_groups(index: ImageIndex, shots: int) -> Ints:
    """`[G]`: number of usable classes of each group."""
    usable = index.class_group[usable_classes(index, shots=shots)]
    return np.bincount(usable, minlength=len(index.groups)).astype(np.int64)


class FewShotTrial(NamedTuple):
    """One query against `way` classes of `shots` references. Images are rows of an index."""

    trial_id: str
    query: int
    references: tuple[tuple[int, ...], ...]
    """`[way][shots]`: classes in random order, as many references of each."""
    answer: int
    """Position in `references` of the query's class."""

    @property
    def rows(self) -> tuple[int, ...]:
        """All images of the trial, the query first."""
        return (self.query, *(row for shots in self.references for row in shots))


def few_shot_trials(
    index: ImageIndex, *, way: int, shots: int, trials: int, seed: int
) -> Iterator[FewShotTrial]:
    """Trials whose classes all come from one group, with `shots` references of each.

    Those of one shot are the trials of `within_group_trials`; with more shots the same queries are
    asked (where the same classes have enough images) and each class gets further references. They
    are by writers other than the query's and than each other, where writers are known, and as far
    as possible the same writers for all classes of a trial: a hand says nothing about the class.

    Raises:
      NotEnoughClasses: no group has `way` classes with `shots` + 1 images by different writers.
    """
    sampler = TrialSampler(index, PROTOCOL_WITHIN, way, seed, shots)
    sampler.check()
    return islice(_all_trials(sampler), trials)


def classes_left_out(index: ImageIndex, *, shots: int) -> list[str]:
    """Names of the classes with too few images for a trial with so many references."""
    usable = usable_classes(index, shots=shots)
    return [name for name, enough in zip(index.classes, usable, strict=True) if not enough]


def _all_trials(sampler: TrialSampler) -> Iterator[FewShotTrial]:
    for number in count():
        one_set = sampler.trials(number)
        support = one_set[0].support
        references: tuple[tuple[int, ...], ...] = tuple((row,) for row in support)
        if sampler.shots > 1:
            draws = Draws(sampler.seed, f"{sampler.stream}/more references", number)
            more = _more_references(sampler, one_set, draws)
            references = tuple((row, *rows) for row, rows in zip(support, more, strict=True))
        for trial in one_set:
            yield FewShotTrial(trial.trial_id, trial.query, references, trial.answer)


def _more_references(
    sampler: TrialSampler, one_set: Sequence[Trial], draws: Draws
) -> Iterator[list[int]]:
    """`shots` - 1 further rows of each candidate's class."""
    index = sampler.index
    queries = {trial.answer: trial.query for trial in one_set}
    classes = [
        index.class_rows(int(index.row_class[candidate])) for candidate in one_set[0].support
    ]
    # How many of the classes a writer has drawn: who has drawn them all comes first.
    drawn = Counter(writer for rows in classes for writer in {index.writer(row) for row in rows})
    writers = sorted(drawn.keys() - {UNKNOWN_WRITER})
    turn = dict(zip(writers, draws.order(len(writers)).tolist(), strict=True))

    def preference(row: int) -> tuple[int, int]:
        writer = index.writer(row)
        return (1, 0) if writer == UNKNOWN_WRITER else (-drawn[writer], turn[writer])

    for position, rows in enumerate(classes):
        taken = [queries[position], one_set[0].support[position]]
        shuffled = [rows[at] for at in draws.order(len(rows)).tolist()]
        for row in sorted(shuffled, key=preference):
            if len(taken) == sampler.shots + 1:
                break
            hands = {index.writer(other) for other in taken} - {UNKNOWN_WRITER}
            if row not in taken and index.writer(row) not in hands:
                taken.append(row)
        yield taken[2:]
