"""What TF Serving's gRPC services share: names to models, errors to statuses, counting."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc.aio
from tensorflow_serving.apis import model_pb2

from serving.errors import Code, ServingError
from serving.registry import ServerState
from serving.servable import ModelHost

_LOGGER = logging.getLogger(__name__)
_LONGEST_MESSAGE: Final = 1024

Reply = TypeVar("Reply")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Target(NamedTuple):
    """What a `ModelSpec` asks for."""

    host: ModelHost
    signature: str | None
    version: int | None
    label: str | None


class Service:
    """Base of the services."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def target(self, spec: model_pb2.ModelSpec) -> Target:
        version = spec.version.value if spec.HasField("version") else None
        label = spec.version_label if spec.HasField("version_label") else None
        host = self.state.host(spec.name, version=version, label=label)
        return Target(host, spec.signature_name or None, version, label)

    async def answer(
        self, context: Context, method: str, model: str, reply: Awaitable[Reply]
    ) -> Reply:
        """Awaits `reply`; errors end the call with their status."""
        begin = time.perf_counter()
        code, message = Code.OK, ""
        try:
            return await reply
        except ServingError as error:
            code, message = error.code, error.message
        except asyncio.CancelledError:
            # The client has gone, or its deadline has passed.
            code = Code.CANCELLED
            raise
        except Exception:
            # What happened is for the log; the client could do nothing with it.
            _LOGGER.exception("%s failed", method)
            code, message = Code.INTERNAL, "Internal error"
        finally:
            self.state.observer.request(
                model=model,
                method=method,
                entry_point="GRPC",
                code=code,
                seconds=time.perf_counter() - begin,
            )
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "...TRUNCATED"
        await context.abort(code.grpc, message)
        raise AssertionError("abort always raises")
