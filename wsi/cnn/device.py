"""Computing devices: the GPU or the cores, and threads that each compute alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch

from wsi.cores import usable_cores
from wsi.errors import PathologyError


def pick_device(name: str) -> torch.device:
    """The device named "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        PathologyError: the device does not exist.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    kind, _, index = name.partition(":")
    is_there = (
        kind == "cuda" and has_gpu and (not index or (index.isdigit() and int(index) < torch.cuda.device_count()))
    )
    if name == "cpu" or is_there:
        return torch.device(name)
    raise PathologyError(None, f"there is no device {name!r} here", mend="use the device auto or cpu")


def shared_out(device: str, workers: int | None = None) -> tuple[int, int]:
    """(processes, threads in each) that compute; with a GPU, one process uses all cores to read for it.

    Args:
        device: as for pick_device.
        workers: processes; None chooses.

    Raises:
        PathologyError: the device does not exist.
    """
    if pick_device(device).type != "cuda":
        return workers or usable_cores(), 1
    processes = workers or 1
    return processes, max(1, usable_cores() // processes)


@contextmanager
def equal_convolutions() -> Iterator[None]:
    """Make cuDNN use deterministic algorithms, in full precision, in all threads.

    TF32 keeps 10 bits of a product: the result would differ from the CPU's in the third digit.
    """
    # ``enabled`` defaults to False: convolutions without cuDNN, many times slower
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@contextmanager
def lone_threads(workers: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads each use one thread within torch; all other threads are unaffected.

    Results do not depend on the number of such threads. Threads inside each operation would also wait for each other
    many times per millisecond, which is slow whenever something else uses the cores.
    """
    meeting = Barrier(workers)

    def enter(_: int) -> None:
        meeting.wait()  # so that every thread runs this once
        torch.get_num_threads()  # a thread's first query fixes its number; later ones do not change it
        torch.set_num_threads(1)

    with ThreadPoolExecutor(workers, name) as pool:
        # torch keeps the number per thread, and the last one set for threads still to come
        before = torch.get_num_threads()
        list(pool.map(enter, range(workers)))
        torch.set_num_threads(before)
        yield pool
