"""How runs and retrainings end: the word, the exit code, and who is told."""

from enum import Enum, IntEnum

from pipeline.settings import Event


class ExitCode(IntEnum):
    """Exit codes of `oneshot`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Wrong usage, configuration or data."""
    NOT_BLESSED = 3
    """Finished, but what is served stays: the model is not blessed, or the span drifted."""
    DIFFERENT = 4
    """`gallery verify`: not the same."""
    HUNG_UP = 129
    """By SIGHUP: the terminal or the session was closed; 128 + SIGHUP."""
    INTERRUPTED = 130
    """By Ctrl-C, as shells have it: 128 + SIGINT."""
    TERMINATED = 143
    """By SIGTERM, as schedulers and containers end a command: 128 + SIGTERM."""


class Status(str, Enum):
    """What became of a run or a retraining, as the history and `--json` write it.

    Attributes:
      exit_code: of the command that ended so.
      event: what people are told, if anything; `blessed` and `not_blessed` of whole runs only.
      retry: whether the same try may end otherwise the next time.
    """

    exit_code: ExitCode
    event: Event | None
    retry: bool

    DONE = "done", ExitCode.DONE, "blessed"
    NOT_BLESSED = "not_blessed", ExitCode.NOT_BLESSED, "not_blessed"
    NOTHING_NEW = "nothing_new", ExitCode.DONE
    ALREADY_TRAINED = "already_trained", ExitCode.DONE
    SKIPPED = "skipped", ExitCode.DONE  # no drift, with retrain.trigger: drift
    BUSY = "busy", ExitCode.DONE  # another command holds the lease
    BLOCKED = "blocked", ExitCode.NOT_BLESSED, "drift"  # with drift.action: block
    REFUSED = "refused", ExitCode.USAGE, "failed"  # configuration or data cannot be used
    FAILED = "failed", ExitCode.FAILED, "failed", True
    TIMEOUT = "timeout", ExitCode.FAILED, "failed"
    REPLACED = "replaced", ExitCode.FAILED  # by another retraining, with --overrun replace
    INTERRUPTED = "interrupted", ExitCode.INTERRUPTED  # by Ctrl-C or another signal
    RUNNING = "running", ExitCode.FAILED  # has not ended

    def __new__(
        cls,
        word: str,
        exit_code: ExitCode = ExitCode.FAILED,
        event: Event | None = None,
        retry: bool = False,
    ) -> "Status":
        status = str.__new__(cls, word)
        status._value_ = word
        status.exit_code, status.event, status.retry = exit_code, event, retry
        return status

    @classmethod
    def _missing_(cls, value: object) -> "Status | None":
        """Earlier releases wrote `not blessed` for `not_blessed`."""
        word = str(value).replace(" ", "_")
        return next((status for status in cls if status.value == word), None)

    def __str__(self) -> str:
        return str.__str__(self)

    @property
    def text(self) -> str:
        """For people: `not blessed`."""
        return str(self).replace("_", " ")

    @property
    def something_happened(self) -> bool:
        """Whether whoever is responsible wants to know of it."""
        return self is Status.DONE or self.exit_code is not ExitCode.DONE
