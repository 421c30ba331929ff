"""Prepared gRPC calls over bare HTTP/2, answered by a real gRPC server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from benchmarks.http2_load import UnaryCalls


async def reverse(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
    if not request:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nothing to turn round")
    await asyncio.sleep(0)
    return request[::-1]


def with_calls(
    use: Callable[[UnaryCalls], Awaitable[None]], *, method: str = "/x.Text/Reverse"
) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"Reverse": grpc.unary_unary_rpc_method_handler(reverse)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Text", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            transport, calls = await asyncio.get_running_loop().create_connection(
                lambda: UnaryCalls(f"127.0.0.1:{port}", method), "127.0.0.1", port
            )
            await use(calls)
            transport.close()
        finally:
            await server.stop(None)

    asyncio.run(run())


def test_many_calls_at_a_time_are_answered() -> None:
    async def use(calls: UnaryCalls) -> None:
        for _ in range(100):
            await asyncio.gather(*(calls.call(b"x" * size) for size in range(1, 1000, 50)))

    with_calls(use)


def test_an_answer_without_a_message_is_an_error() -> None:
    async def use(calls: UnaryCalls) -> None:
        with pytest.raises(RuntimeError, match="no message"):
            await calls.call(b"")
        await calls.call(b"still of use")

    with_calls(use)

    async def unknown(calls: UnaryCalls) -> None:
        with pytest.raises(RuntimeError, match="no message"):
            await calls.call(b"x")

    with_calls(unknown, method="/x.Text/Unknown")


def test_more_than_the_server_takes_is_refused_before_it_is_sent() -> None:
    async def use(calls: UnaryCalls) -> None:
        with pytest.raises(RuntimeError, match="more than the server takes"):
            await calls.call(b"x" * 2**24)

    with_calls(use)


def test_calls_end_with_their_connection() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(drop, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, calls = await asyncio.get_running_loop().create_connection(
            lambda: UnaryCalls("x", "/x/y"), "127.0.0.1", port
        )
        with pytest.raises(RuntimeError, match="connection is lost"):
            await calls.call(b"x")
        server.close()

    asyncio.run(run())
