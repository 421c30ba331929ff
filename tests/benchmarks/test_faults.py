"""What `benchmarks.faults` breaks, and that it notices."""

import random
from pathlib import Path

import pytest

from benchmarks.faults import Folder, _cut, _flip, _noise
from pipeline.runs.history import RunRecord
from pipeline.runs.status import Status
from tests.pipeline.recorded_runs import RecordedRuns

CONTENT = random.Random(1).randbytes(40_000)


def test_each_damage_is_what_it_is_called() -> None:
    chance = random.Random(2)
    changed = [a ^ b for a, b in zip(CONTENT, _flip(CONTENT, chance), strict=True) if a != b]
    assert [bits.bit_count() for bits in changed] == [1]
    cut = _cut(CONTENT, chance)
    assert CONTENT.startswith(cut)
    assert 0 < len(cut) < len(CONTENT)
    noisy = _noise(CONTENT, chance)
    assert len(noisy) == len(CONTENT)
    assert 8000 < sum(a != b for a, b in zip(CONTENT, noisy, strict=True)) <= 8192


def test_a_span_that_is_not_trained_on_is_noticed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert (folder.land(), folder.land()) == (1, 2)
    runs = RecordedRuns(tmp_path, clock=lambda: 1.0)
    version = runs.run(data=1).version
    runs.history.record(RunRecord("1", Status.DONE, 3.0, span=1, pushed_version=version))
    with pytest.raises(AssertionError, match="a span is trained on once"):
        folder.check()
