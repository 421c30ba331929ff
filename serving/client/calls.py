"""What clients ask a server, and in which order.

A blocking client runs the coroutines of the one for asyncio over a wire that blocks. They never
suspend, and so need neither an event loop nor a thread: whichever thread calls also encodes, sends
and waits.
"""

import abc
import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from serving.client.base import BaseClient, BlockingWire, Self
from serving.client.images import Images, encode_images
from serving.client.types import (
    ClientError,
    Deadline,
    DeadlineExceeded,
    Floats,
    GetMetadata,
    GetStatus,
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Scores,
    Unavailable,
    VersionStatus,
)

MATCH_ROWS: Final = 1024
"""Pairs of vectors in one request: small next to images, so more than `Limits.images`."""
DEFAULT_READY_TIMEOUT: Final = 60.0
FIRST_POLL_SECONDS: Final = 0.1
SLOWEST_POLL_SECONDS: Final = 2.0

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class AwaitingClient(BaseClient):
    """A client for asyncio. Its methods are those of `BlockingClient`, to be awaited."""

    async def score(
        self, images_a: Images, images_b: Images, *, timeout: float | None = None
    ) -> Scores:
        """How alike images are, pair by pair.

        Args:
          images_a: N images, or one, which is then compared with each of the others.
          images_b: the same.
          timeout: seconds for all of it, retries included; None is the client's own.

        Returns:
          `score` and `logit`, `float32[N]` each.

        Raises:
          InvalidImage: one of them is no image, or nothing is drawn on it.
          OSError: a path cannot be read.
          ClientError: there was no answer; see its subclasses.
        """
        deadline = self._deadline(timeout)
        a = list(encode_images(images_a, name="image_a", crop=self.crop))
        b = list(encode_images(images_b, name="image_b", crop=self.crop))
        if not a or not b:
            raise InvalidRequest("there is no image to send")
        if len(a) == 1:
            a *= len(b)
        if len(b) == 1:
            b *= len(a)
        if len(a) != len(b):
            raise InvalidRequest(f"{len(a)} images cannot be compared with {len(b)}")
        chunks = _chunks(zip(a, b, strict=True), ("image_a", "image_b"), limits=self.limits)
        return Scores(*await self._predict("serving_default", chunks, Scores._fields, deadline))

    async def embed(self, images: Images, *, timeout: float | None = None) -> Floats:
        """The vectors of images, for `match` or for an index with Manhattan distance.

        Args:
          images: N images; a single one counts as a batch of one.
          timeout: seconds for all of it, retries included; None is the client's own.

        Returns:
          `float32[N, D]`, in the order of the images.

        Raises:
          InvalidImage: one of them is no image, or nothing is drawn on it.
          OSError: a path cannot be read.
          ClientError: there was no answer; see its subclasses.
        """
        deadline = self._deadline(timeout)
        # Images are read as they are sent: there may be more of them than fit into memory.
        rows = ((image,) for image in encode_images(images, crop=self.crop))
        chunks = _chunks(rows, ("image",), limits=self.limits)
        (vectors,) = await self._predict("embed", chunks, ("embedding",), deadline)
        return vectors

    async def match(
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
        deadline = self._deadline(timeout)
        a, b = _vectors(embeddings_a), _vectors(embeddings_b)
        if a.shape[1] != b.shape[1] or (len(a) != len(b) and 1 not in (len(a), len(b))):
            raise InvalidRequest(
                f"embeddings of the shapes {list(a.shape)} and {list(b.shape)} cannot be compared"
            )
        a, b = np.broadcast_arrays(a, b)
        parts = (slice(first, first + MATCH_ROWS) for first in range(0, len(a), MATCH_ROWS))
        chunks = ({"embedding_a": a[part], "embedding_b": b[part]} for part in parts)
        return Scores(*await self._predict("match", chunks, Scores._fields, deadline))

    async def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The versions that the server knows, oldest first; only the one that is pinned, if any.

        Raises:
          NotFound: it knows none.
          ClientError: there was no answer.
        """
        found: list[VersionStatus] = await self._ask(
            GetStatus(self.target), self._deadline(timeout)
        )
        return sorted(found)

    async def wait_ready(self, *, timeout: float = DEFAULT_READY_TIMEOUT) -> int:
        """Waits until the model, in the pinned version or label if any, answers requests.

        A server that is not there yet, or does not know the model yet, is waited for.

        Returns:
          The version that answers.

        Raises:
          DeadlineExceeded: it was not ready in time; the message says what was seen last.
          ClientError: waiting does not help, for example with a wrong token.
        """
        deadline = Deadline(timeout)
        seen = ""
        pause = FIRST_POLL_SECONDS
        while True:
            try:
                states: list[VersionStatus] = await self._poll(GetStatus(self.target), deadline)
                if any(status.state == "AVAILABLE" for status in states):
                    # A status takes no notice of labels; only a version that is loaded has
                    # metadata, and they tell which one it is.
                    version: int = await self._poll(GetMetadata(self.target), deadline)
                    return version
                seen = ", ".join(map(str, states)) or "there is no version"
            except ClientError as error:
                not_yet = (NotFound, Unavailable, Overloaded, DeadlineExceeded)
                unknown_label = isinstance(error, InvalidRequest) and self.target.label is not None
                if not (unknown_label or isinstance(error, not_yet)):
                    raise
                # A poll that the deadline cut short tells less than the one before.
                if not (seen and isinstance(error, DeadlineExceeded)):
                    seen = str(error)
            try:
                await self._wire.sleep(min(pause, deadline.left()))
                deadline.left()
            except DeadlineExceeded as error:
                raise DeadlineExceeded(
                    f"{self.target.model} was not ready within {deadline.seconds:g} s: {seen}"
                ) from error
            pause = min(SLOWEST_POLL_SECONDS, pause * 1.5)

    async def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        if self._owner:
            await self._wire.close()

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


def _blocking(
    call: Callable[Concatenate[Any, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["BlockingClient", Parameters], Result]:
    """A method of the client for asyncio over a wire that never suspends it."""

    @functools.wraps(call)
    def method(
        self: "BlockingClient", /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        try:
            call(self, *args, **kwargs).send(None)
        except StopIteration as end:
            result: Result = end.value
            return result
        raise RuntimeError("a blocking wire has suspended a call")

    return method


class BlockingClient(BaseClient):
    """A client whose calls return when they are answered. Threads may share it."""

    score = _blocking(AwaitingClient.score)
    embed = _blocking(AwaitingClient.embed)
    match = _blocking(AwaitingClient.match)
    status = _blocking(AwaitingClient.status)
    wait_ready = _blocking(AwaitingClient.wait_ready)
    close = _blocking(AwaitingClient.close)

    @abc.abstractmethod
    def _connect(self) -> BlockingWire: ...

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _chunks(
    rows: Iterable[tuple[bytes, ...]], names: tuple[str, ...], *, limits: Limits
) -> Iterator[dict[str, list[bytes]]]:
    """The rows in their order, in as many requests as the limits ask for; none is empty."""

    def inputs() -> dict[str, list[bytes]]:
        return {
            name: list(column) for name, column in zip(names, zip(*chunk, strict=True), strict=True)
        }

    chunk: list[tuple[bytes, ...]] = []
    size = 0
    for row in rows:
        row_size = sum(map(len, row))
        if chunk and (len(chunk) == limits.images or size + row_size > limits.bytes):
            yield inputs()
            chunk, size = [], 0
        chunk.append(row)
        size += row_size
    if chunk:
        yield inputs()


def _vectors(given: npt.ArrayLike) -> Floats:
    """`given` as `float32[N, D]`."""
    try:
        vectors = np.atleast_2d(np.asarray(given, np.float32))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"an embedding is an array of floats: {error}") from error
    if vectors.ndim != 2 or vectors.size == 0:
        raise InvalidRequest(
            f"embeddings have the shape [D] or [N, D], not {list(np.shape(vectors))}"
        )
    if not np.isfinite(vectors).all():
        raise InvalidRequest("an embedding has values that are not finite")
    return vectors
