"""Calls a gRPC method at next to no cost: prepared bytes over one HTTP/2 connection.

A load generator that shares the cores with its server must not need a third of them itself, as
`grpc.aio` does for small messages. This one speaks just enough HTTP/2 (RFC 9113) to ask for unary
calls; of answers it only sees whether there is a message.
"""

import asyncio
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
INITIAL_WINDOW_SIZE: Final = 4
FIRST_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = 2**31 - 1


class UnaryCalls(asyncio.Protocol):
    """A connection on which one gRPC method is called, by many at the same time.

    Example:
      _, calls = await loop.create_connection(lambda: UnaryCalls(address, method), host, port)
      await calls.call(request.SerializeToString())

    Args:
      authority: `host:port` of the server.
      method: its path, such as `/tensorflow.serving.PredictionService/Predict`.
    """

    def __init__(self, authority: str, method: str) -> None:
        self._headers = _request_headers(authority, method)
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._answered: set[int] = set()
        self._next_stream = 1
        self._window = FIRST_WINDOW
        self._received = b""

    async def call(self, message: bytes) -> None:
        """Sends a message and waits for the end of the answer.

        Raises:
          RuntimeError: there was no message in the answer, or the connection is of no use.
        """
        body = b"\0" + struct.pack(">I", len(message)) + message
        if len(body) > self._window:
            raise RuntimeError(f"{len(body)} bytes are more than the server takes at the moment")
        self._window -= len(body)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        done = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._transport.write(
            _frame(HEADERS, END_HEADERS, stream, self._headers)
            + _frame(DATA, END_STREAM, stream, body)
        )
        if not await done:
            raise RuntimeError("the call failed: its answer holds no message")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says that answers may be as large as they like."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        window = struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW)
        transport.write(
            PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, window)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is answered any more."""
        self._fail_all(f"the connection is lost: {exc}")

    def data_received(self, data: bytes) -> None:
        """Takes what the server sends, in frames."""
        data = self._received + data
        at = 0
        while len(data) - at >= HEAD_BYTES:
            end = at + HEAD_BYTES + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            stream = int.from_bytes(data[at + 5 : at + HEAD_BYTES], "big")
            self._take(data[at + 3], data[at + 4], stream, data[at + HEAD_BYTES : end])
            at = end
        self._received = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._answered.add(stream)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(_frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self._fail_all("the server says goodbye")
        if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
            done = self._waiting.pop(stream, None)
            if done is not None:
                done.set_result(kind != RESET and stream in self._answered)
            self._answered.discard(stream)

    def _fail_all(self, why: str) -> None:
        for done in self._waiting.values():
            done.set_exception(RuntimeError(why))
        self._waiting.clear()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _request_headers(authority: str, method: str) -> bytes:
    """Headers in HPACK (RFC 7541) without its tables and Huffman codes."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": "30S",
    }
    texts = (text.encode() for header in headers.items() for text in header)
    sized = [bytes([len(text)]) + text for text in texts]
    names, values = sized[::2], sized[1::2]
    return b"".join(b"\0" + name + value for name, value in zip(names, values, strict=True))
