"""Gives the labels `stable` and `canary` to versions, and takes bad versions back.

`<output>/serving_model/models.config` is the truth about labels, and what TF Serving and
`oneshot serve --model_config_file` read. What has become of the versions is in ML Metadata.
"""

import getpass
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ml_metadata import MetadataStore

from components.pusher.versions import withdraw_version
from data_ingest.durable import locked, write_atomically
from data_ingest.errors import InputError
from pipeline.releases.changes import Action, Change, PromotionHistory
from pipeline.releases.label_file import LabelFile
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from serving.deploy.models_config import STABLE
from serving.saved_model.versions import rolled_back_versions, versions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How things stand. `versions` are those that can be served, ascending."""

    versions: list[int]
    rolled_back: list[int]
    labels: Mapping[str, int]
    history: list[Change]


class Promotions:
    """The labels of one model, and its rollbacks.

    These need no lease: a bad version can be taken back while a retraining runs. A lock of their
    own, held for seconds, keeps two changes apart. A change is first noted in a file, then made in
    steps that can be repeated: one that was cut off is completed by the next (`complete`).
    """

    def __init__(
        self,
        workspace: Workspace,
        store: MetadataStore,
        *,
        settings: PushSettings,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Touches nothing yet; `settings` say what servers see, and how often they look."""
        self._file = LabelFile(workspace, settings, clock=clock, sleep=sleep)
        self._journal = workspace.models_config.with_name(".promotion.json")
        self.workspace = workspace
        self.store = store
        self._base = workspace.serving_model
        self._history = PromotionHistory(store, workspace.model_name)
        self._clock = clock
        self._locks = 0

    def standing(self) -> Standing:
        """Versions, labels and history.

        Raises:
          InputError: `models.config` cannot be read.
        """
        return Standing(
            versions(self._base),
            sorted(rolled_back_versions(self._base)),
            self._file.entry().labels,
            self._history.changes(),
        )

    def loaded(self) -> frozenset[int]:
        """Versions that `models.config` makes servers load; empty where it lists none."""
        return self._file.entry().loaded

    def rollback_target(self, label: str = STABLE) -> int | None:
        """The version that `rollback` would go back to; None: there is none."""
        try:
            return self._planned(label)[1]
        except InputError:
            return None

    def promote(self, version: int, label: str, *, why: str = "") -> Change | None:
        """Gives a label to a version.

        Args:
          version: one that was pushed and not rolled back.
          label: `stable` or `canary`.
          why: for the history.

        Returns:
          the change, None where the version had the label already.

        Raises:
          InputError: there is no such version.
        """
        with self.unchanged():
            self.complete()
            there = versions(self._base)
            if version not in there:
                raise InputError(self._no_such_version(version, there))
            previous = self._file.entry().labels.get(label)
            if previous == version:
                self.follow_push()
                return None
            return self._begin("promote", (label,), version, previous, why)

    def rollback(self, label: str = STABLE, *, why: str = "") -> Change:
        """Takes the version with that label out of service, for good.

        Its labels go to the version that had `label` before (that of `canary` to the stable one)
        in a single replacement of the file. Where there are no labels the newest version goes, and
        servers that follow the newest return to the one before it.

        Raises:
          InputError: no version has the label, or there is none to go back to.
        """
        with self.unchanged():
            self.complete()
            bad, target = self._planned(label)
            held = self._file.entry().labels.items()
            moved = tuple(name for name, version in held if version == bad)
            return self._begin("rollback", moved, bad, target, why)

    def follow_push(self) -> None:
        """Lets servers load the newest version, so that a label can be moved to it.

        Without effect where nothing has been promoted yet: servers then follow the folder.
        """
        with self.unchanged():
            entry = self._file.entry()
            there = versions(self._base)
            if entry.labels and entry.loaded and there:
                wanted = self._worth_loading(entry.labels, there)
                if wanted != entry.loaded:
                    self._file.write(entry.labels, loaded=wanted, there=there)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Around a run: completes what was cut off before it, then has servers load what it pushes.

        Raises:
          InputError: `models.config` cannot be read.
        """
        self.complete()
        self.follow_push()
        yield
        self.follow_push()

    def complete(self) -> None:
        """Completes a change that was cut off, if there is one."""
        with self.unchanged():
            if self._journal.exists():
                change = Change.from_json(json.loads(self._journal.read_text(encoding="utf-8")))
                _log.warning("Completing what was cut off: %s", change)
                self._carry_out(change)
            self._history.renew_marks()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Nobody else promotes or rolls back meanwhile; may be nested."""
        if self._locks or not self._journal.parent.is_dir():
            yield
            return
        with locked(self._journal.with_suffix(".lock")):
            self._locks += 1
            try:
                yield
            finally:
                self._locks -= 1

    def _begin(
        self,
        action: Action,
        labels: tuple[str, ...],
        version: int,
        previous: int | None,
        why: str,
    ) -> Change:
        now = self._clock()
        last = max((int(change.id) for change in self._history.changes()), default=0)
        # Sorts after all others even where the clock was set back.
        number = f"{max(int(now * 1000), last + 1):015d}"
        change = Change(number, action, labels, version, previous, _this_user(), why, now)
        write_atomically(self._journal, json.dumps(asdict(change)) + "\n")
        self._carry_out(change)
        return change

    def _carry_out(self, change: Change) -> None:
        """Every step may be repeated."""
        if change.labels and change.serves is not None:
            self._move(change.labels, change.serves, leaving=change.withdrawn)
        if change.withdrawn is not None:
            if change.labels:
                # Servers that find the version gone before they have read the file again would
                # have nothing behind the label.
                self._file.wait_until_read()
            withdraw_version(self._base, change.withdrawn)
            self._history.mark_rolled_back(change)
            self.follow_push()
        self._history.record(change)
        self._journal.unlink()

    def _move(self, names: Collection[str], to: int, *, leaving: int | None) -> None:
        entry = self._file.entry()
        labels = {**entry.labels, **dict.fromkeys(names, to)}
        if labels == entry.labels:
            return
        if entry.labels:
            self._file.make_loadable(to, there=versions(self._base))
        there = [version for version in versions(self._base) if version != leaving]
        self._file.write(labels, loaded=self._worth_loading(labels, there), there=there)

    def _worth_loading(self, labels: Mapping[str, int], there: Sequence[int]) -> frozenset[int]:
        """Labelled versions, the newest, and the one that a rollback would go back to."""
        wanted = {*labels.values(), *there[-1:]}
        if STABLE in labels and (earlier := self._before(STABLE, labels[STABLE])) is not None:
            wanted.add(earlier)
        return frozenset(wanted.intersection(there))

    def _planned(self, label: str) -> tuple[int, int]:
        """The version that a rollback takes away, and the one that takes its place."""
        labels = self._file.entry().labels
        there = versions(self._base)
        if labels and label not in labels:
            held = ", ".join(f"{name} {version}" for name, version in labels.items())
            raise InputError(f"{self._file.path}: no version has the label {label}, only {held}")
        if not there:
            raise InputError(f"{self._base}: no versions yet, so nothing to roll back")
        bad = labels.get(label, there[-1])
        stable = labels.get(STABLE)
        if label != STABLE and stable is not None and stable != bad:
            return bad, stable
        target = self._before(label, bad)
        if target is None:
            raise InputError(
                f"{self._base}: there is no version before {bad} to go back to; push another one "
                "and promote it"
            )
        return bad, target

    def _before(self, label: str, version: int) -> int | None:
        """The version that had the label before, or the one below it in number, if still there."""
        there = set(versions(self._base)) - {version}
        for change in reversed(self._history.changes()):
            if label in change.labels and change.serves in there:
                return change.serves
        return max((number for number in there if number < version), default=None)

    def _no_such_version(self, version: int, there: list[int]) -> str:
        if version in rolled_back_versions(self._base):
            for change in self._history.changes():
                if change.action == "rollback" and change.version == version:
                    return f"{change}; it does not come back: push another model"
        known = f"there are {', '.join(map(str, there))}" if there else "there are none yet"
        return f"{self._base}: no version {version}; {known}"


def _this_user() -> str:
    """User and host, for the history."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
