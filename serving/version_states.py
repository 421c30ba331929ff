"""What has become of each version of a model."""

import enum
from dataclasses import dataclass
from typing import Final

from serving.errors import Code

_REMEMBERED: Final = 100


class State(enum.IntEnum):
    """Where a version is in its life; the numbers are those of `ModelVersionStatus.State`."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """State of a version; `code` and `message` say why one that could not be loaded ended."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


class VersionStates:
    """The last state of each version; of those that ended, only the newest are remembered."""

    def __init__(self) -> None:
        self._states: dict[int, VersionStatus] = {}

    def set(self, version: int, state: State, *, code: Code = Code.OK, message: str = "") -> None:
        """Notes the state of a version."""
        self._states[version] = VersionStatus(version, state, code, message)
        ended = sorted(v for v, status in self._states.items() if status.state is State.END)
        for old in ended[:-_REMEMBERED]:
            del self._states[old]

    def of(self, version: int | None = None) -> list[VersionStatus]:
        """All states, newest version first, or the one asked for; empty where there is none."""
        if version is not None:
            return [self._states[version]] if version in self._states else []
        return [self._states[known] for known in sorted(self._states, reverse=True)]
