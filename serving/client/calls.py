"""What a client asks a server, in which order, and when it asks again.

The calls are coroutines that await nothing but a `Wire`, so that all clients behave alike, whatever
the protocol and whether they block or not.
"""

import abc
import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serving.client.images import Images, encode_images
from serving.client.types import (
    ClientError,
    Deadline,
    DeadlineExceeded,
    Floats,
    GetMetadata,
    GetStatus,
    Inputs,
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Predict,
    Request,
    Retries,
    Scores,
    ServerError,
    Target,
    Unavailable,
    VersionStatus,
)

MATCH_ROWS: Final = 1024
"""Pairs of vectors in one request: small next to images, so more than `Limits.images`."""
DEFAULT_READY_TIMEOUT: Final = 60.0
FIRST_POLL_SECONDS: Final = 0.1
SLOWEST_POLL_SECONDS: Final = 2.0
POLL_TIMEOUT_SECONDS: Final = 5.0


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


@dataclass(frozen=True)
class Calls:
    """The calls that every client offers; `timeout` stands for a call's own where that is None."""

    wire: Wire
    target: Target
    limits: Limits
    retries: Retries
    timeout: float

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
          InvalidImage: one of them is no image.
          OSError: a path cannot be read.
          ClientError: there was no answer; see its subclasses.
        """
        deadline = self._deadline(timeout)
        a, b = list(encode_images(images_a)), list(encode_images(images_b))
        if not a or not b:
            raise InvalidRequest("there is no image to send")
        if len(a) == 1:
            a *= len(b)
        if len(b) == 1:
            b *= len(a)
        if len(a) != len(b):
            raise InvalidRequest(f"{len(a)} images cannot be compared with {len(b)}")
        chunks = (
            {"image_a": [row[0] for row in chunk], "image_b": [row[1] for row in chunk]}
            for chunk in _chunks(zip(a, b, strict=True), limits=self.limits)
        )
        return Scores(*await self._predict("serving_default", chunks, Scores._fields, deadline))

    async def embed(self, images: Images, *, timeout: float | None = None) -> Floats:
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
        deadline = self._deadline(timeout)
        # Images are read as they are sent: there may be more of them than fit into memory.
        rows = ((image,) for image in encode_images(images))
        chunks = (
            {"image": [row[0] for row in chunk]} for chunk in _chunks(rows, limits=self.limits)
        )
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
                await self.wire.sleep(min(pause, deadline.left()))
                deadline.left()
            except DeadlineExceeded as error:
                raise DeadlineExceeded(
                    f"{self.target.model} was not ready within {deadline.seconds:g} s: {seen}"
                ) from error
            pause = min(SLOWEST_POLL_SECONDS, pause * 1.5)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self.timeout if timeout is None else timeout)

    async def _poll(self, request: Request, deadline: Deadline) -> Any:
        # A server that starts may take a connection and not answer it; the next one will be.
        return await self.wire.send(request, min(deadline.left(), POLL_TIMEOUT_SECONDS))

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
                return await self.wire.send(request, deadline.left())
            except (Unavailable, Overloaded) as error:
                pause = self.retries.pause(attempt, retry_after=error.retry_after)
                if attempt + 1 >= self.retries.attempts or pause >= deadline.left():
                    raise
            await self.wire.sleep(pause)
        raise AssertionError("attempts end by returning or raising")


def _chunks(
    rows: Iterable[tuple[bytes, ...]], *, limits: Limits
) -> Iterator[list[tuple[bytes, ...]]]:
    """The rows in their order, in as many requests as the limits ask for; none is empty."""
    chunk: list[tuple[bytes, ...]] = []
    size = 0
    for row in rows:
        row_size = sum(map(len, row))
        if chunk and (len(chunk) == limits.images or size + row_size > limits.bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row_size
    if chunk:
        yield chunk


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
