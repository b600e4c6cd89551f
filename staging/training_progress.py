"""Progress of a training on stderr: the patches of a pass and their speed."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 60.0


class TrainingProgress:
    """A bar for the pass that is made; a line a minute where stderr is no terminal.

    Args:
        is_silent: tell nothing, as the other processes that train together do.
    """

    def __init__(self, *, is_silent: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=is_silent)
        self._live = self._console.is_terminal and not is_silent
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._bar = self._bars.add_task("patches of this pass", total=None, speed="", visible=False)
        self._begun_at = self._told_at = 0.0
        self._first = self._last = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        sys.stderr.flush()

    def step(self, done: int, total: int) -> None:
        """So many of a pass's patches were learnt from."""
        now = time.perf_counter()
        if done <= self._last or not self._begun_at:
            self._begun_at = self._told_at = now
            self._first = done
            self._bars.start()
        self._last = done
        seconds = now - self._begun_at
        speed = f"{(done - self._first) / seconds:,.0f} patches/s" if seconds > 0 else ""
        self._bars.update(self._bar, completed=done, total=total, speed=speed, visible=True)
        if done == total:
            self._bars.stop()  # others may draw bars between two passes
        if not self._live and now - self._told_at >= _LINE_EVERY_S:
            self._told_at = now
            self.say(f"{done:,} of {total:,} patches, {speed}")

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._console.print(text, markup=False)
