"""The number of cores to work with, and how fast they do it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_SECONDS = 0.5  # of a measurement


def usable_cores() -> int:
    """Cores that this process may use, at least 1: a batch system may grant fewer than the machine has."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not available on every system
        return os.cpu_count() or 1


def calls_per_second(work: Callable[[], object]) -> float:
    """How often something can be called in a second, measured for half of one after a first call."""
    work()
    begun, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < _SECONDS:
        work()
        count += 1
    return count / took
