"""Lets an event loop await what other threads compute."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Result = TypeVar("Result")


class Awaiter(Generic[Result]):
    """Awaits futures that other threads settle, several at a time.

    `asyncio.wrap_future` wakes the loop for each of them. A wake-up is a system call, during which
    the two threads fight for the interpreter: for a batch of requests that takes longer than their
    answers do.
    """

    def __init__(self) -> None:
        self._inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox] = WeakKeyDictionary()

    async def result(self, future: Future[Result], *, deadline: float | None) -> Result:
        """What `future` holds once it is settled; it is cancelled if nobody waits any longer.

        Args:
          deadline: an instant of `time.monotonic()`.

        Raises:
          TimeoutError: the deadline has passed.
          Exception: that of the future.
        """
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is None:
            inbox = self._inboxes[loop] = _Inbox(loop)
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        deliver = inbox.put
        future.add_done_callback(lambda _: deliver(wake))
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), wake)
        try:
            await waiter
            if not future.done():
                raise TimeoutError
            return future.result()
        finally:
            if timer is not None:
                timer.cancel()
            future.cancel()


class _Inbox:
    """What an event loop is to call for other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._told = False

    def put(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        # After the append, so that whoever empties the inbox meanwhile finds it or is told again.
        if not self._told and not self._loop.is_closed():
            self._told = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._told = False
        while self._calls:
            self._calls.popleft()()
