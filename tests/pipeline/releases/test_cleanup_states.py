"""Runs, promotions, rollbacks and collections in any order, some of them cut off.

Whatever happens: what servers are told to load is there and whole, no version that was rolled back
is served or learnt from again, and ML Metadata agrees with the disk.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from ml_metadata.proto import metadata_store_pb2

from data_ingest.errors import InputError
from pipeline.releases.cleanup import collect_garbage
from pipeline.releases.promotion import Promotions
from pipeline.settings import PushSettings
from serving.deploy.models_config import LABELS
from serving.saved_model.versions import rolled_back_versions, versions
from tests.pipeline.recorded_runs import RecordedRun, RecordedRuns, files_of

DAY = 86_400.0
LIVE = metadata_store_pb2.Artifact.LIVE
# Every step between which a process can die.
STEPS = (
    "pipeline.releases.promotion.write_atomically",
    "pipeline.releases.label_file.write_atomically",
    "pipeline.releases.promotion.withdraw_version",
    "pipeline.releases.changes.PromotionHistory.mark_rolled_back",
    "pipeline.releases.changes.PromotionHistory.record",
    "pipeline.releases.cleanup._set_state",
    "pipeline.releases.cleanup.remove_version",
    "pipeline.releases.cleanup._remove",
)


class Killed(BaseException):
    """The end of the process, which no handler of ours notices."""


@contextmanager
def killed_after(steps: int | None) -> Iterator[None]:
    """Nothing happens any more after so many steps; None: everything does."""
    if steps is None:
        yield
        return
    done = []

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if len(done) == steps:
                raise Killed
            done.append(original)
            return original(*arguments, **named)

        return step

    with ExitStack() as stack:
        for name in STEPS:
            patched = patch(name, autospec=True)
            original, _ = patched.get_original()
            stack.enter_context(patch(name, counted(original)))
        with suppress(Killed):
            yield


class OutputFolder(RuleBasedStateMachine):
    """An output folder through the weeks."""

    lives = st.none() | st.integers(0, 6)

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.now = time.time() - 1000 * DAY
        self.runs = RecordedRuns(self.root, clock=lambda: self.now)
        self.base = self.runs.workspace.serving_model
        self.last: RecordedRun | None = None
        self.last_data = -1
        self.taken_back: set[int] = set()
        self.seen: set[int] = set()
        for data in range(4):
            self.run(data=data, blessed=True, days=1)

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def promotions(self) -> Promotions:
        settings = PushSettings(server_poll_seconds=0)
        return Promotions(
            self.runs.workspace, self.runs.store, settings=settings, clock=lambda: self.now
        )

    @rule(
        data=st.integers(0, 9), blessed=st.sampled_from([True, True, False]), days=st.integers(0, 5)
    )
    def run(self, data: int, blessed: bool, days: int) -> None:
        self.promotions().complete()
        run = self.runs.run(data=data, blessed=blessed)
        self.promotions().follow_push()
        self.last, self.last_data = (run, data) if blessed else (None, -1)
        self.now += days * DAY
        if run.baseline is not None:
            (baseline,) = self.runs.store.get_artifacts_by_id([run.baseline])
            assert "saved_model.pb" in files_of(Path(baseline.uri))
            assert self.version_of(run.baseline) not in self.taken_back
        if run.version is not None:
            assert run.version not in self.taken_back
            if run.version not in self.seen:
                assert run.version > max(self.seen | self.taken_back, default=0)
            self.seen.add(run.version)

    @rule(position=st.integers(0, 3), label=st.sampled_from(LABELS), life=lives)
    def promote(self, position: int, label: str, life: int | None) -> None:
        there = versions(self.base)
        if position < len(there):
            version = there[-1 - position]
            with killed_after(life):
                self.promotions().promote(version, label)
            if self.completed_what_was_cut_off() or life is None:
                assert self.promotions().standing().labels[label] == version

    @rule(label=st.sampled_from(LABELS), life=lives)
    def rollback(self, label: str, life: int | None) -> None:
        before = set(rolled_back_versions(self.base))
        with killed_after(life):
            try:
                self.promotions().rollback(label)
            except InputError:
                return
        completed = self.completed_what_was_cut_off()
        gone = set(rolled_back_versions(self.base)) - before
        assert len(gone) == 1 if completed or life is None else len(gone) <= 1
        self.taken_back |= gone

    def completed_what_was_cut_off(self) -> bool:
        """Whether something had begun; the next command completes it."""
        journal = self.runs.workspace.models_config.with_name(".promotion.json")
        cut_off = journal.exists()
        self.promotions().complete()
        assert not journal.exists()
        return cut_off

    @rule(keep_versions=st.integers(1, 2), keep_days=st.sampled_from([0.0, 2.0]), life=lives)
    def collect(self, keep_versions: int, keep_days: float, life: int | None) -> None:
        with killed_after(life):
            collect_garbage(
                self.promotions(),
                self.runs.history.runs(),
                keep_versions=keep_versions,
                keep_days=keep_days,
                now=self.now,
            )
            if life is None:
                self.check_disk()
        if self.last is not None and self.last.version not in (None, *self.taken_back):
            assert self.last.version in versions(self.base)

    @precondition(lambda self: self.last is not None)
    @rule()
    def run_again(self) -> None:
        assert self.last is not None
        taken_back = self.last.version in self.taken_back
        again = self.runs.run(data=self.last_data)
        if again.baseline != self.last.baseline:
            assert self.version_of(self.last.baseline) in self.taken_back
        assert {"PairExampleGen", "Trainer"} <= again.cached
        assert again.model == self.last.model
        if taken_back or self.last.version is None:
            assert again.version is None
        elif again.baseline == self.last.baseline:
            assert again.version == self.last.version
            assert "Pusher" in again.cached
        self.last = again
        if again.version is not None:
            self.seen.add(again.version)

    @invariant()
    def what_servers_are_told_to_load_is_there(self) -> None:
        promotions = self.promotions()
        there = set(versions(self.base))
        assert set(promotions.standing().labels.values()) <= there
        assert promotions.loaded() <= there
        for version in there:
            assert "saved_model.pb" in files_of(self.base / str(version))
        assert not there & set(rolled_back_versions(self.base))

    @invariant()
    def what_is_live_is_whole(self) -> None:
        for artifact in self.runs.store.get_artifacts():
            if artifact.state == LIVE:
                assert "content" in files_of(Path(artifact.uri))

    def check_disk(self) -> None:
        """After a whole collection nothing but live artifacts is there."""
        live = {Path(a.uri) for a in self.runs.store.get_artifacts() if a.state == LIVE}
        assert live == set(self.runs.workspace.artifacts.glob("[!.]*/[!.]*/*"))
        assert not list(self.base.glob(".tmp-*"))

    def version_of(self, model: int | None) -> int | None:
        for pushed in self.runs.store.get_artifacts_by_type("PushedModel"):
            values = pushed.custom_properties
            if values["model_id"].int_value == model and values["pushed"].int_value:
                return int(values["pushed_version"].string_value)
        return None


OutputFolder.TestCase.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
TestOutputFolder = OutputFolder.TestCase
