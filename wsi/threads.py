"""Work on plain threads: results in order, a bounded number ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from wsi.cores import usable_cores

_IN_FLIGHT = 2  # items started per thread: one at work, one ready
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_order(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    workers: int | None = None,
    ahead: int = _IN_FLIGHT,
    name: str = "map",
) -> Generator[_Result]:
    """``map`` on a pool of threads.

    An error is raised at its item's turn. It ends the work, as does closing the generator: items not started are
    dropped, those in progress are waited for, and no thread remains.

    Args:
        function: called from several threads at once.
        items: taken one by one, when they are started.
        workers: threads; by default one per usable core.
        ahead: items started per thread beyond those consumed.
        name: prefix of the threads' names.

    Yields:
        The results, in the order of the items.
    """
    workers = usable_cores() if workers is None else workers
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers, name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def do_all(function: Callable[[_Item], None], items: Sequence[_Item], *, workers: int, name: str = "do") -> None:
    """Call a function with every item, on threads if there are several items and workers; the first error ends it."""
    if workers == 1 or len(items) < 2:
        for item in items:
            function(item)
        return
    with closing(map_in_order(function, items, workers=min(workers, len(items)), name=name)) as calls:
        for _ in calls:
            pass
