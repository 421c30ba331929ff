"""One retraining from the choice of the span to the promoted label, watched all the way."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from data_ingest.dataset import Dataset
from data_ingest.span_store import SpanStore
from pipeline.config import PipelineConfig, Stage
from pipeline.history import RunHistory, RunRecord
from pipeline.lease import Hold, Lease, LeaseBusyError, LeaseLostError
from pipeline.metadata_store import MetadataLocation
from pipeline.retrain_child import Child
from pipeline.retrain_choice import Choice, choose
from pipeline.retrain_job import Job, Result
from pipeline.workspace import Workspace, new_run_id

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.2
Status = Literal[
    "done",
    "not blessed",
    "nothing new",
    "already trained",
    "busy",
    "blocked",
    "skipped",
    "failed",
    "refused",
    "timeout",
    "replaced",
]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Attributes:
      span: number of the span; None: the newest that is not yet trained on.
      stage: how far to go.
      timeout_seconds: for all tries together, pauses and all.
      overrun: what to do if another retraining is under way: skip this one, or replace that one.
      quiet: nobody looks on.
      verbose: show every library's log.
    """

    span: int | None
    stage: Stage
    timeout_seconds: float
    overrun: Literal["skip", "replace"]
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a retraining.

    Attributes:
      status: in a word; nothing was done where it is `nothing new`, `already trained` or `busy`.
      span: the span it was for; None if none was chosen.
      run: the record of its last try; of an earlier run where that was enough; None if there is
        none.
      error: what is wrong, for people; empty if nothing is.
    """

    status: Status
    span: int | None = None
    run: RunRecord | None = None
    error: str = ""

    @property
    def something_happened(self) -> bool:
        """Whether whoever is responsible wants to know of it."""
        return self.status not in ("nothing new", "already trained", "busy", "skipped")

    def __str__(self) -> str:
        """A line for people."""
        parts = [self.status if self.span is None else f"span {self.span}: {self.status}"]
        run = self.run
        if run is not None and run.is_judged:
            if run.accuracy is not None:
                parts.append(f"{run.accuracy_metric} {100 * run.accuracy:.1f} %")
            if run.pushed_version is not None:
                parts.append(f"version {run.pushed_version}")
            if run.promoted:
                parts.append(run.label)
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """For `--json` and logs."""
        run = {} if self.run is None else asdict(self.run)
        return {"status": self.status, **run, "span": self.span, "error": self.error}


class StoppedError(RuntimeError):
    """The retraining was ended before it was done."""

    def __init__(self, status: Literal["timeout", "replaced", "failed"], reason: str) -> None:
        super().__init__(reason)
        self.status: Literal["timeout", "replaced", "failed"] = status


def retrain(
    config: PipelineConfig, workspace: Workspace, metadata: MetadataLocation, request: Request
) -> Outcome:
    """Trains on what has arrived, if anything has and nobody else does.

    Raises:
      InputError: configuration or data cannot be used.
      LeaseStoreError: the lease cannot be read or written.
      OSError: the output folder cannot be written.
    """
    deadline = time.monotonic() + request.timeout_seconds
    run_id = new_run_id()
    child = Child()

    def end(reason: str) -> None:
        _LOGGER.critical("%s; ending the training at once", reason)
        child.end()

    lease = metadata.lease(ttl=config.retrain.lease_seconds)
    try:
        with _held(lease, run_id, request, config.retrain.lease_seconds, end) as hold:
            return _Retraining(
                config, workspace, metadata, request, hold=hold, child=child, deadline=deadline
            ).run(run_id)
    except LeaseBusyError as busy:
        return Outcome("busy", error=f"{busy.holder} is under way")


@contextmanager
def _held(
    lease: Lease, run_id: str, request: Request, ttl: float, on_lost: Callable[[str], None]
) -> Iterator[Hold]:
    """The lease, from another retraining if that is to be replaced."""
    holder = lease.holder()
    if request.overrun == "replace" and holder is not None and holder.command == "retrain":
        _LOGGER.info("Replacing %s", holder)
        lease.ask_to_stop(holder, wanted_by=run_id)
        deadline = time.monotonic() + 2 * ttl
        while (found := lease.holder()) is not None and found.owner == holder.owner:
            if time.monotonic() > deadline:
                raise LeaseBusyError(found)
            time.sleep(_LOOK_SECONDS)
    with lease.held(run_id=run_id, command="retrain", on_lost=on_lost) as hold:
        yield hold


class _Retraining:
    """One retraining under the lease."""

    def __init__(
        self,
        config: PipelineConfig,
        workspace: Workspace,
        metadata: MetadataLocation,
        request: Request,
        *,
        hold: Hold,
        child: Child,
        deadline: float,
    ) -> None:
        self._config = config
        self._workspace = workspace
        self._metadata = metadata
        self._request = request
        self._hold = hold
        self._child = child
        self._deadline = deadline
        self._history = RunHistory(metadata.connection())

    def run(self, run_id: str) -> Outcome:
        self._history.close_interrupted(self._workspace.artifacts)
        store = SpanStore(self._workspace.spans)
        choice = choose(
            store.spans(),
            self._history.runs(),
            asked=self._request.span,
            length=self._config.retrain.window,
        )
        if choice.earlier is not None:
            # A retraining that was cut off after its push.
            self._promote(choice.earlier)
        if choice.span is None:
            return Outcome("nothing new", run=choice.earlier)
        if choice.earlier is not None:
            return Outcome("already trained", choice.span, choice.earlier)
        dataset = store.window(choice.span, self._config.retrain.window)
        return self._tell(self._try_often(run_id, choice, dataset))

    def _try_often(self, run_id: str, choice: Choice, dataset: Dataset) -> Outcome:
        settings = self._config.retrain
        run = RunRecord(
            run_id=run_id,
            state="running",
            started=time.time(),
            dataset=dataset.kind,
            command="retrain",
            stage=self._request.stage,
            span=choice.span,
            window=choice.window,
            trigger="new" if self._request.span is None else "span",
            label=settings.label or "",
        )
        while True:
            try:
                result = self._try(run, dataset)
                if result.run is not None:
                    return self._finish(result.run)
                failed = self._record(run, "failed", result.error)
                if result.state == "refused":
                    return Outcome("refused", choice.span, failed, result.error)
                if run.attempt == settings.attempts:
                    return Outcome("failed", choice.span, failed, result.error)
                pause = settings.backoff_seconds * 2 ** (run.attempt - 1)
                _LOGGER.warning(
                    "Try %d of %d failed: %s. The next one begins in %.0f s",
                    run.attempt,
                    settings.attempts,
                    result.error.splitlines()[0],
                    pause,
                )
                self._pause(pause)
            except StoppedError as stopped:
                if not self._hold.lost:
                    run = self._record(run, stopped.status, str(stopped))
                return Outcome(stopped.status, choice.span, run, str(stopped))
            except BaseException:
                if not self._hold.lost:
                    self._record(run, "interrupted", "stopped from outside")
                raise
            run = replace(run, run_id=new_run_id(), started=time.time(), attempt=run.attempt + 1)
            self._hold.set_run_id(run.run_id)

    def _try(self, run: RunRecord, dataset: Dataset) -> Result:
        job = Job(
            config=self._config,
            dataset=dataset,
            output=self._workspace.root,
            metadata_url=self._metadata.secret_url,
            run=run,
            token=self._hold.token,
            verbose=self._request.verbose,
        )
        try:
            return self._child.run(
                job,
                log_file=self._workspace.run_dir(run.run_id) / "run.log",
                quiet=self._request.quiet,
                on_start=self._hold.set_worker,
                check=self._check,
            )
        except LeaseLostError as error:
            raise StoppedError("failed", str(error)) from error

    def _finish(self, run: RunRecord) -> Outcome:
        run = self._promote(run)
        return Outcome("not blessed" if run.blessed is False else "done", run.span, run)

    def _promote(self, run: RunRecord) -> RunRecord:
        """Moves the label to what a run pushed, unless that was done when it ended."""
        if run.pushed_version is None or not run.label or run.promoted:
            return run
        return run

    def _record(self, run: RunRecord, state: str, error: str) -> RunRecord:
        """Notes how a try ended that did not note it itself."""
        self._history.close_interrupted(self._workspace.artifacts)
        ended = replace(run, state=state, error=error[:1000], seconds=time.time() - run.started)
        self._history.record(ended)
        return ended

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            time.sleep(min(_LOOK_SECONDS, seconds))

    def _check(self) -> None:
        """Raises StoppedError where it is time to stop."""
        if self._hold.lost:
            raise StoppedError("failed", "the lease was lost; another host may be at work")
        if self._hold.wanted_by:
            raise StoppedError("replaced", f"replaced by run {self._hold.wanted_by}")
        if time.monotonic() > self._deadline:
            seconds = self._request.timeout_seconds
            raise StoppedError("timeout", f"not done after {seconds:.0f} s (--timeout)")

    def _tell(self, outcome: Outcome) -> Outcome:
        """Where people are told of the outcome."""
        return outcome
