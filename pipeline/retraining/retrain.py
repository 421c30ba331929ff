"""Does one retraining, from the choice of the span to the promoted label."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from ml_metadata import MetadataStore
from ml_metadata.errors import StatusError

from data_ingest.errors import InputError
from data_ingest.sources.dataset import Dataset
from data_ingest.spans.span import Span
from data_ingest.spans.store import SpanStore
from pipeline.config import PipelineConfig
from pipeline.releases.promotion import Promotions
from pipeline.retraining.job import Child, Job
from pipeline.retraining.notify import Notice, Notifier
from pipeline.retraining.outcome import Outcome
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.lease import Hold, Lease, LeaseBusyError, LeaseLostError
from pipeline.runs.metadata_store import MetadataLocation
from pipeline.runs.processes import why_stopped
from pipeline.runs.status import Status
from pipeline.runs.workspace import Workspace, new_run_id
from pipeline.settings import Stage

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.2
_FAILURES: Final = (InputError, RuntimeError, OSError, StatusError)


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Attributes:
      span: number of the span; None: the newest that is not yet trained on.
      stage: how far to go.
      timeout_seconds: for all tries together, pauses and all.
      overrun: what to do if another retraining is under way: skip this one, or replace that one.
      tell_failure: send a notice where it fails.
      quiet: nobody looks on.
      verbose: show every library's log.
    """

    span: int | None
    stage: Stage
    timeout_seconds: float
    overrun: Literal["skip", "replace"]
    tell_failure: bool = True
    quiet: bool = False
    verbose: bool = False


def retrain(
    config: PipelineConfig,
    workspace: Workspace,
    metadata: MetadataLocation,
    request: Request,
    *,
    child: Child | None = None,
) -> Outcome:
    """Trains on what has arrived, if anything has and nobody else does; `child` does the work.

    What goes wrong is in the outcome, and people are told of it wherever they can be.
    """
    deadline = time.monotonic() + request.timeout_seconds
    run_id = new_run_id()
    worker = child or Child()

    def end(reason: str) -> None:
        _log.critical("%s; ending the training at once", reason)
        worker.end()

    lease = metadata.lease(ttl=config.retrain.lease_seconds)
    try:
        with _held(lease, run_id, request, end) as hold:
            retraining = _Retraining(config, workspace, metadata, request, hold, worker, deadline)
            return retraining.run(run_id)
    except LeaseBusyError as busy:
        return Outcome(Status.BUSY, error=f"{busy.holder} is under way")
    except _FAILURES as error:
        return _failed(request, error)


def _failed(request: Request, error: Exception) -> Outcome:
    refused = isinstance(error, InputError)
    return Outcome(Status.REFUSED if refused else Status.FAILED, request.span, error=str(error))


def _held(lease: Lease, run_id: str, request: Request, on_lost: Callable[[str], None]) -> Hold:
    """The lease, from another retraining if that is to be replaced."""
    holder = lease.holder()
    if request.overrun == "replace" and holder is not None and holder.command == "retrain":
        _log.info("Replacing %s", holder)
        lease.ask_to_stop(holder, wanted_by=run_id)
        deadline = time.monotonic() + 2 * lease.ttl
        while (found := lease.holder()) is not None and found.owner == holder.owner:
            if time.monotonic() > deadline:
                raise LeaseBusyError(found)
            time.sleep(_LOOK_SECONDS)
    return lease.held(run_id=run_id, command="retrain", on_lost=on_lost)


@dataclass(frozen=True)
class Choice:
    """A span to train for.

    Attributes:
      span: its number; None where there is nothing to train on.
      window: numbers of the spans that are trained on, ascending.
      earlier: the newest whole run for this span; None if there is none, and it is to be trained.
      begun: whether a stage of it has been done.
    """

    span: int | None
    window: tuple[int, ...] = ()
    earlier: RunRecord | None = None
    begun: bool = False


def choose(
    spans: Sequence[Span], runs: Sequence[RunRecord], *, asked: int | None, length: int
) -> Choice:
    """Chooses the span that was asked for, or the newest if nothing is known of it yet.

    Older spans than the newest are never chosen unasked: its window holds them, and a model of
    older images would take the place of one of newer images.

    Args:
      spans: all that have landed, ascending.
      runs: the history, the newest first.
      asked: number of the span; None: the newest that is not yet trained on.
      length: how many spans are trained on; 0: all.
    """
    usable = [span.number for span in spans if span.excluded is None]
    number = asked if asked is not None else max(usable, default=None)
    if number is None:
        return Choice(None)
    of_span = [run for run in runs if run.span == number]
    whole = next((run for run in of_span if run.is_whole), None)
    skipped = any(run.state == Status.SKIPPED for run in of_span)
    if asked is None and (whole is not None or skipped):
        return Choice(None, earlier=whole)
    window = [other for other in usable if other <= number]
    begun = any(run.state == Status.DONE for run in of_span)
    return Choice(number, tuple(window[-length:] if length else window), whole, begun)


def _ended(run: RunRecord, state: Status, error: str) -> RunRecord:
    return replace(run, state=state, error=error[:1000], seconds=time.time() - run.started)


class _StoppedError(RuntimeError):
    """The retraining was ended before it was done."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class _Retraining:
    """One retraining under the lease."""

    config: PipelineConfig
    workspace: Workspace
    metadata: MetadataLocation
    request: Request
    hold: Hold
    child: Child
    deadline: float

    def __post_init__(self) -> None:
        self._history = RunHistory(self.metadata.connection())
        self._notifier = Notifier(self.config.notify)

    def run(self, run_id: str) -> Outcome:
        try:
            outcome = self._outcome(run_id)
        except _FAILURES as error:
            outcome = _failed(self.request, error)
        title = f"{self.config.pipeline_name}: {outcome}"
        for event in outcome.events():
            if event != "failed" or self.request.tell_failure:
                self._notifier.send(Notice(event, title, outcome.document()))
        return outcome

    def _outcome(self, run_id: str) -> Outcome:
        self._history.close_interrupted(self.workspace.artifacts)
        store = SpanStore(self.workspace.spans)
        choice = choose(
            store.spans(),
            self._history.runs(),
            asked=self.request.span,
            length=self.config.retrain.window,
        )
        # It may have been cut off between its push and its promotion.
        earlier = choice.earlier and self._promote(choice.earlier)
        if choice.span is None:
            return Outcome(Status.NOTHING_NEW, run=earlier)
        if earlier is not None:
            return Outcome(Status.ALREADY_TRAINED, choice.span, earlier)
        dataset = store.window(choice.span, self.config.retrain.window, self.config.dataset.kind)
        return self._try_often(run_id, choice, dataset)

    def _try_often(self, run_id: str, choice: Choice, dataset: Dataset) -> Outcome:
        settings = self.config.retrain
        run = RunRecord(
            run_id=run_id,
            state=Status.RUNNING,
            started=time.time(),
            dataset=dataset.source,
            command="retrain",
            stage=self.request.stage,
            span=choice.span,
            window=choice.window,
            trigger="new" if self.request.span is None else "span",
            label=settings.label or "",
        )
        while True:
            try:
                ended = self._try(run, dataset, check_drift=not choice.begun)
                # Interrupted though the lease is held: by its guard, who could not ask in time.
                failed = ended.status is not Status.INTERRUPTED
                if failed and (not ended.status.retry or run.attempt == settings.attempts):
                    break
                self._record(run, ended.status, ended.error)
                self._pause(run.attempt, ended)
            except _StoppedError as stopped:
                run = self._record(run, stopped.status, str(stopped))
                return Outcome(stopped.status, choice.span, run, str(stopped))
            except LeaseLostError as lost:
                # The history is another's to write.
                run = _ended(run, Status.FAILED, str(lost))
                return Outcome(Status.FAILED, choice.span, run, str(lost))
            except BaseException as error:
                if not self.hold.lost:
                    self._record(run, Status.INTERRUPTED, why_stopped(error))
                raise
            attempt = run.attempt + failed
            run = replace(run, run_id=new_run_id(), started=time.time(), attempt=attempt)
            self.hold.set_run_id(run.run_id)
        run = ended.run or run
        if ended.status is not Status.DONE:
            run = self._record(run, ended.status, ended.error)
            return Outcome(ended.status, run.span, run, ended.error)
        run = self._promote(run)
        return Outcome(Status.NOT_BLESSED if run.blessed is False else Status.DONE, run.span, run)

    def _try(self, run: RunRecord, dataset: Dataset, *, check_drift: bool) -> Outcome:
        job = Job(
            config=self.config,
            dataset=dataset,
            output=self.workspace.root,
            metadata_url=self.metadata.secret_url,
            run=run,
            token=self.hold.token,
            check_drift=check_drift,
            verbose=self.request.verbose,
        )
        ended = self.child.run(
            job,
            log_file=self.workspace.run_dir(run.run_id) / "run.log",
            quiet=self.request.quiet,
            on_start=self.hold.set_worker,
            check=self._check,
        )
        # What it came to is another's to note, or to promote, if the lease is.
        self._check_lease()
        if ended.status is Status.INTERRUPTED:
            # Its guard may have learnt of it first.
            self.hold.check()
        return ended

    def _promote(self, run: RunRecord) -> RunRecord:
        """Moves the label to what a run pushed, unless that was done when it ended."""
        if run.pushed_version is None or not run.label or run.promoted:
            return run
        store = MetadataStore(self.metadata.connection())
        promotions = Promotions(self.workspace, store, settings=self.config.push)
        try:
            promotions.promote(run.pushed_version, run.label, why=f"retraining {run.run_id}")
        except InputError as error:
            # Cut off between its push and its promotion, and rolled back or removed since.
            _log.warning("Not promoted: %s", error)
            run = replace(run, label="")
        else:
            run = replace(run, promoted=True)
        self._history.record(run)
        return run

    def _record(self, run: RunRecord, state: Status, error: str) -> RunRecord:
        """Notes how a try ended, unless it has noted itself that it was done."""
        self._history.close_interrupted(self.workspace.artifacts)
        for known in self._history.runs():
            if known.run_id == run.run_id and known.state == Status.DONE:
                return known
        ended = _ended(run, state, error)
        self._history.record(ended)
        return ended

    def _pause(self, tried: int, ended: Outcome) -> None:
        """Waits before the next try, longer after each that counts."""
        settings = self.config.retrain
        seconds = settings.backoff_seconds * 2 ** (tried - 1)
        told = f"Try {tried} of {settings.attempts}: {ended.status}, {ended.error.splitlines()[0]}"
        _log.warning("%s. The next one begins in %.0f s", told, seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            time.sleep(min(_LOOK_SECONDS, seconds))

    def _check(self) -> None:
        """Raises _StoppedError where it is time to stop, LeaseLostError where it is over."""
        self._check_lease()
        if self.hold.wanted_by:
            raise _StoppedError(Status.REPLACED, f"replaced by run {self.hold.wanted_by}")
        if time.monotonic() > self.deadline:
            seconds = self.request.timeout_seconds
            raise _StoppedError(Status.TIMEOUT, f"not done after {seconds:.0f} s (--timeout)")

    def _check_lease(self) -> None:
        if reason := self.hold.lost:
            raise LeaseLostError(f"{reason}; another host may be at work")
