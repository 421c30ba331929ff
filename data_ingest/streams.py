"""Streams of records: pairs and trials as columns, any range of them at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_ingest.catalog import LocatedIndex
from data_ingest.pair_sampling import PairSampler
from data_ingest.protocols import PROTOCOL_OFFICIAL
from data_ingest.sampling import Trial, TrialSampler

Ints = npt.NDArray[np.int64]


class DrawnPairs(NamedTuple):
    """Consecutive records as columns; rows are of the stream's index."""

    row_a: Ints
    row_b: Ints
    label: Ints
    trial: Sequence[str]


class Stream(Protocol):
    """Records of one split, protocol and way; record `i` is a pure function of `i`."""

    @property
    def split(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def way(self) -> int: ...
    @property
    def located(self) -> LocatedIndex: ...
    @property
    def pairs(self) -> int: ...
    def draw(self, start: int, stop: int) -> DrawnPairs: ...


@dataclass(frozen=True, eq=False)
class PairStream:
    """Training or verification pairs."""

    split: str
    protocol: str
    located: LocatedIndex
    pairs: int
    sampler: PairSampler
    way: int = 0

    def draw(self, start: int, stop: int) -> DrawnPairs:
        return DrawnPairs(*self.sampler.pairs(start, stop), trial=[""] * (stop - start))


@dataclass(frozen=True, eq=False)
class TrialStream:
    """Sampled one-shot trials, each as `way` pairs of the query and a candidate."""

    split: str
    located: LocatedIndex
    trials: int
    sampler: TrialSampler

    @property
    def protocol(self) -> str:
        return self.sampler.protocol

    @property
    def way(self) -> int:
        return self.sampler.way

    @property
    def pairs(self) -> int:
        return self.trials * self.way

    def draw(self, start: int, stop: int) -> DrawnPairs:
        a_set = self.way * self.way
        first = start // a_set
        trials = [
            trial
            for number in range(first, -(-stop // a_set))
            for trial in self.sampler.trials(number)
        ]
        return _pairs_of(trials, start - first * a_set, stop - first * a_set)


@dataclass(frozen=True, eq=False)
class OfficialStream:
    """Trials that are given, not sampled."""

    split: str
    located: LocatedIndex
    trials: tuple[Trial, ...]
    way: int
    protocol: str = PROTOCOL_OFFICIAL

    @property
    def pairs(self) -> int:
        return len(self.trials) * self.way

    def draw(self, start: int, stop: int) -> DrawnPairs:
        first = start // self.way
        trials = self.trials[first : -(-stop // self.way)]
        return _pairs_of(trials, start - first * self.way, stop - first * self.way)


def _pairs_of(trials: Sequence[Trial], start: int, stop: int) -> DrawnPairs:
    return DrawnPairs(
        row_a=np.array([t.query for t in trials for _ in t.support], np.int64)[start:stop],
        row_b=np.array([row for t in trials for row in t.support], np.int64)[start:stop],
        label=np.array(
            [int(at == t.answer) for t in trials for at in range(len(t.support))], np.int64
        )[start:stop],
        trial=[t.trial_id for t in trials for _ in t.support][start:stop],
    )
