"""What all clients share: their options, and how a request is sent, in parts and again.

A client awaits nothing but its `Wire`, so that all behave alike, whatever the protocol and whether
they block or not.
"""

import abc
import asyncio
import copy
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from data_ingest.sources.kinds import Crop
from serving.client.types import (
    Deadline,
    Floats,
    Inputs,
    InvalidRequest,
    Limits,
    Overloaded,
    Predict,
    Request,
    Retries,
    ServerError,
    Target,
    Tls,
    Unavailable,
)

DEFAULT_MODEL: Final = "siamese"
DEFAULT_LIMITS: Final = Limits()
DEFAULT_RETRIES: Final = Retries()
POLL_TIMEOUT_SECONDS: Final = 5.0

Self = TypeVar("Self", bound="BaseClient")


class Wire(abc.ABC):
    """Carries requests to a server over one protocol."""

    @abc.abstractmethod
    async def send(self, request: Request, timeout: float) -> Any:
        """What `request` is answered by within so many seconds; raises ClientError."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class BlockingWire(Wire):
    """A wire whose coroutines block until they are done and never suspend."""

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseClient(abc.ABC):
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
      crop: 'face' cuts the one face out of each image before it is sent, aligned, as for a model
        trained with `dataset.crop=face`; needs the `faces` extra.
      target: the model, and the version or label that requests are pinned to.

    Raises:
      InvalidSetting: the address, or a proxy that the environment names, makes no sense.
      ValueError: likewise, or the pin or the certificates.
    """

    model: str = DEFAULT_MODEL
    version: int | None = None
    label: str | None = None
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    timeout: float = 10.0
    limits: Limits = DEFAULT_LIMITS
    retries: Retries = DEFAULT_RETRIES
    crop: Crop | None = None
    target: Target = field(init=False, repr=False)
    _wire: Wire = field(init=False, repr=False)
    _owner: bool = field(init=False, repr=False, default=True)

    def __post_init__(self) -> None:
        target = Target(self.model, version=self.version, label=self.label)
        vars(self).update(target=target, _wire=self._connect())

    @abc.abstractmethod
    def _connect(self) -> Wire: ...

    def pinned(self: Self, *, version: int | None = None, label: str | None = None) -> Self:
        """The same client, on the same connections, for one version or label.

        Vectors of different versions must never be compared. Who stores vectors pins the version
        that made them. Close the client itself: closing what this returns does nothing.
        """
        target = Target(self.model, version=version, label=label)
        pinned = copy.copy(self)
        vars(pinned).update(version=version, label=label, target=target, _owner=False)
        return pinned

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self.timeout if timeout is None else timeout)

    async def _poll(self, request: Request, deadline: Deadline) -> Any:
        # A server that starts may take a connection and not answer it; the next one will be.
        return await self._wire.send(request, min(deadline.left(), POLL_TIMEOUT_SECONDS))

    async def _predict(
        self,
        signature: str,
        chunks: Iterable[Inputs],
        outputs: tuple[str, ...],
        deadline: Deadline,
    ) -> list[Floats]:
        """Each output, of all chunks together; a chunk is one request."""
        answers: list[list[Floats]] = []
        first = 0
        for inputs in chunks:
            rows = len(next(iter(inputs.values())))
            request = Predict(self.target, signature, inputs, outputs)
            try:
                answer: dict[str, Floats] = await self._ask(request, deadline)
            except InvalidRequest as error:
                if rows == 1 and first == 0:
                    raise
                place = f"in rows {first} to {first + rows - 1}"
                raise InvalidRequest(f"{place}: {error.message}", code=error.code) from error
            for name in outputs:
                if name not in answer:
                    raise ServerError(f"{signature} answered without {name!r}")
                if len(answer[name]) != rows:
                    raise ServerError(
                        f"{signature} answered {len(answer[name])} rows of {name!r} to {rows}"
                    )
            answers.append([answer[name] for name in outputs])
            first += rows
        if not answers:
            raise InvalidRequest("there is no image to send")
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    async def _ask(self, request: Request, deadline: Deadline) -> Any:
        """The answer to a request, which is sent again while that may help."""
        for attempt in itertools.count():
            try:
                return await self._wire.send(request, deadline.left())
            except (Unavailable, Overloaded) as error:
                pause = self.retries.pause(attempt, retry_after=error.retry_after)
                if attempt + 1 >= self.retries.attempts or pause >= deadline.left():
                    raise
            await self._wire.sleep(pause)
        raise AssertionError("attempts end by returning or raising")
