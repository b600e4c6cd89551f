"""The number of cores to work with."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use, at least 1: a batch system may grant fewer than the machine has."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not available on every system
        return os.cpu_count() or 1
