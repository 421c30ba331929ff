"""Decides which records the splits hold, and in which files."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final, NamedTuple

from data_ingest.errors import InputError, shown
from data_ingest.records.catalog import (
    BACKGROUND,
    EVALUATION,
    IMAGES,
    RUNS,
    Catalog,
    LocatedIndex,
    count_reasons,
    told_reasons,
)
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.pairs import Pairs, PairSampler, pair_sampler
from data_ingest.sampling.protocols import (
    EVAL_SPLIT,
    ONE_SHOT_SPLIT,
    PROTOCOL_OFFICIAL,
    PROTOCOL_RANDOM,
    PROTOCOL_SKILLED,
    PROTOCOL_TRAIN,
    PROTOCOL_VERIFICATION,
    SPLITS,
    TRAIN_SPLIT,
)
from data_ingest.sampling.splits import split_index
from data_ingest.sampling.trials import (
    Trial,
    TrialSampler,
    sampled_trials,
    sound_trials,
    trial_pairs,
)
from data_ingest.settings import PairSettings

_SHARD_PAIRS: Final = 32768
_SHARD_BYTES: Final = 32 * 2**20
_SPAN: Final = re.compile(r"/span-(\d+)\.zip/")
"""How windows of spans name their containers."""
_NAMED_REJECTED: Final = 10


@dataclass(frozen=True, eq=False)
class Stream:
    """Records of one split, protocol and way."""

    split: str
    protocol: str
    way: int
    """0 outside trials."""
    located: LocatedIndex
    pairs: int
    """How many records."""
    draw: Callable[[int, int], Pairs]
    """Records `start` to `stop`; record `i` is a pure function of `i`. Can be pickled."""


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

    @property
    def protocols(self) -> set[tuple[str, int]]:
        """Protocol and way of what the `one_shot` split holds; way is 0 outside trials."""
        return {(one.protocol, one.way) for one in self.streams if one.split == ONE_SHOT_SPLIT}

    def index_of(self, split: str) -> ImageIndex:
        """The images of a split, of its first stream."""
        return next(one.located.index for one in self.streams if one.split == split)

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
            shards += [
                Shard(len(shards) + file, split, file, len(pieces), *piece)
                for file, piece in enumerate(pieces)
            ]
        return tuple(shards)


def make_plan(
    catalog: Catalog,
    settings: PairSettings,
    *,
    official: Sequence[Trial] = (),
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
    catalog: Catalog, settings: PairSettings, official: Sequence[Trial]
) -> Iterator[Stream]:
    own = catalog.sources.get(BACKGROUND, catalog.sources.get(IMAGES))
    if own is None:
        raise InputError(f"none of the {sum(catalog.read.values())} images can be used")
    evaluation = catalog.sources.get(EVALUATION)
    rows = split_index(own.index, evaluation.index if evaluation else None, settings)
    one_shot = (evaluation or own).take(rows.one_shot)
    for split, protocol, located, pairs in (
        (TRAIN_SPLIT, PROTOCOL_TRAIN, own.take(rows.train), settings.train_pairs),
        (EVAL_SPLIT, PROTOCOL_VERIFICATION, own.take(rows.eval), settings.eval_pairs),
        (ONE_SHOT_SPLIT, PROTOCOL_VERIFICATION, one_shot, settings.verification_pairs),
    ):
        sampler = pair_sampler(located.index, settings, split=split)
        where = "to train on" if split == TRAIN_SPLIT else f"of the {split} split"
        sampler.check(f"images {where}")
        if split == ONE_SHOT_SPLIT and located.index.has_forgeries:
            yield from _forgeries(located, sampler, pairs)
        else:
            yield Stream(split, protocol, 0, located, pairs, sampler.pairs)

    runs = catalog.sources.get(RUNS)
    if runs is not None:
        trials = sound_trials(official, runs.listing)
        for way in sorted({trial.way for trial in trials}, reverse=True):
            of_way = [trial for trial in trials if trial.way == way]
            draw = partial(trial_pairs, partial(_given_set, of_way, way), way)
            yield Stream(ONE_SHOT_SPLIT, PROTOCOL_OFFICIAL, way, runs, len(of_way) * way, draw)
    for protocol, way, count in sampled_trials(one_shot.index, settings):
        drawn = TrialSampler(one_shot.index, protocol, way, settings.seed)
        draw = partial(trial_pairs, drawn.trials, way)
        yield Stream(ONE_SHOT_SPLIT, protocol, way, one_shot, count * way, draw)


def _forgeries(located: LocatedIndex, sampler: PairSampler, pairs: int) -> Iterator[Stream]:
    """In the place of the verification pairs: as many, apart by the kind of forgery."""
    protocols = {PROTOCOL_SKILLED: 1.0}
    if len(located.index.groups) >= 2:
        protocols = {PROTOCOL_RANDOM: 0.0, **protocols}
    for protocol, within in protocols.items():
        drawn = replace(
            sampler, stream=f"{sampler.stream}/{protocol}", different_within_group=within
        )
        count = max(2, pairs // len(protocols))
        yield Stream(ONE_SHOT_SPLIT, protocol, 0, located, count, drawn.pairs)


def _given_set(trials: Sequence[Trial], way: int, number: int) -> Sequence[Trial]:
    return trials[number * way : (number + 1) * way]


def _pieces(stream: Stream) -> Iterator[tuple[int, int]]:
    """Ranges of records small enough for a worker; a trial, if possible its set, stays whole."""
    pair_bytes = 2 * max(1.0, float(stream.located.size.mean()))
    length = max(1, min(_SHARD_PAIRS, int(_SHARD_BYTES / pair_bytes)))
    whole = next((unit for unit in (stream.way**2, stream.way) if 0 < unit <= length), 1)
    length -= length % whole
    for start in range(0, stream.pairs, length):
        yield start, min(start + length, stream.pairs)


def too_many_rejected(catalog: Catalog, max_rejected_share: float) -> str:
    """Says so for people, with the reasons, and names the first ten images."""
    counts = count_reasons(bad[1:] for bad in catalog.rejected)
    named = [f"{shown(bad.file)} ({bad.reason})" for bad in catalog.rejected[:_NAMED_REJECTED]]
    more = len(catalog.rejected) - len(named)
    landed = sorted(
        {int(found[1]) for bad in catalog.rejected if (found := _SPAN.search(bad.file))}
    )
    spans = " ".join(map(str, landed))
    leave_out = f"leave their spans ({spans}) out by `oneshot spans exclude`, " if spans else ""
    return (
        f"{len(catalog.rejected)} of {sum(catalog.read.values())} images "
        f"({catalog.rejected_share:.1%}) cannot be used, more than "
        f"dataset.max_rejected_share = {max_rejected_share:.1%} allows: {told_reasons(counts)}. "
        f"Remove or repair them, {leave_out}or raise that share:\n  "
        + "\n  ".join(named)
        + (f"\n  and {more} more" if more else "")
    )
