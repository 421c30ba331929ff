"""Which versions of a model there are, which of them are wanted, and the state of each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from tensorflow_serving.apis import get_model_status_pb2

from serving.errors import Code, ServingError
from serving.server.batching import BatchingOptions

_REMEMBERED: Final = 100

VersionStatus: TypeAlias = get_model_status_pb2.ModelVersionStatus
State = VersionStatus.State
"""Where a version is in its life: START, LOADING, AVAILABLE, UNLOADING, END."""

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Policy:
    """Which of the versions that are there should be served.

    Attributes:
      latest: so many of the highest (TF Serving's default, with 1); None: all.
      specific: these instead, as far as they are there.
    """

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def choose(self, versions: Collection[int]) -> set[int]:
        """Those of `versions` that should be served."""
        if self.specific is not None:
            return set(self.specific.intersection(versions))
        return set(sorted(versions)[-self.latest :] if self.latest else versions)


@dataclass(frozen=True)
class HostOptions:
    """How a model's versions are found and served.

    Attributes:
      policy: which of the versions under the base path are served.
      poll_seconds: between two looks at the base path.
      labels: version by label. A label answers as soon as its version is loaded.
      warmup: whether warm-up requests are replayed before a version is served.
      batching: how requests are merged.
    """

    policy: Policy = field(default_factory=Policy)
    poll_seconds: float = 1.0
    labels: Mapping[str, int] = field(default_factory=dict)
    warmup: bool = True
    batching: BatchingOptions = field(default_factory=BatchingOptions)


class VersionStates:
    """The last state of each version; of those that ended, only the newest are remembered."""

    def __init__(self) -> None:
        self._states: dict[int, VersionStatus] = {}

    def set(self, version: int, state: int, *, code: Code = Code.OK, message: str = "") -> None:
        """Notes the state of a version; `code` and `message` say why one that failed ended."""
        why = {"error_code": int(code), "error_message": message}
        self._states[version] = VersionStatus(version=version, state=state, status=why)
        ended = sorted(v for v, known in self._states.items() if known.state == State.END)
        for old in ended[:-_REMEMBERED]:
            del self._states[old]

    def of(self, version: int | None = None) -> list[VersionStatus]:
        """All states, newest version first, or the one asked for; empty where there is none."""
        return [self._states[v] for v in sorted(self._states, reverse=True) if version in (None, v)]


def fingerprint(folder: Path) -> Fingerprint:
    """Path, size and time of each file: changes while a version is still being copied.

    An unreadable or vanished folder has the fingerprint ().
    """
    try:
        return tuple(
            sorted(
                (str(path.relative_to(folder)), (stat := path.stat()).st_size, stat.st_mtime_ns)
                for path in folder.rglob("*")
                if path.is_file()
            )
        )
    except OSError:
        return ()


def not_found(name: str, version: int | None = None) -> ServingError:
    """TF Serving's answer to a request for a model or version that it does not serve."""
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")


def never_seen(name: str, version: int | None = None) -> ServingError:
    """TF Serving's answer to a question for the status of a model or version it never had."""
    which = "any versions" if version is None else f"version {version}"
    return ServingError(Code.NOT_FOUND, f"Could not find {which} of model {name}")


def unknown_label(label: str) -> ServingError:
    """TF Serving's answer to a label that nothing has."""
    message = f"Unrecognized servable version label: {label}"
    return ServingError(Code.INVALID_ARGUMENT, message)
