"""Which records the splits hold, and in which files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_ingest.errors import InputError
from data_ingest.records.catalog import BACKGROUND, EVALUATION, IMAGES, RUNS, Catalog, LocatedIndex
from data_ingest.sampling.index import ImageIndex, ImageRef
from data_ingest.sampling.official_runs import OfficialTrial, read_official_runs
from data_ingest.sampling.pairs import PairSampler, training_sampler, verification_sampler
from data_ingest.sampling.protocols import (
    EVAL_SPLIT,
    ONE_SHOT_SPLIT,
    PROTOCOL_OFFICIAL,
    PROTOCOL_TRAIN,
    PROTOCOL_VERIFICATION,
    SPLITS,
    TRAIN_SPLIT,
)
from data_ingest.sampling.splits import split_index
from data_ingest.sampling.trials import (
    Trial,
    TrialSampler,
    available_protocols,
    effective_ways,
    trial_protocols,
)
from data_ingest.settings import PairSettings
from data_ingest.sources.layout import list_images

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


_SHARD_PAIRS: Final = 4096
_SHARD_BYTES: Final = 32 * 2**20
_NAMED_REJECTED: Final = 10


class Shard(NamedTuple):
    """Records `start` to `stop` of a stream: one file."""

    number: int
    split: str
    file: int
    """Which of the split's files, from 0."""
    files: int
    """How many files the split has."""
    stream: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """All records that there are to be, or why there can be none."""

    streams: tuple[Stream, ...]
    catalog: Catalog
    problem: str = ""
    """What the user must put right; empty where all is well."""

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        shards: list[Shard] = []
        for split in SPLITS:
            pieces = [
                (number, *piece)
                for number, stream in enumerate(self.streams)
                if stream.split == split
                for piece in _pieces(stream)
            ]
            for file, (number, start, stop) in enumerate(pieces):
                shards.append(Shard(len(shards), split, file, len(pieces), number, start, stop))
        return tuple(shards)


def _pieces(stream: Stream) -> Iterator[tuple[int, int]]:
    """Ranges of records small enough for a worker; a trial, if possible its set, stays whole."""
    pair_bytes = 2 * max(1.0, float(stream.located.size.mean()))
    length = max(1, min(_SHARD_PAIRS, int(_SHARD_BYTES / pair_bytes)))
    whole = next((unit for unit in (stream.way**2, stream.way) if 0 < unit <= length), 1)
    length -= length % whole
    for start in range(0, stream.pairs, length):
        yield start, min(start + length, stream.pairs)


def make_plan(
    catalog: Catalog,
    settings: PairSettings,
    *,
    official: Sequence[OfficialTrial] = (),
    max_rejected_share: float = 1.0,
) -> Plan:
    """Decides on all records. A problem of the user's is noted in the plan, not raised.

    Errors raised by a worker reach the main process wrapped in Beam's; this one must not.
    """
    if catalog.rejected_share > max_rejected_share:
        return Plan((), catalog, too_many_rejected(catalog, max_rejected_share))
    try:
        return Plan(tuple(_streams(catalog, settings, official)), catalog)
    except InputError as error:
        return Plan((), catalog, str(error))


def _streams(
    catalog: Catalog, settings: PairSettings, official: Sequence[OfficialTrial]
) -> Iterator[Stream]:
    own = catalog.sources.get(BACKGROUND, catalog.sources.get(IMAGES))
    if own is None:
        raise InputError(f"none of the {sum(catalog.read.values())} images can be used")
    evaluation = catalog.sources.get(EVALUATION)
    rows = split_index(own.index, evaluation.index if evaluation else None, settings)
    train, held_out = own.take(rows.train), own.take(rows.eval)
    one_shot = (evaluation or own).take(rows.one_shot)

    sampler = training_sampler(train.index, settings)
    sampler.check("images to train on")
    yield PairStream(TRAIN_SPLIT, PROTOCOL_TRAIN, train, settings.train_pairs, sampler)

    for split, located, pairs in (
        (EVAL_SPLIT, held_out, settings.eval_pairs),
        (ONE_SHOT_SPLIT, one_shot, settings.verification_pairs),
    ):
        sampler = verification_sampler(located.index, settings, split=split)
        sampler.check(f"images of the {split} split")
        yield PairStream(split, PROTOCOL_VERIFICATION, located, pairs, sampler)

    runs = catalog.sources.get(RUNS)
    if runs is not None:
        trials = list(_official_trials(runs, official))
        for way in sorted({trial.way for trial in trials}, reverse=True):
            of_way = tuple(trial for trial in trials if trial.way == way)
            yield OfficialStream(ONE_SHOT_SPLIT, runs, of_way, way)
    for protocol, trials_a_way in trial_protocols(settings):
        for way in effective_ways(one_shot.index, protocol, settings.ways):
            if trials_a_way:
                trial_sampler = TrialSampler(one_shot.index, protocol, way, settings.seed)
                yield TrialStream(ONE_SHOT_SPLIT, one_shot, trials_a_way, trial_sampler)


def _official_trials(runs: LocatedIndex, official: Iterable[OfficialTrial]) -> Iterator[Trial]:
    """The official trials all of whose images are sound."""
    row_of = {int(listing): row for row, listing in enumerate(runs.listing)}
    for trial in official:
        if all(at in row_of for at in (trial.query, *trial.support)):
            yield Trial(
                trial_id=trial.trial_id,
                protocol=PROTOCOL_OFFICIAL,
                way=len(trial.support),
                query=row_of[trial.query],
                support=tuple(row_of[at] for at in trial.support),
                answer=trial.answer,
            )


def too_many_rejected(catalog: Catalog, max_rejected_share: float) -> str:
    """Says so for people, and names the first ten images."""
    named = [f"{bad.file} ({bad.reason})" for bad in catalog.rejected[:_NAMED_REJECTED]]
    more = len(catalog.rejected) - len(named)
    return (
        f"{len(catalog.rejected)} of {sum(catalog.read.values())} images "
        f"({catalog.rejected_share:.1%}) cannot be used, more than "
        f"dataset.max_rejected_share = {max_rejected_share:.1%} allows. Remove or repair them, or "
        "raise that share:\n  " + "\n  ".join(named) + (f"\n  and {more} more" if more else "")
    )


def expected_protocols(
    containers: Mapping[str, Sequence[Path]], settings: PairSettings
) -> set[tuple[str, int]]:
    """Which (protocol, way) the `one_shot` split of these inputs will hold, without reading images.

    Way is 0 for verification pairs. Images rejected later may make trials of some way impossible.

    Args:
      containers: zips and root folders by input split, as `Dataset.containers()` gives them.
      settings: how they are to be sampled.

    Raises:
      InputError: the inputs cannot be listed, or there is too little for the splits.
    """
    indexes = {
        source: ImageIndex.build(
            {
                (image.class_name, image.uri): ImageRef(
                    image.group, image.class_name, image.writer, image.uri
                )
                for place in places
                for image in list_images(place)
            }.values()
        )
        for source, places in containers.items()
        if source != RUNS
    }
    own = indexes.get(BACKGROUND, indexes.get(IMAGES))
    if own is None:
        raise InputError(f"neither background nor images among the inputs: {sorted(containers)}")
    evaluation = indexes.get(EVALUATION)
    rows = split_index(own, evaluation, settings)
    ways: set[int] = set()
    for place in containers.get(RUNS, ()):
        ways |= read_official_runs(place).ways
    one_shot = (evaluation if evaluation is not None else own).take(rows.one_shot)
    return available_protocols(one_shot, settings, official_ways=ways)
