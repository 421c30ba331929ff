"""Keeps gRPC callers out who do not know the token."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio


class BearerToken(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN` in their metadata."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Missing or wrong bearer token")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called before the request is read."""
        for key, value in handler_call_details.invocation_metadata or ():
            given = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(given, self._expected):
                return await continuation(handler_call_details)
        return self._refusal
