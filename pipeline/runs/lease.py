"""Lets one run at a time work, among all processes and hosts that share a folder or a database.

Whoever works holds a lease: who it is, and until when. It is renewed while the work goes on, and
free once it has expired; that of a process that died on the same host is free at once. Whoever
loses it, because the network or the host stood still for too long, stops at once.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from data_ingest.errors import InputError
from pipeline.runs.lease_store import DatabaseLeaseStore, FileLeaseStore, LeaseStoreError
from pipeline.runs.processes import Process, end
from pipeline.settings import RetrainSettings

_log = logging.getLogger(__name__)
DEFAULT_TTL: Final = RetrainSettings().lease_seconds
_POLL_SECONDS: Final = 5.0
_MARGIN: Final = 0.2
"""Share of a lease's term that is left for ending: another may take over when it has expired."""
_DEATH_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Holder:
    """What is written in a lease. Times are seconds since 1970 by the store's clock."""

    owner: Process
    run_id: str
    command: str
    since: float
    expires: float
    worker: Process | None = None
    """The child that does the work, leader of a process group of its own."""
    wanted_by: str = ""
    """Who asked the owner to stop; empty if nobody did."""

    def __str__(self) -> str:
        host = self.owner.host.partition(" ")[0]
        return f"`oneshot {self.command}` {self.run_id} (process {self.owner.pid} on {host})"


_Content = tuple[int, Holder | None]
"""What is written: the token of the last holder, and who that is until the lease is given back."""


class LeaseBusyError(RuntimeError):
    """Another run holds the lease."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(
            f"{holder} is using this output folder or its metadata; wait for it, or give this one "
            "another --output"
        )
        self.holder = holder


class LeaseLostError(RuntimeError):
    """The lease expired, or is another's: whatever it guarded must stop."""


def exit_at_once(reason: str) -> None:
    """Ends this process as kill -9 would: nothing may be written any more."""
    _log.critical("%s; stopping at once", reason)
    logging.shutdown()
    os._exit(1)


class Lease:
    """The lease in one store. Every method raises LeaseStoreError if the store does not answer.

    An InputError says that the store cannot hold a lease, or holds something else.
    """

    def __init__(
        self, store: FileLeaseStore | DatabaseLeaseStore, *, ttl: float = DEFAULT_TTL
    ) -> None:
        """Touches nothing yet; `ttl` seconds after its last renewal the lease is free."""
        self._store = store
        self.ttl = ttl

    def holder(self) -> Holder | None:
        """Who holds it at this moment."""
        _, holder, now = self._read()
        return None if holder is None or _is_free(holder, now) else holder

    def check(self, token: int) -> float:
        """For how many seconds the holder with this token still has the lease.

        Raises:
          LeaseLostError: it has not.
        """
        current, holder, now = self._read()
        if holder is None or current != token:
            raise LeaseLostError(f"the lease was taken over by {holder or 'another run'}")
        if now >= holder.expires:
            raise LeaseLostError("the lease has expired: it was not renewed in time")
        return holder.expires - now

    def ask_to_stop(self, asked: Holder, *, wanted_by: str) -> None:
        """Asks a holder, if it still is the one, to end its work and let go."""

        def ask(token: int, holder: Holder | None, _now: float) -> _Content | None:
            if holder is None or holder.owner != asked.owner:
                return None
            return token, replace(holder, wanted_by=wanted_by)

        self.change(ask)

    def held(
        self, *, run_id: str, command: str, on_lost: Callable[[str], None] = exit_at_once
    ) -> "Hold":
        """A context in which the lease is held, and renewed in the background.

        Args:
          run_id: what is done under it, for others to read.
          command: the `oneshot` command.
          on_lost: called in another thread, with the reason, at the moment the lease is lost.

        Raises:
          LeaseBusyError: another holds it when the context begins.
        """
        return Hold(self, run_id, command, on_lost)

    def change(self, change: Callable[[int, Holder | None, float], _Content | None]) -> None:
        """Changes token and holder, by the store's time, as `lease_store.Change` has it."""

        def rewrite(text: str, now: float) -> str | None:
            changed = change(*_parse(text), now)
            return None if changed is None else _format(*changed)

        self._store.update(rewrite)

    def _read(self) -> tuple[int, Holder | None, float]:
        """Token, who is written there, and the store's time."""
        found: list[tuple[int, Holder | None, float]] = []
        self.change(lambda *read: found.append(read))
        return found[0]


class Hold:
    """A lease while it is held. Every method raises LeaseStoreError if the store does not answer.

    Attributes:
      token: rises with every holder; what is done under a lower one is out of date.
      wanted_by: who asked for the lease; empty if nobody did.
    """

    def __init__(
        self, lease: Lease, run_id: str, command: str, on_lost: Callable[[str], None]
    ) -> None:
        """Touches nothing yet; for the arguments see `Lease.held`."""
        self._lease = lease
        self._owner = Process.this()
        self._work = run_id, command
        self._watch = Watch(ask=self._renew, ttl=lease.ttl, on_lost=on_lost)
        self.token = 0
        self.wanted_by = ""

    def __enter__(self) -> "Hold":
        def take(token: int, holder: Holder | None, now: float) -> _Content:
            if holder is not None:
                if not _is_free(holder, now):
                    raise LeaseBusyError(holder)
                _end_remains(holder)
            self.token = token + 1
            return self.token, Holder(self._owner, *self._work, now, now + self._lease.ttl)

        self._lease.change(take)
        self._watch.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Lets go; a lease that is another's by now is left alone."""
        self._watch.end()
        try:
            self._lease.change(
                lambda token, holder, _now: (token, None) if self._is_ours(token, holder) else None
            )
        except (LeaseStoreError, InputError) as error:
            _log.warning("the lease could not be given back and will expire: %s", error)

    @property
    def lost(self) -> str:
        """Why the lease is lost, or may be since nobody could renew it in time; empty if held."""
        return self._watch.lost

    def check(self) -> None:
        """Asks the store whether the lease is still this process's.

        Raises:
          LeaseLostError: it is not.
        """
        self._lease.check(self.token)

    def set_worker(self, pid: int) -> None:
        """Notes the child that does the work, so that whoever takes over can end it."""
        worker = Process.local(pid)
        self._change(lambda holder, _now: replace(holder, worker=worker))

    def set_run_id(self, run_id: str) -> None:
        """Notes another run, of the same owner, for others to read."""
        self._change(lambda holder, _now: replace(holder, run_id=run_id))

    def _renew(self) -> float:
        ttl = self._lease.ttl
        self._change(lambda holder, now: replace(holder, expires=now + ttl))
        return ttl

    def _change(self, change: Callable[[Holder, float], Holder]) -> None:
        def write(token: int, holder: Holder | None, now: float) -> _Content:
            if holder is None or not self._is_ours(token, holder):
                raise LeaseLostError(f"the lease was taken over by {holder or 'another run'}")
            self.wanted_by = holder.wanted_by
            return token, change(holder, now)

        self._lease.change(write)

    def _is_ours(self, token: int, holder: Holder | None) -> bool:
        return holder is not None and token == self.token and holder.owner == self._owner


class Watch:
    """Asks again and again how long the lease is held, and tells when it is not any more."""

    def __init__(
        self, *, ask: Callable[[], float], ttl: float, on_lost: Callable[[str], None]
    ) -> None:
        """Starts nothing yet.

        Args:
          ask: prolongs or confirms the lease, and returns for how many seconds from the moment
            it was called. Raises LeaseLostError or LeaseStoreError.
          ttl: seconds for which the lease is held after a renewal. A fifth of them before its end
            it counts as lost, whoever renews it.
          on_lost: called once, in another thread, with the reason.
        """
        self._ask = ask
        self._margin = _MARGIN * ttl
        self._on_lost = on_lost
        self._deadline = 0.0
        self._asked = _clock()  # when the last question was begun
        self._answered = True  # and whether it had an answer
        self._trouble = ""  # which was, if it was none
        self._reason = ""  # why the lease is lost
        self._told = threading.Lock()  # never released again
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def lost(self) -> str:
        """Why the lease is lost, or may be since nobody could ask in time; empty if held."""
        return self._reason or (self._why_late() if _clock() > self._deadline else "")

    def ask(self) -> None:
        """Asks once; what `ask` of the constructor raises is passed on."""
        started = _clock()
        self._asked, self._answered = started, False
        try:
            seconds = self._ask()
        except LeaseLostError as error:
            self._deadline, self._reason = 0.0, str(error)
            raise
        except (LeaseStoreError, InputError) as error:
            self._trouble = str(error)
            raise
        finally:
            self._answered = True
        self._deadline, self._trouble = started + seconds - self._margin, ""

    def start(self) -> None:
        """Asks once, and goes on in the background until `end`."""
        self.ask()
        for work in (self._ask_often, self._watch_the_time):
            thread = threading.Thread(target=work, name=f"lease-{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Asks no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask_often(self) -> None:
        while not self._ended.wait(self._pause()):
            try:
                self.ask()
            except (LeaseStoreError, InputError) as error:
                _log.warning("the lease could not be renewed: %s", error)
                # A store that fails at once is not asked without a pause.
                self._ended.wait(0.1)
            except LeaseLostError as error:
                self._lose(str(error))
                return

    def _pause(self) -> float:
        return min(max((self._deadline - _clock()) / 3, 0.01), _POLL_SECONDS)

    def _watch_the_time(self) -> None:
        """A thread of its own: a question may hang as long as a file server does."""
        while not self._ended.wait(min(max(self._deadline - _clock(), 0.01), 0.5)):
            if _clock() > self._deadline:
                self._lose(self._reason or self._why_late())
                return

    def _why_late(self) -> str:
        """What kept the lease from being renewed, as far as can be told from here."""
        silent = _clock() - self._asked
        if self._trouble:
            reason = self._trouble
        elif not self._answered:
            reason = f"its store has not answered for {silent:.0f} s"
        elif silent > self._margin:
            reason = f"this process stood still for {silent:.0f} s: stopped, or on a busy machine"
        else:
            reason = "the command that renews it stands still: stopped, or on a busy machine"
        return f"the lease was not renewed in time ({reason})"

    def _lose(self, reason: str) -> None:
        if self._told.acquire(blocking=False):
            self._reason = reason
            self._on_lost(reason)


def _clock() -> float:
    """Seconds that go on while the machine is suspended, as they do for everybody else."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_free(holder: Holder, now: float) -> bool:
    return now >= holder.expires or (holder.owner.is_here() and not holder.owner.is_alive())


def _end_remains(holder: Holder) -> None:
    """Ends what a former holder left running on this host: it no longer may.

    Raises:
      LeaseBusyError: it does not end.
    """
    owner, worker = holder.owner, holder.worker
    try:
        if worker is not None and worker.is_here():
            _log.info("Ending what is left of %s", holder)
            if not end(worker, group=True, seconds=_DEATH_SECONDS):
                raise LeaseBusyError(holder)
        if not (owner.is_here() and owner.is_alive()):
            return
        if owner == Process.this():
            raise LeaseBusyError(holder)
        _log.warning("Ending %s, which stood still until its lease was over", holder)
        if not end(owner, group=False, seconds=_DEATH_SECONDS):
            raise LeaseBusyError(holder)
    except PermissionError:
        raise LeaseBusyError(holder) from None


def _parse(text: str) -> tuple[int, Holder | None]:
    if not text:
        return 0, None
    try:
        content: dict[str, Any] = json.loads(text)
        token, holder = int(content["token"]), content["holder"]
        if holder is None:
            return token, None
        worker = holder["worker"] and Process(**holder["worker"])
        return token, Holder(**{**holder, "owner": Process(**holder["owner"]), "worker": worker})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the lease holds what no version of oneshot wrote ({error}); delete lease.json or the "
            "row in oneshot_lease once nothing runs any more"
        ) from error


def _format(token: int, holder: Holder | None) -> str:
    return json.dumps({"token": token, "holder": None if holder is None else asdict(holder)})
