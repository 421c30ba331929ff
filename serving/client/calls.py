"""What a client asks and when it asks again, without any input or output.

Every call is a generator of steps: it yields a request to send or a pause to make, gets the answer
(or the error thrown in) and returns the call's result. A client only carries the steps out, so
that blocking and asynchronous clients, over REST and over gRPC, behave alike.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Pause,
    Predict,
    Request,
    Retries,
    Scores,
    Send,
    ServerError,
    Steps,
    Target,
    Unavailable,
    VersionStatus,
    is_retryable,
)
from serving.errors import Code

SCORE_SIGNATURE: Final = "serving_default"
EMBED_SIGNATURE: Final = "embed"
MATCH_SIGNATURE: Final = "match"

AVAILABLE: Final = "AVAILABLE"
MATCH_ROWS: Final = 1024
"""Pairs of vectors in one request: small next to images, so more than `Limits.images`."""
FIRST_POLL_SECONDS: Final = 0.1
SLOWEST_POLL_SECONDS: Final = 2.0
POLL_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Calls:
    """The calls that a client offers, each as steps."""

    target: Target
    limits: Limits
    retries: Retries

    def score(
        self,
        images_a: Images,
        images_b: Images,
        deadline: Deadline,
    ) -> Steps[Scores]:
        paired = _paired(list(encode_images(images_a)), list(encode_images(images_b)))
        answers = []
        first = 0
        for chunk in _chunks(zip(*paired, strict=True), limits=self.limits):
            a, b = ([row[side] for row in chunk] for side in (0, 1))
            request = Predict(
                self.target, SCORE_SIGNATURE, {"image_a": a, "image_b": b}, ("score", "logit")
            )
            answers.append((yield from self._predict(request, first, len(chunk), deadline)))
            first += len(chunk)
        return _scores(answers)

    def embed(self, images: Images, deadline: Deadline) -> Steps[Floats]:
        answers = []
        first = 0
        # Images are read as they are sent: there may be more of them than fit into memory.
        rows = ((image,) for image in encode_images(images))
        for chunk in _chunks(rows, limits=self.limits):
            request = Predict(
                self.target, EMBED_SIGNATURE, {"image": [row[0] for row in chunk]}, ("embedding",)
            )
            answers.append((yield from self._predict(request, first, len(chunk), deadline)))
            first += len(chunk)
        if not answers:
            raise InvalidRequest("there is no image to send")
        return np.concatenate([answer["embedding"] for answer in answers])

    def match(
        self, embeddings_a: npt.ArrayLike, embeddings_b: npt.ArrayLike, deadline: Deadline
    ) -> Steps[Scores]:
        a, b = np.broadcast_arrays(*_vectors(embeddings_a, embeddings_b))
        answers = []
        for first in range(0, len(a), MATCH_ROWS):
            rows = slice(first, first + MATCH_ROWS)
            request = Predict(
                self.target,
                MATCH_SIGNATURE,
                {"embedding_a": a[rows], "embedding_b": b[rows]},
                ("score", "logit"),
            )
            answers.append((yield from self._predict(request, first, len(a[rows]), deadline)))
        return _scores(answers)

    def status(self, deadline: Deadline) -> Steps[list[VersionStatus]]:
        found: list[VersionStatus] = yield from self._send(GetStatus(self.target), deadline)
        return sorted(found)

    def wait_ready(self, deadline: Deadline) -> Steps[int]:
        """Polls until the target answers; the version that does."""
        seen = ""
        pause = FIRST_POLL_SECONDS
        while True:
            try:
                states: list[VersionStatus] = yield self._poll(GetStatus(self.target), deadline)
                if any(status.state == AVAILABLE for status in states):
                    # A status takes no notice of labels; only a version that is loaded has
                    # metadata, and they tell which one it is.
                    version: int = yield self._poll(GetMetadata(self.target), deadline)
                    return version
                seen = ", ".join(_describe(status) for status in states) or "there is no version"
            except ClientError as error:
                not_yet = (NotFound, Unavailable, Overloaded, DeadlineExceeded)
                unknown_label = isinstance(error, InvalidRequest) and self.target.label is not None
                if not (unknown_label or isinstance(error, not_yet)):
                    raise
                # A poll that the deadline cut short tells less than the one before.
                if not (seen and isinstance(error, DeadlineExceeded)):
                    seen = str(error)
            try:
                yield Pause(min(pause, deadline.left()))
                deadline.left()
            except DeadlineExceeded as error:
                raise DeadlineExceeded(
                    f"{self.target.model} was not ready within {deadline.seconds:g} s: {seen}"
                ) from error
            pause = min(SLOWEST_POLL_SECONDS, pause * 1.5)

    def _poll(self, request: Request, deadline: Deadline) -> Send:
        # A server that starts may take a connection and not answer it; the next one will be.
        return Send(request, min(deadline.left(), POLL_TIMEOUT_SECONDS))

    def _predict(
        self, request: Predict, first: int, rows: int, deadline: Deadline
    ) -> Steps[dict[str, Floats]]:
        try:
            answer: dict[str, Floats] = yield from self._send(request, deadline)
        except InvalidRequest as error:
            if rows == 1 and first == 0:
                raise
            place = f"in rows {first} to {first + rows - 1}"
            raise InvalidRequest(f"{place}: {error.message}", code=error.code) from error
        for name in request.outputs:
            if name not in answer:
                raise ServerError(f"{request.signature} answered without {name!r}")
            if len(answer[name]) != rows:
                raise ServerError(
                    f"{request.signature} answered {len(answer[name])} rows of {name!r} to {rows}"
                )
        return answer

    def _send(self, request: Request, deadline: Deadline) -> Steps[Any]:
        for attempt in itertools.count():
            try:
                return (yield Send(request, deadline.left()))
            except ClientError as error:
                if not is_retryable(error) or attempt + 1 >= self.retries.attempts:
                    raise
                pause = self.retries.pause(attempt, retry_after=error.retry_after)
                if pause >= deadline.left():
                    raise
                yield Pause(pause)
        raise AssertionError("attempts end by returning or raising")


def _paired(a: Sequence[bytes], b: Sequence[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Both of the same length: a single image is compared with each of the others."""
    if not a or not b:
        raise InvalidRequest("there is no image to send")
    if len(a) == 1:
        a = [a[0]] * len(b)
    if len(b) == 1:
        b = [b[0]] * len(a)
    if len(a) != len(b):
        raise InvalidRequest(f"{len(a)} images cannot be compared with {len(b)}")
    return a, b


def _chunks(
    rows: Iterable[tuple[bytes, ...]], *, limits: Limits
) -> Iterator[list[tuple[bytes, ...]]]:
    """The rows in their order, in as many requests as the limits ask for; none is empty."""
    chunk: list[tuple[bytes, ...]] = []
    size = 0
    for row in rows:
        row_size = sum(len(image) for image in row)
        if chunk and (len(chunk) == limits.images or size + row_size > limits.bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row_size
    if chunk:
        yield chunk


def _vectors(*given: npt.ArrayLike) -> list[Floats]:
    """Each as `float32[N, D]`, with the same D and with N alike or 1."""
    vectors = []
    for value in given:
        try:
            array = np.atleast_2d(np.asarray(value, np.float32))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"an embedding is an array of floats: {error}") from error
        if array.ndim != 2 or array.size == 0:
            raise InvalidRequest(
                f"embeddings have the shape [D] or [N, D], not {list(np.shape(array))}"
            )
        if not np.isfinite(array).all():
            raise InvalidRequest("an embedding has values that are not finite")
        vectors.append(array)
    a, b = vectors
    if a.shape[1] != b.shape[1] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise InvalidRequest(
            f"embeddings of the shapes {list(a.shape)} and {list(b.shape)} cannot be compared"
        )
    return vectors


def _scores(answers: Sequence[Mapping[str, Floats]]) -> Scores:
    return Scores(
        np.concatenate([answer["score"] for answer in answers]),
        np.concatenate([answer["logit"] for answer in answers]),
    )


def _describe(status: VersionStatus) -> str:
    reason = f" ({status.code.name}: {status.message})" if status.code is not Code.OK else ""
    return f"version {status.version} is {status.state}{reason}"
