"""Serves a gallery over HTTP, beside the models of the local server.

| request | body | answer |
|---|---|---|
| `GET /v1/gallery` | | what it holds, its model, its calibration, a rebuild under way |
| `GET /v1/gallery/identities?after=NAME&limit=N` | | who is enrolled, in order of names |
| `POST /v1/gallery/enroll` | `{"name": ..., "images": [{"b64": ...}]}` | `added`, `known` |
| `POST /v1/gallery/identify` | `{"image": {"b64": ...}}` | `name` or null, `candidates` |
| `POST /v1/gallery/verify` | `{"name": ..., "image": {"b64": ...}}` | `same`, `least_rate` |
| `POST /v1/gallery/remove` | `{"name": ...}` | `images`, `erased` |
| `POST /v1/gallery/rebuild` | | 202; `GET /v1/gallery` shows how far it is |

`identify` and `verify` also take `false_accept_rate`, `identify` takes `limit`. Names are in
bodies, not in paths: they are free text, and paths end up in logs. Errors are those of TF Serving's
REST API: `{"error": MESSAGE}` with its status codes.
"""

import base64
import binascii
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.errors import ServingError, invalid
from serving.gallery.gallery import Gallery
from serving.gallery.records import reply_of

PREFIX: Final = "/v1/gallery"
PAGE: Final = 1000
Reader = Callable[[Any, str], Any]
"""From a field's value and name to an argument; raises ServingError (INVALID_ARGUMENT)."""
Readers = Mapping[str, Reader]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RebuildState:
    """`done` images of `total` in the rebuild under way, or what stopped the last one."""

    state: Literal["idle", "running", "failed"] = "idle"
    done: int = 0
    total: int = 0
    error: str = ""


class Follower:
    """A thread that rebuilds a gallery when asked to, or when there is a newer model.

    A rebuild that is cut off by the end of the process continues at the next one.

    Attributes:
      state: what it is doing.
    """

    def __init__(self, gallery: Gallery, *, every_seconds: float | None = None) -> None:
        """Starts the thread.

        Args:
          gallery: not closed by this.
          every_seconds: how often to look for a newer version of the model; None never does.
        """
        self._gallery = gallery
        self._every = every_seconds
        self._wake = threading.Event()
        self._asked = False
        self._closing = False
        self.state = RebuildState()
        self._thread = threading.Thread(target=self._run, name="gallery-follower", daemon=True)
        self._thread.start()

    def rebuild(self) -> None:
        """Asks for a rebuild; returns at once."""
        if self.state.state != "running":
            self.state = RebuildState("running")
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Lets the batch under way finish, and ends."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._every)
            self._wake.clear()
            if not self._closing and (self._asked or self._is_behind()):
                self._asked = False
                self._rebuild()

    def _is_behind(self) -> bool:
        try:
            status = self._gallery.status()
        except ServingError as error:
            _log.warning("the gallery cannot be looked at: %s", error)
            return False
        return None not in (status.model_version, status.latest_version) and (
            status.model_version != status.latest_version
        )

    def _rebuild(self) -> None:
        self.state = RebuildState("running")
        try:
            self._gallery.rebuild(self._progress)
        except _Closing:
            return
        except Exception as error:
            # The old version answers on; the next look tries again.
            _log.exception("the gallery could not be rebuilt")
            self.state = RebuildState("failed", error=str(error))
        else:
            self.state = RebuildState()

    def _progress(self, done: int, total: int) -> None:
        self.state = RebuildState("running", done, total)
        if self._closing:
            raise _Closing


class _Closing(Exception):
    """Ends a rebuild between two batches."""


def gallery_routes(gallery: Gallery, follower: Follower) -> list[BaseRoute]:
    """Routes for an application that turns ServingError into replies, as `rest_app` does.

    Args:
      gallery: closed by whoever opened it, after the server has stopped.
      follower: of this gallery; it carries out `rebuild`.
    """

    def post(name: str, does: Callable[..., Any], required: Readers, **optional: Reader) -> Route:
        async def answer(request: Request) -> Response:
            fields = _fields(await request.body(), required, optional)
            # Embedding and databases block.
            return JSONResponse(reply_of(await run_in_threadpool(does, **fields)))

        return Route(f"{PREFIX}/{name}", answer, methods=["POST"])

    async def status(_: Request) -> Response:
        reply = reply_of(await run_in_threadpool(gallery.status))
        return JSONResponse({**reply, "rebuild": asdict(follower.state)})

    async def identities(request: Request) -> Response:
        limit = request.query_params.get("limit", str(PAGE))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PAGE):
            raise invalid(f"limit is 1 to {PAGE}")
        after = request.query_params.get("after", "")
        if "\0" in after:
            raise invalid("after is a name")
        found = await run_in_threadpool(gallery.identities, after=after, limit=int(limit))
        return JSONResponse({"identities": [reply_of(identity) for identity in found]})

    async def rebuild(_: Request) -> Response:
        follower.rebuild()
        return JSONResponse({"rebuild": asdict(follower.state)}, status_code=202)

    text = _typed("a string", str)
    rate = {"false_accept_rate": _typed("a number", int, float, type(None))}
    return [
        Route(PREFIX, status, methods=["GET"]),
        Route(f"{PREFIX}/identities", identities, methods=["GET"]),
        post("enroll", gallery.enroll, {"name": text, "images": _images}),
        post(
            "identify", gallery.identify, {"image": _image}, limit=_typed("an integer", int), **rate
        ),
        post("verify", gallery.verify, {"name": text, "image": _image}, **rate),
        post("remove", gallery.remove, {"name": text}),
        Route(f"{PREFIX}/rebuild", rebuild, methods=["POST"]),
    ]


def _fields(body: bytes, required: Readers, optional: Readers) -> dict[str, Any]:
    """The arguments in a request's body."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid("the body is not JSON") from error
    if not isinstance(document, dict):
        raise invalid("the body is not a JSON object")
    readers = {**required, **optional}
    missing = required.keys() - document.keys()
    unknown = document.keys() - readers.keys()
    if missing or unknown:
        raise invalid(
            f"fields are {', '.join(sorted(readers))}; missing: "
            f"{', '.join(sorted(missing)) or 'none'}, unknown: {len(unknown)}"
        )
    return {name: readers[name](value, name) for name, value in document.items()}


def _typed(name: str, *types: type) -> Reader:
    def read(value: Any, field: str) -> Any:
        if not isinstance(value, types) or isinstance(value, bool):
            raise invalid(f"{field} is {name}")
        return value

    return read


def _images(value: Any, field: str) -> list[bytes]:
    if not isinstance(value, list):
        raise invalid(f"{field} is a list of images")
    return [_image(image, field) for image in value]


def _image(value: Any, field: str) -> bytes:
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            pass
    raise invalid(f'{field}: an image is {{"b64": "..."}}, its bytes in base64')
