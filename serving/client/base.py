"""The methods that all clients share: what they mean, and how their steps are carried out."""

import abc
import asyncio
import copy
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, TypeVar

import numpy.typing as npt

from serving.client.calls import Calls
from serving.client.images import Images
from serving.client.types import (
    ClientError,
    Deadline,
    Floats,
    Limits,
    Pause,
    Result,
    Retries,
    Scores,
    Send,
    Steps,
    Target,
    VersionStatus,
)

DEFAULT_MODEL: Final = "siamese"
DEFAULT_TIMEOUT: Final = 10.0
DEFAULT_READY_TIMEOUT: Final = 60.0
DEFAULT_LIMITS: Final = Limits()
DEFAULT_RETRIES: Final = Retries()

Self = TypeVar("Self", bound="_Client")


class _Client:
    """What does not depend on who waits how."""

    def __init__(
        self,
        *,
        model: str,
        version: int | None,
        label: str | None,
        timeout: float,
        limits: Limits,
        retries: Retries,
    ) -> None:
        self._calls = Calls(Target(model, version=version, label=label), limits, retries)
        self._timeout = timeout
        self._owner = True

    @property
    def target(self) -> Target:
        """The model, and the version or label that requests are pinned to."""
        return self._calls.target

    def pinned(self: Self, *, version: int | None = None, label: str | None = None) -> Self:
        """The same client, on the same connections, for one version or label.

        Vectors of different versions must never be compared. Who stores vectors pins the version
        that made them. Close the client itself: closing what this returns does nothing.
        """
        other = copy.copy(self)
        other._calls = replace(
            self._calls, target=Target(self.target.model, version=version, label=label)
        )
        other._owner = False
        return other

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)


class BlockingClient(_Client, abc.ABC):
    """A client whose calls return when they are answered. May be shared by threads."""

    def score(
        self,
        images_a: Images,
        images_b: Images,
        *,
        timeout: float | None = None,
    ) -> Scores:
        """How alike images are, pair by pair.

        Args:
          images_a: N images, or one, which is then compared with each of the others.
          images_b: the same.
          timeout: seconds for all of it, retries included; None is the client's own.

        Returns:
          `score` and `logit`, `float32[N]` each.

        Raises:
          InvalidImage: one of them is no image.
          OSError: a path cannot be read.
          ClientError: there was no answer; see its subclasses.
        """
        return self._run(self._calls.score(images_a, images_b, self._deadline(timeout)))

    def embed(self, images: Images, *, timeout: float | None = None) -> Floats:
        """The vectors of images, for `match` or for an index with Manhattan distance.

        Args:
          images: N images; a single one counts as a batch of one.
          timeout: seconds for all of it, retries included; None is the client's own.

        Returns:
          `float32[N, D]`, in the order of the images.

        Raises:
          InvalidImage: one of them is no image.
          OSError: a path cannot be read.
          ClientError: there was no answer; see its subclasses.
        """
        return self._run(self._calls.embed(images, self._deadline(timeout)))

    def match(
        self,
        embeddings_a: npt.ArrayLike,
        embeddings_b: npt.ArrayLike,
        *,
        timeout: float | None = None,
    ) -> Scores:
        """How alike embedded images are, pair by pair: `logit = b0 - sum |a - b|`.

        Args:
          embeddings_a: floats `[N, D]`, or `[D]`, which is then compared with each of the others.
          embeddings_b: the same, made by the same version of the model.
          timeout: seconds for all of it, retries included; None is the client's own.

        Returns:
          `score` and `logit`, `float32[N]` each.

        Raises:
          ClientError: there was no answer; `InvalidRequest` if the shapes do not fit.
        """
        return self._run(self._calls.match(embeddings_a, embeddings_b, self._deadline(timeout)))

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The versions that the server knows, oldest first; only the one that is pinned, if any.

        Raises:
          NotFound: it knows none.
          ClientError: there was no answer.
        """
        return self._run(self._calls.status(self._deadline(timeout)))

    def wait_ready(self, *, timeout: float = DEFAULT_READY_TIMEOUT) -> int:
        """Waits until the model, in the pinned version or label if any, answers requests.

        A server that is not there yet, or does not know the model yet, is waited for.

        Returns:
          The version that answers.

        Raises:
          DeadlineExceeded: it was not ready in time; the message says what was seen last.
          ClientError: waiting does not help, for example with a wrong token.
        """
        return self._run(self._calls.wait_ready(self._deadline(timeout)))

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        if self._owner:
            self._close()

    @abc.abstractmethod
    def _send(self, send: Send) -> Any:
        """The answer to a request; raises ClientError."""

    @abc.abstractmethod
    def _close(self) -> None: ...

    def _run(self, steps: Steps[Result]) -> Result:
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Pause):
                        time.sleep(step.seconds)
                        answer = None
                    else:
                        answer = self._send(step)
                except ClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def __enter__(self: "BlockingSelf") -> "BlockingSelf":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AwaitingClient(_Client, abc.ABC):
    """A client for asyncio. Its methods are those of `BlockingClient`, to be awaited."""

    async def score(
        self,
        images_a: Images,
        images_b: Images,
        *,
        timeout: float | None = None,
    ) -> Scores:
        """How alike images are, pair by pair; see `BlockingClient.score`."""
        return await self._run(self._calls.score(images_a, images_b, self._deadline(timeout)))

    async def embed(self, images: Images, *, timeout: float | None = None) -> Floats:
        """The vectors of images, `float32[N, D]`; see `BlockingClient.embed`."""
        return await self._run(self._calls.embed(images, self._deadline(timeout)))

    async def match(
        self,
        embeddings_a: npt.ArrayLike,
        embeddings_b: npt.ArrayLike,
        *,
        timeout: float | None = None,
    ) -> Scores:
        """How alike embedded images are, pair by pair; see `BlockingClient.match`."""
        return await self._run(
            self._calls.match(embeddings_a, embeddings_b, self._deadline(timeout))
        )

    async def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The versions that the server knows; see `BlockingClient.status`."""
        return await self._run(self._calls.status(self._deadline(timeout)))

    async def wait_ready(self, *, timeout: float = DEFAULT_READY_TIMEOUT) -> int:
        """Waits until the model answers requests; see `BlockingClient.wait_ready`."""
        return await self._run(self._calls.wait_ready(self._deadline(timeout)))

    async def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        if self._owner:
            await self._close()

    @abc.abstractmethod
    async def _send(self, send: Send) -> Any:
        """The answer to a request; raises ClientError."""

    @abc.abstractmethod
    async def _close(self) -> None: ...

    async def _run(self, steps: Steps[Result]) -> Result:
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        answer = None
                    else:
                        answer = await self._send(step)
                except ClientError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def __aenter__(self: "AwaitingSelf") -> "AwaitingSelf":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


BlockingSelf = TypeVar("BlockingSelf", bound=BlockingClient)
AwaitingSelf = TypeVar("AwaitingSelf", bound=AwaitingClient)
