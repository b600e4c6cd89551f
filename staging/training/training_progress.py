"""Progress of training on stderr: the patches of a pass and their speed."""

from __future__ import annotations

import time
from typing import Self

from rich.progress import TextColumn

from staging.bars import Bars


class TrainingProgress(Bars):
    """A bar for the current pass.

    Args:
        is_silent: print nothing, as in all but the first of several training processes.
    """

    def __init__(self, *, is_silent: bool = False) -> None:
        super().__init__(TextColumn("{task.fields[speed]}"), is_transient=True, is_silent=is_silent)
        self._bar = self.bars.add_task("patches of this pass", total=None, speed="", visible=False)
        self._begun_at = 0.0
        self._first = self._last = 0

    def __enter__(self) -> Self:
        return self  # each pass starts the bar: other bars may appear between two passes

    def step(self, done: int, total: int) -> None:
        """Show the patches done in this pass."""
        now = time.perf_counter()
        if done <= self._last or not self._begun_at:
            self._begun_at = now
            self._first = done
            self.bars.reset(self._bar, total=total)
            self.start()
        self._last = done
        seconds = now - self._begun_at
        speed = f"{(done - self._first) / seconds:,.0f} patches/s" if seconds > 0 else ""
        self.bars.update(self._bar, completed=done, total=total, speed=speed, visible=True)
        if done == total:
            self.stop()
