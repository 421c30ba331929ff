"""The constructor and the methods that all clients share.

A blocking client runs the coroutines of `Calls` over a wire that blocks. They never suspend, and so
need neither an event loop nor a thread: whichever thread calls also encodes, sends and waits.
"""

import abc
import copy
import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from serving.client.calls import BlockingWire, Calls, Wire
from serving.client.types import Limits, Retries, Target, Tls

DEFAULT_MODEL: Final = "siamese"
DEFAULT_LIMITS: Final = Limits()
DEFAULT_RETRIES: Final = Retries()
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Self = TypeVar("Self", bound="_Client")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Client(abc.ABC):
    """A client, which connects with the first request.

    Attributes:
      model: its name on the server.
      version: pins a version; None is the newest.
      label: pins what the server's configuration calls so, for example 'stable'.
      token: sent as `Authorization: Bearer`.
      tls: certificates, for `https://`; over gRPC any makes the channel a TLS channel, and `Tls()`
        trusts the well-known authorities.
      timeout: seconds that a call may take, retries and all chunks included.
      limits: how much goes into one request.
      retries: when to try again.

    Raises:
      ValueError: the address, the pin or the certificates make no sense.
    """

    model: str = DEFAULT_MODEL
    version: int | None = None
    label: str | None = None
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    timeout: float = 10.0
    limits: Limits = DEFAULT_LIMITS
    retries: Retries = DEFAULT_RETRIES
    _calls: Calls = field(init=False, repr=False)
    _owner: bool = field(init=False, repr=False, default=True)

    def __post_init__(self) -> None:
        target = Target(self.model, version=self.version, label=self.label)
        calls = Calls(self._connect(), target, self.limits, self.retries, self.timeout)
        object.__setattr__(self, "_calls", calls)

    @abc.abstractmethod
    def _connect(self) -> Wire: ...

    @property
    def target(self) -> Target:
        """The model, and the version or label that requests are pinned to."""
        return self._calls.target

    def pinned(self: Self, *, version: int | None = None, label: str | None = None) -> Self:
        """The same client, on the same connections, for one version or label.

        Vectors of different versions must never be compared. Who stores vectors pins the version
        that made them. Close the client itself: closing what this returns does nothing.
        """
        target = Target(self.model, version=version, label=label)
        pinned = copy.copy(self)
        vars(pinned).update(
            version=version, label=label, _calls=replace(self._calls, target=target), _owner=False
        )
        return pinned


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What a coroutine returns that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise RuntimeError("a blocking wire has suspended a call")


def _blocking(
    call: Callable[Concatenate[Calls, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["BlockingClient", Parameters], Result]:
    @functools.wraps(call)
    def method(
        self: "BlockingClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        return _run(call(self._calls, *args, **kwargs))

    return method


def _awaited(
    call: Callable[Concatenate[Calls, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["AwaitingClient", Parameters], Coroutine[Any, Any, Result]]:
    @functools.wraps(call)
    async def method(
        self: "AwaitingClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        return await call(self._calls, *args, **kwargs)

    return method


class BlockingClient(_Client):
    """A client whose calls return when they are answered. Threads may share it."""

    score = _blocking(Calls.score)
    embed = _blocking(Calls.embed)
    match = _blocking(Calls.match)
    status = _blocking(Calls.status)
    wait_ready = _blocking(Calls.wait_ready)

    @abc.abstractmethod
    def _connect(self) -> BlockingWire: ...

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        if self._owner:
            _run(self._calls.wire.close())

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AwaitingClient(_Client):
    """A client for asyncio. Its methods are those of `BlockingClient`, to be awaited."""

    score = _awaited(Calls.score)
    embed = _awaited(Calls.embed)
    match = _awaited(Calls.match)
    status = _awaited(Calls.status)
    wait_ready = _awaited(Calls.wait_ready)

    async def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        if self._owner:
            await self._calls.wire.close()

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
