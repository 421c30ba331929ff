"""Few-shot trials: several references of each class that the query may be of."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

from data_ingest.draws import Draws
from data_ingest.index import ImageIndex
from data_ingest.protocols import PROTOCOL_WITHIN
from data_ingest.sampling import UNKNOWN_WRITER, Trial, TrialSampler, usable_classes


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
