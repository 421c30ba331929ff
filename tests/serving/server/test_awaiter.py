"""Futures of other threads, awaited."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.server.awaiter import Awaiter


def awaited(future: Future[int], *, deadline: float | None = None) -> int:
    async def wait() -> int:
        return await Awaiter[int]().result(future, deadline=deadline)

    return asyncio.run(wait())


def settled(value: int | Exception) -> Future[int]:
    future: Future[int] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def test_what_is_there_already_is_the_answer() -> None:
    assert awaited(settled(3)) == 3
    with pytest.raises(ValueError, match="none"):
        awaited(settled(ValueError("none")))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(1, 3))
def test_each_caller_gets_its_own_answer(order: list[int], threads: int) -> None:
    futures: list[Future[int]] = [Future() for _ in order]
    waiting = threading.Event()

    def settle(first: int) -> None:
        assert waiting.wait(30)
        mine = range(first, len(order), threads)
        for at in sorted(mine, key=lambda at: order[at]):
            futures[at].set_result(at)

    async def wait() -> list[int]:
        awaiter: Awaiter[int] = Awaiter()
        results: list[Coroutine[Any, Any, int]] = [
            awaiter.result(future, deadline=None) for future in futures
        ]
        tasks = [asyncio.create_task(result) for result in results]
        await asyncio.sleep(0)
        waiting.set()
        return list(await asyncio.gather(*tasks))

    workers = [threading.Thread(target=settle, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    assert asyncio.run(wait()) == list(range(len(order)))
    for worker in workers:
        worker.join()


def test_results_of_a_moment_wake_the_loop_once() -> None:
    async def wait() -> int:
        loop = asyncio.get_running_loop()
        wake, calls = loop.call_soon_threadsafe, 0

        def count(*arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal calls
            calls += 1
            return wake(*arguments, **options)

        awaiter: Awaiter[int] = Awaiter()
        futures: list[Future[int]] = [Future() for _ in range(10)]
        tasks = [asyncio.create_task(awaiter.result(f, deadline=None)) for f in futures]
        await asyncio.sleep(0)
        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        # Settled on the loop's own thread, so that it cannot empty its inbox in between.
        for future in futures:
            future.set_result(1)
        await asyncio.gather(*tasks)
        return calls

    assert asyncio.run(wait()) == 1


def test_a_deadline_ends_the_wait_and_cancels_the_future() -> None:
    future: Future[int] = Future()
    with pytest.raises(TimeoutError):
        awaited(future, deadline=time.monotonic() + 0.01)
    assert future.cancelled()


def test_who_is_cancelled_cancels_the_future() -> None:
    future: Future[int] = Future()

    async def give_up() -> None:
        task = asyncio.create_task(Awaiter[int]().result(future, deadline=None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert future.cancelled()


def test_a_result_for_a_loop_that_is_closed_is_dropped() -> None:
    future: Future[int] = Future()
    future.set_running_or_notify_cancel()  # from here on it cannot be cancelled
    with pytest.raises(TimeoutError):
        awaited(future, deadline=time.monotonic() + 0.01)
    future.set_result(1)
    assert future.result() == 1
