"""Progress bars on stderr: slides and tiles, with the time that is left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class CohortProgress:
    """Two bars, slides done and tiles done; plain lines where stderr is no terminal.

    Args:
        slides: how many slides there are.
        verb: what is done to them, for the bar.
        tiles: show the second bar.
    """

    def __init__(self, slides: int, *, verb: str = "slides", tiles: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._verb = verb
        self._total = slides
        self._done = 0
        self._tiles: dict[str, tuple[int, int]] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self._live,
        )
        self._slide_bar = self._bars.add_task(verb, total=slides)
        self._tile_bar = self._bars.add_task("tiles", total=None) if tiles else None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        sys.stderr.flush()

    def tiles(self, slide: str, done: int, total: int) -> None:
        """Take the count of one slide; the bar's total is extrapolated from the slides seen so far."""
        self._tiles[slide] = (done, total)
        if self._tile_bar is not None:
            seen = sum(total for _, total in self._tiles.values())
            expected = round(seen * max(1.0, self._total / max(1, len(self._tiles))))
            self._bars.update(self._tile_bar, completed=sum(done for done, _ in self._tiles.values()), total=expected)

    def slide(self, name: str, outcome: str = "") -> None:
        """One slide has ended."""
        self._done += 1
        self._bars.update(self._slide_bar, completed=self._done)
        if not self._live:
            self.say(f"{self._verb} {self._done}/{self._total} {name} {outcome}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)
