"""Work on slides in this process, or on Dask workers of this machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
TileNews = Callable[[str, int, int], None]

TOPIC = "sentinode-tiles"
# few in flight: a lost scheduler loses little, yet a worker always has a next slide waiting
_AHEAD_PER_WORKER = 2
_DEATHS = 3


def each(
    work: Callable[[Item, TileNews], Result],
    items: Sequence[Item],
    *,
    workers: int,
    on_tiles: TileNews | None = None,
) -> Iterator[tuple[Item, Result | BaseException]]:
    """Work on every item and yield (item, result or exception) as each finishes.

    Args:
        work: a picklable top-level function of (item, progress callback).
        items: picklable.
        workers: number of processes; with 1 everything runs in this process, in order.
        on_tiles: called with (slide name, tiles done, total tiles), if anybody wants to know.
    """
    on_tiles = on_tiles or _ignore
    if workers <= 1 or len(items) <= 1:
        for item in items:
            yield item, _attempt(work, item, on_tiles)
        return
    from distributed import as_completed  # noqa: PLC0415  (slow import)

    with _local_client(min(workers, len(items)), on_tiles) as client:
        waiting = iter(items)
        futures = {}
        for item in islice(waiting, min(workers, len(items)) * _AHEAD_PER_WORKER):
            futures[client.submit(_attempt_there, work, item, pure=False)] = item
        completed = as_completed(list(futures))
        for future in completed:
            item = futures.pop(future)
            outcome = _result(future)
            future.release()
            yield item, outcome
            for follower in islice(waiting, 1):
                successor = client.submit(_attempt_there, work, follower, pure=False)
                futures[successor] = follower
                completed.add(successor)


def _ignore(_slide: str, _done: int, _total: int) -> None:
    """Tell nobody of tiles."""


def _attempt(work: Callable[[Item, TileNews], Result], item: Item, news: TileNews) -> Result | BaseException:
    try:
        return work(item, news)
    except Exception as error:  # noqa: BLE001  (one bad slide never ends the run; the caller judges the error)
        return error


def _attempt_there(work: Callable[[Item, TileNews], Result], item: Item) -> Result | BaseException:
    from distributed import get_worker  # noqa: PLC0415  (slow import)

    worker = get_worker()

    def news(slide: str, done: int, total: int) -> None:
        worker.log_event(TOPIC, (slide, done, total))

    return _attempt(work, item, news)


def _result(future: Any) -> Any:  # noqa: ANN401  (distributed is untyped)
    from distributed.scheduler import KilledWorker  # noqa: PLC0415  (slow import)

    try:
        return future.result()
    except KilledWorker:
        return MemoryError(f"its worker process died {_DEATHS} times, most likely out of memory")
    except CancelledError as error:
        return ConnectionError(f"the scheduler was lost: {error}")
    except Exception as error:  # noqa: BLE001  (whatever came back is judged by the caller)
        return error


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in processes that are started meanwhile: a terminal sends it to all, and we end them ourselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _local_client(workers: int, on_tiles: TileNews) -> Iterator[Any]:
    import dask  # noqa: PLC0415  (slow import)
    from distributed import Client, LocalCluster  # noqa: PLC0415

    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS - 1,
        "distributed.worker.daemon": True,
        # Dask makes glibc return every freed tile at once; faulting the pages back in took half of the time
        "distributed.nanny.pre-spawn-environ": {
            "MALLOC_TRIM_THRESHOLD_": 512 << 20,
            "MALLOC_MMAP_THRESHOLD_": 32 << 20,
            "OMP_NUM_THREADS": 1,
            "MKL_NUM_THREADS": 1,
            "OPENBLAS_NUM_THREADS": 1,
        },
    }
    with dask.config.set(settings), ExitStack() as started:
        with _interrupts_ignored():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            )
        client = started.enter_context(Client(started.enter_context(cluster)))
        client.subscribe_topic(TOPIC, lambda event: on_tiles(*event[1]))
        yield client
