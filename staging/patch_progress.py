"""Progress of drawing and storing patches on stderr: slides, then patches with their speed."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class PatchProgress:
    """Two bars, slides drawn from and patches stored; plain lines where stderr is no terminal.

    Args:
        slides: at most so many are drawn from; ``begin`` tells how many.
    """

    def __init__(self, slides: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        self._slides, self._drawn, self._stored = slides, 0, 0
        self._start = 0.0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._live,
        )
        self._drawing = self._bars.add_task("slides drawn from", total=slides, speed="")
        self._storing = self._bars.add_task("patches stored", total=None, speed="", visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        sys.stderr.flush()

    def begin(self, slides: int) -> None:
        """So many slides are drawn from; the others are left out."""
        self._slides = slides
        self._bars.update(self._drawing, total=slides)

    def slide(self, name: str, outcome: str = "") -> None:
        """Patches were drawn from a slide."""
        self._drawn += 1
        self._bars.update(self._drawing, completed=self._drawn)
        if not self._live:
            self.say(f"drawn from {self._drawn}/{self._slides} {name} {outcome}".rstrip())

    def stored(self, name: str, patches: int, total: int) -> None:
        """Patches of a slide were stored; an empty name begins."""
        if not name:
            self._start = time.perf_counter()
            self._bars.update(self._storing, total=total, visible=True)
            return
        self._stored += patches
        speed = f"{self._stored / max(1e-6, time.perf_counter() - self._start):,.0f} patches/s"
        self._bars.update(self._storing, completed=self._stored, speed=speed)
        if not self._live:
            self.say(f"stored {self._stored}/{total} {name}, {speed}")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False)
