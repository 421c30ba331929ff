"""Draws one-shot trials: which of `way` classes is the query's?

Everything here is a pure function of (index, settings, seed).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from data_ingest.errors import InputError
from data_ingest.sampling.draws import Draws, Flags, Ints
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.pairs import Pairs
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.settings import PairSettings
from data_ingest.sources.writers import UNKNOWN_WRITER


class NotEnoughClasses(InputError):
    """No trial with that many candidates can be made."""


class Trial(NamedTuple):
    """One query against `way` classes, each shown by `shots` support images.

    Images are numbers: rows of an index, or positions in a list of files.
    """

    trial_id: str
    """`within/20way/set003/item07`, `official/run03/item07`: unique over protocols and ways."""
    query: int
    support: tuple[tuple[int, ...], ...]
    """`[way][shots]`, the classes of a drawn trial in random order."""
    answer: int
    """Position in `support` of the query's class."""

    @property
    def way(self) -> int:
        return len(self.support)

    @property
    def images(self) -> tuple[int, ...]:
        """All images of the trial, the query first."""
        return (self.query, *(image for shots in self.support for image in shots))


def draw_trials(
    index: ImageIndex, protocol: str, *, way: int, trials: int, seed: int, shots: int = 1
) -> Iterator[Trial]:
    """Trials whose candidates come from one group ("within") or from many ("between").

    Within groups follows Koch 2015, section 4.3; between groups is much easier. Sets of `way`
    classes give `way` trials each, spread evenly over the groups with enough classes. Query and
    candidates are drawn by two different writers, where writers are known, so that a trial never
    asks for the writer's hand instead of the character. Forgeries are neither.

    With more shots the same queries are asked (where the same classes have enough images), and
    each class gets further support images. They are by writers other than the query's and than
    each other, where writers are known, and as far as possible the same writers for all classes
    of a trial: a hand says nothing about the class.

    Raises:
      NotEnoughClasses: no group, or fewer than two groups together, have `way` classes with
        `shots` + 1 images by different writers.
    """
    largest = largest_way(index, protocol, shots=shots)
    if way > largest:
        place = "any one group has" if protocol == PROTOCOL_WITHIN else "two groups have"
        of_shots = f" of {shots} shots" if shots > 1 else ""
        raise NotEnoughClasses(
            f"{way}-way {protocol} trials{of_shots} need {way} classes with {shots + 1} images "
            f"each, by different writers where these are known, but {largest} are the most that "
            f"{place}"
        )
    sampler = TrialSampler(index, protocol, way, seed, shots)
    return islice((trial for number in count() for trial in sampler.trials(number)), trials)


def sound_trials(trials: Iterable[Trial], positions: Iterable[int]) -> list[Trial]:
    """The trials all of whose images are among the sound ones, renumbered.

    Args:
      trials: their images are positions in a list of files.
      positions: those of the sound images; the first becomes image 0 and so on.
    """
    number = {int(position): row for row, position in enumerate(positions)}
    return [
        Trial(
            trial.trial_id,
            number[trial.query],
            tuple(tuple(number[image] for image in shots) for shots in trial.support),
            trial.answer,
        )
        for trial in trials
        if number.keys() >= set(trial.images)
    ]


def trial_pairs(sets: Callable[[int], Sequence[Trial]], way: int, start: int, stop: int) -> Pairs:
    """Pairs `start` to `stop` of one-shot trials, each `way` pairs of its query and a candidate.

    Args:
      sets: gives the `way` trials of a set.
      way: candidates in a trial.
    """
    a_set = way * way
    first = start // a_set
    trials = [trial for number in range(first, -(-stop // a_set)) for trial in sets(number)]
    part = slice(start - first * a_set, stop - first * a_set)
    return Pairs(
        row_a=np.array([t.query for t in trials for _ in t.support], np.int64)[part],
        row_b=np.array([row for t in trials for (row,) in t.support], np.int64)[part],
        label=np.array([at == t.answer for t in trials for at in range(way)], np.int64)[part],
        trial=[t.trial_id for t in trials for _ in t.support][part],
    )


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
    """

    index: ImageIndex
    protocol: str
    way: int
    seed: int
    shots: int = 1
    _cache: dict[int | None, _Candidates] = field(default_factory=dict, repr=False, compare=False)

    @property
    def _stream(self) -> str:
        return f"trials/{self.protocol}/{self.way}"

    def trials(self, set_number: int) -> list[Trial]:
        """The `way` trials of one set; `way` is at most `largest_way`."""
        draws = Draws(self.seed, self._stream, set_number)
        if self.protocol == PROTOCOL_WITHIN:
            groups = self._groups
            turn = Draws(self.seed, f"{self._stream}/turn", set_number // len(groups))
            group = int(groups[turn.order(len(groups))[set_number % len(groups)]])
            candidates = self._candidates(group)
        else:
            candidates = self._candidates(None)
        queries, first = self._draw_set(draws, candidates)
        order = draws.order(self.way).tolist()
        support = self._support(
            set_number, [queries[at] for at in order], [first[at] for at in order]
        )
        prefix = f"{self.protocol}/{self.way}way/set{set_number:03d}"
        return [
            Trial(f"{prefix}/item{item + 1:02d}", query, support, order.index(item))
            for item, query in enumerate(queries)
        ]

    @cached_property
    def _groups(self) -> Ints:
        return np.flatnonzero(_usable_in_groups(self.index, self.shots) >= self.way)

    @cached_property
    def _usable(self) -> Ints:
        return np.flatnonzero(_usable_classes(self.index, self.shots))

    def _candidates(self, group: int | None) -> _Candidates:
        """The classes of a group, or all."""
        if group not in self._cache:
            usable = self._usable
            if group is not None:
                usable = usable[self.index.class_group[usable] == group]
            rows = np.flatnonzero(np.isin(self.index.row_class, usable))
            rows = rows[self.index.row_writer[rows] != UNKNOWN_WRITER]
            writers, writer_at = np.unique(self.index.row_writer[rows], return_inverse=True)
            drawn = np.zeros((len(usable), len(writers)), bool)
            drawn[np.searchsorted(usable, self.index.row_class[rows]), writer_at] = True
            self._cache[group] = _Candidates(usable, writers.astype(np.int64), drawn)
        return self._cache[group]

    def _draw_set(self, draws: Draws, candidates: _Candidates) -> tuple[list[int], list[int]]:
        """The query row of each of `way` classes, and its candidate row."""
        two = self._two_writers(draws, candidates)
        if two is None:
            classes = self._draw_classes(draws, candidates.classes)
            support = [_one_of(draws, self._rows(number)) for number in classes]
            queries = [_one_of(draws, self._others(row)) for row in support]
            return queries, support
        both = candidates.drawn[:, two[0]] & candidates.drawn[:, two[1]]
        classes = self._draw_classes(draws, candidates.classes[both])
        queries, support = (
            [_one_of(draws, self._rows(number, candidates.writers[at])) for number in classes]
            for at in two
        )
        return queries, support

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

    def _rows(self, class_number: int, writer: int | None = None) -> Ints:
        """Rows of a class, all or those of a writer."""
        rows = np.array(self.index.class_rows(class_number))
        return rows if writer is None else rows[self.index.row_writer[rows] == writer]

    def _others(self, row: int) -> Ints:
        """The other rows of its class, those known to be by its writer left out."""
        rows = self._rows(int(self.index.row_class[row]))
        writers = self.index.row_writer[rows]
        own = self.index.row_writer[row]
        unknown = (writers == UNKNOWN_WRITER) | (own == UNKNOWN_WRITER)
        others: Ints = rows[(rows != row) & ((writers != own) | unknown)]
        return others

    def _support(
        self, set_number: int, queries: Sequence[int], first: Sequence[int]
    ) -> tuple[tuple[int, ...], ...]:
        """`shots` rows of each candidate's class: its `first`, and others."""
        if self.shots == 1:
            return tuple((row,) for row in first)
        index = self.index
        draws = Draws(self.seed, f"{self._stream}/more references", set_number)
        classes = [index.class_rows(int(index.row_class[row])) for row in first]
        # How many of the classes a writer has drawn: who has drawn them all comes first.
        drawn = Counter(
            writer for rows in classes for writer in {index.writer(row) for row in rows}
        )
        writers = sorted(drawn.keys() - {UNKNOWN_WRITER})
        turn = dict(zip(writers, draws.order(len(writers)).tolist(), strict=True))

        def preference(row: int) -> tuple[int, int]:
            writer = index.writer(row)
            return (1, 0) if writer == UNKNOWN_WRITER else (-drawn[writer], turn[writer])

        support: list[tuple[int, ...]] = []
        for rows, query, candidate in zip(classes, queries, first, strict=True):
            taken = [query, candidate]
            shuffled = [rows[at] for at in draws.order(len(rows)).tolist()]
            for row in sorted(shuffled, key=preference):
                if len(taken) == self.shots + 1:
                    break
                hands = {index.writer(other) for other in taken} - {UNKNOWN_WRITER}
                if row not in taken and index.writer(row) not in hands:
                    taken.append(row)
            support.append(tuple(taken[1:]))
        return tuple(support)


def _one_of(draws: Draws, rows: Ints) -> int:
    return int(rows[draws.below(len(rows))])


def largest_way(index: ImageIndex, protocol: str, *, shots: int = 1) -> int:
    """The most candidates that a trial of this protocol can have; 0 where there is no trial."""
    in_groups = _usable_in_groups(index, shots)
    if protocol == PROTOCOL_WITHIN:
        largest = int(in_groups.max(initial=0))
    else:
        largest = int(in_groups.sum()) if np.count_nonzero(in_groups) >= 2 else 0
    return largest if largest >= 2 else 0


def sampled_trials(index: ImageIndex, settings: PairSettings) -> Iterator[tuple[str, int, int]]:
    """Protocol, way and number of the trials that the settings ask for and the index allows.

    Ways that the data lacks become the largest it has. Descending by way.
    """
    for protocol, trials in (
        (PROTOCOL_WITHIN, settings.within_trials),
        (PROTOCOL_BETWEEN, settings.between_trials),
    ):
        largest = largest_way(index, protocol)
        ways = {min(way, largest) for way in settings.ways} if trials and largest else ()
        for way in sorted(ways, reverse=True):
            yield protocol, way, trials


def classes_left_out(index: ImageIndex, *, shots: int) -> list[str]:
    """Names of the classes with too few images for a trial of so many shots, without forgeries."""
    usable = _usable_classes(index, shots)
    return [index.classes[number] for number in index.genuine if not usable[number]]


def _usable_classes(index: ImageIndex, shots: int) -> Flags:
    """`[C]`: has the class a query, and `shots` images not known to be by its or one writer?

    Of a forged class nothing is asked.
    """
    known = index.row_writer != UNKNOWN_WRITER
    hands = np.stack([index.row_class[known], index.row_writer[known]])
    writers = np.bincount(np.unique(hands, axis=1)[0], minlength=len(index.classes))
    unknown = np.bincount(index.row_class[~known], minlength=len(index.classes))
    usable: Flags = (writers + unknown > shots) & ~index.class_forged
    return usable


def _usable_in_groups(index: ImageIndex, shots: int) -> Ints:
    """`[G]`: number of usable classes of each group."""
    usable = index.class_group[_usable_classes(index, shots)]
    return np.bincount(usable, minlength=len(index.groups)).astype(np.int64)
