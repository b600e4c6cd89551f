"""Results in order, a bounded number ahead, and no thread left however it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pytest

from wsi.threads import do_all, map_in_order


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    turn = [threading.Event() for _ in range(20)]

    def wait(index: int) -> int:
        # each waits for a later one, as far as threads allow: they end out of order
        if workers > 1 and index % 2 == 0:
            turn[index + 1].wait(10)
        turn[index].set()
        return index

    assert list(map_in_order(wait, range(20), workers=workers)) == list(range(20))
    assert list(map_in_order(wait, [], workers=workers)) == []


@pytest.mark.parametrize(("workers", "ahead"), [(1, 2), (2, 2), (2, 3), (3, 1)])
def test_items_are_taken_no_sooner_than_they_are_needed(workers: int, ahead: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for index in range(50):
            begun.append(index)
            yield index

    with closing(map_in_order(str, items(), workers=workers, ahead=ahead)) as results:
        for taken, _ in enumerate(islice(results, 30), start=1):
            assert len(begun) == taken + workers * ahead


def test_an_error_is_raised_at_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []

    def fail_at_five(index: int) -> int:
        begun.append(index)
        if index == 5:
            raise OSError("the disk is gone")
        return index

    taken: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        taken.extend(map_in_order(fail_at_five, range(1000), workers=2))
    assert len(begun) < 20
    taken = []
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012
        for index in map_in_order(fail_at_five, range(1000), workers=2):
            taken.append(index)
    assert taken == [0, 1, 2, 3, 4]


def test_closing_waits_for_what_is_under_way_and_gives_up_the_rest() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    done: list[int] = []

    def slow(index: int) -> int:
        if index:
            begun.set()
            goes_on.wait(10)
        done.append(index)
        return index

    results = map_in_order(slow, range(100), workers=1)
    assert next(results) == 0
    begun.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    results.close()
    assert done == [0, 1]
    goes_on.wait(10)


def test_threads_bear_their_name() -> None:
    names = set(map_in_order(lambda _: threading.current_thread().name, range(9), workers=2, name="tile"))
    assert all(name.startswith("tile") for name in names)


@pytest.mark.parametrize("workers", [1, 2, 50])
def test_all_is_done_and_the_first_error_raised(workers: int) -> None:
    done: set[int] = set()
    do_all(done.add, range(30), workers=workers)
    assert done == set(range(30))

    def fail(index: int) -> None:
        if index >= 7:
            raise ValueError(f"item {index}")

    with pytest.raises(ValueError, match="item 7"):
        do_all(fail, range(30), workers=workers)
    names: list[str] = []
    do_all(lambda _: names.append(threading.current_thread().name), [1], workers=workers)
    assert names == [threading.current_thread().name]  # one item needs no thread
