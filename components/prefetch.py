"""Making things ready while what came before them is still in use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
AHEAD: Final = 2


def prefetched(
    make: Callable[[int], T], numbers: Iterable[int], *, ahead: int = AHEAD
) -> Generator[T, None, None]:
    """`make(number)` of each number in turn, made by one thread up to `ahead` items early.

    What `make` raises is raised when its item is due, and nothing is made after it is closed.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(make, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
