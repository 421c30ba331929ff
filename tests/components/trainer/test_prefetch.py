"""Making things ready ahead of time."""

import threading

import pytest

from components.trainer.fit import prefetched


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_all_items_come_in_order(count: int) -> None:
    assert list(prefetched(lambda number: number * number, range(count))) == [
        number * number for number in range(count)
    ]


def test_the_next_items_are_made_while_one_is_in_use_and_no_more() -> None:
    made = []
    enough = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 2:
            enough.set()
        return number

    items = prefetched(make, range(100), ahead=2)
    assert next(items) == 0
    assert enough.wait(10)
    items.close()
    assert made == [0, 1, 2]


def test_an_error_comes_where_its_item_would() -> None:
    items = prefetched(lambda number: 1 // (2 - number), range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_nothing_is_made_once_it_was_closed() -> None:
    made = []
    items = prefetched(made.append, range(100))
    next(items)
    items.close()
    count = len(made)
    assert count <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
