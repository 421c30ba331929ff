"""Keeps the right versions of a model loaded, without a moment in which none is."""

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from serving.errors import Code, ServingError
from serving.saved_model.versions import version_folders
from serving.server.batching import BatchingOptions, BatchScheduler
from serving.server.loaded_version import LoadedVersion, load_version

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


@dataclass(frozen=True)
class Latest:
    """The highest `count` versions (TF Serving's default, with 1)."""

    count: int = 1

    def choose(self, versions: Collection[int]) -> set[int]:
        """Those of `versions` that should be served."""
        return set(sorted(versions)[-self.count :])


@dataclass(frozen=True)
class All:
    """Every version there is."""

    def choose(self, versions: Collection[int]) -> set[int]:
        """All of `versions`."""
        return set(versions)


@dataclass(frozen=True)
class Specific:
    """These versions, as far as they are there."""

    wanted: frozenset[int]

    def choose(self, versions: Collection[int]) -> set[int]:
        """Those of `versions` that should be served."""
        return set(versions) & self.wanted


Policy = Latest | All | Specific


Fingerprint = tuple[tuple[str, int, int], ...]


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


_log = logging.getLogger(__name__)

BatchWatch = Callable[[str, int, int, float], None]  # signature, rows, rows of padding, seconds


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

    policy: Policy = field(default_factory=Latest)
    poll_seconds: float = 1.0
    labels: Mapping[str, int] = field(default_factory=dict)
    warmup: bool = True
    batching: BatchingOptions = field(default_factory=BatchingOptions)


class VersionManager:
    """A thread that polls the base path, loads what is wanted and unloads what is not.

    A new version is loaded and warmed up first and only then answers; the one it replaces is
    unloaded once no label points to it and its last request has ended. A version that cannot be
    loaded ends with an error in its status, the others go on; it is tried again when its files
    change. While the base path cannot be read, everything stays as it is.

    Args:
      name: of the model, for messages.
      base_path: folder of the version folders.
      options: see `HostOptions`.
      scheduler: the threads in which versions run.
      watch: told of each batch.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        options: HostOptions,
        scheduler: BatchScheduler,
        watch: BatchWatch,
    ) -> None:
        self.name = name
        self.base_path = base_path
        self.options = options
        self._scheduler = scheduler
        self._watch = watch
        # Guards everything below; notified when a version comes, goes or fails.
        self._changed = threading.Condition()
        self._loaded: dict[int, LoadedVersion] = {}
        self._draining: list[LoadedVersion] = []
        self._states = VersionStates()
        self._failed: dict[int, Fingerprint] = {}
        self._settled = False
        self._closing = False
        self._thread = threading.Thread(target=self._manage, name=f"versions-{name}", daemon=True)

    def start(self) -> None:
        """Begins to poll; returns at once."""
        self._thread.start()

    def update(self, options: HostOptions) -> None:
        """Changes policy or labels; takes effect at once, loading excepted."""
        with self._changed:
            self.options = options
            self._settled = False
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses new requests, finishes those under way and unloads every version."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def wait_available(self, timeout: float | None) -> bool:
        """Whether a version is AVAILABLE before `timeout` seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._loaded) or self._closing, timeout)
            return bool(self._loaded)

    def wait_settled(self, timeout: float | None) -> bool:
        """Whether every version asked for has been loaded, or has failed, within `timeout`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._settled or self._closing, timeout)

    def states(self, version: int | None = None) -> list[VersionStatus]:
        """States, newest version first, or the one asked for; empty where there is none."""
        with self._changed:
            return self._states.of(version)

    def acquire(self, version: int | None, label: str | None) -> LoadedVersion:
        """A loaded version that is not unloaded before `release`; the newest unless asked for.

        Raises:
          ServingError: NOT_FOUND: it is not loaded; INVALID_ARGUMENT: there is no such label;
            UNAVAILABLE: everything is being unloaded.
        """
        with self._changed:
            if self._closing:
                raise ServingError(Code.UNAVAILABLE, "The server is shutting down")
            if label is not None:
                if label not in self.options.labels:
                    raise ServingError(
                        Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
                    )
                version = self.options.labels[label]
            chosen = max(self._loaded, default=None) if version is None else version
            if chosen is None or chosen not in self._loaded:
                raise not_found(self.name, version)
            served = self._loaded[chosen]
            served.requests += 1
            return served

    def release(self, served: LoadedVersion) -> None:
        """Ends what `acquire` began."""
        with self._changed:
            served.requests -= 1
            if not served.requests and served in self._draining:
                self._changed.notify_all()

    def _manage(self) -> None:
        while True:
            again = False
            try:
                self._poll()
                self._unload_drained()
                again = not self._settled
            except Exception:
                # The serving versions must outlive whatever the file system comes up with.
                _log.exception("%s: looking for versions failed", self.name)
            with self._changed:
                if self._closing:
                    break
                # A version to unload, an update or the end interrupts the wait.
                if not again:
                    self._changed.wait(self.options.poll_seconds)
        self._unload_all()

    def _poll(self) -> None:
        options = self.options
        try:
            folders = version_folders(self.base_path)
        except OSError as error:
            if not self._settled:
                _log.warning("%s: cannot read %s: %s", self.name, self.base_path, error)
            self._settle(options)
            return
        if not folders and not self._settled:
            _log.warning("%s: no versions under %s", self.name, self.base_path)
        wanted = options.policy.choose(folders)
        for version in self._failed.keys() - wanted:
            del self._failed[version]
        to_load = [
            version
            for version in sorted(wanted - self._loaded.keys())
            if self._failed.get(version) != fingerprint(folders[version])
        ]
        # All at once, as TF Serving announces them, then one after the other.
        with self._changed:
            for version in to_load:
                self._states.set(version, State.START)
        for version in to_load:
            if self._closing:
                return
            self._load(version, folders[version], options)
        # A version goes after the label that points to it, not before: a reload moves labels last.
        labelled = folders.keys() & set(options.labels.values())
        with self._changed:
            self._drop_unwanted(wanted | labelled)
        self._settle(options)

    def _settle(self, options: HostOptions) -> None:
        with self._changed:
            self._settled = options is self.options
            self._changed.notify_all()

    def _load(self, version: int, folder: Path, options: HostOptions) -> None:
        with self._changed:
            self._states.set(version, State.LOADING)
        # Taken before the load: files that change meanwhile are reason enough to try again.
        before = fingerprint(folder)
        begin = time.monotonic()
        try:
            served = load_version(
                folder,
                version,
                scheduler=self._scheduler,
                batching=options.batching,
                warmup=options.warmup,
                watch=self._watch,
            )
        except Exception as error:
            code, message = _load_error(error, folder)
            _log.error("%s: version %d cannot be served: %s", self.name, version, message)
            with self._changed:
                self._failed[version] = before
                self._states.set(version, State.END, code=code, message=message)
                self._changed.notify_all()
            return
        _log.info(
            "%s: version %d is available after %.1f s (%d warm-up requests)",
            self.name,
            version,
            time.monotonic() - begin,
            served.warmup_requests,
        )
        with self._changed:
            self._failed.pop(version, None)
            self._loaded[version] = served
            self._states.set(version, State.AVAILABLE)
            self._changed.notify_all()

    def _drop_unwanted(self, wanted: set[int]) -> None:
        """Stops serving what is not wanted; under the lock.

        While nothing that is wanted can be served, the old versions are better than none.
        """
        if wanted and not wanted & self._loaded.keys():
            return
        for version in sorted(self._loaded.keys() - wanted):
            self._draining.append(self._loaded.pop(version))
            self._states.set(version, State.UNLOADING)

    def _unload_drained(self) -> None:
        with self._changed:
            drained = [served for served in self._draining if not served.requests]
            self._draining = [served for served in self._draining if served.requests]
        for served in drained:
            served.unload()
            _log.info("%s: version %d is unloaded", self.name, served.version)
            with self._changed:
                self._states.set(served.version, State.END)
                self._changed.notify_all()

    def _unload_all(self) -> None:
        with self._changed:
            self._drop_unwanted(set())
            self._changed.notify_all()
        while True:
            self._unload_drained()
            with self._changed:
                if not self._draining:
                    return
                self._changed.wait_for(lambda: any(not s.requests for s in self._draining))


def not_found(name: str, version: int | None = None) -> ServingError:
    """TF Serving's answer to a model or version that it does not serve."""
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")


def _load_error(error: Exception, folder: Path) -> tuple[Code, str]:
    """For the status, without the server's paths."""
    code = Code.UNKNOWN
    if isinstance(error, ServingError):
        code = error.code
    elif isinstance(error, FileNotFoundError):
        code = Code.NOT_FOUND
    elif isinstance(number := getattr(error, "error_code", None), int) and 0 < number <= 16:
        code = Code(number)
    text = getattr(error, "message", "") or str(error) or type(error).__name__
    return code, text.replace(str(folder.parent) + os.sep, "")
