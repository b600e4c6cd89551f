"""Progress bars on stderr: slides and tiles, with the time remaining."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from wsi.errors import plain


class Bars:
    """Bars on stderr with plain lines above them; only the lines if stderr is not a terminal.

    Args:
        columns: shown between the count and the time remaining.
        is_transient: remove the bars when they finish.
        is_silent: print nothing at all.
    """

    def __init__(self, *columns: ProgressColumn, is_transient: bool = False, is_silent: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=is_silent)
        self.is_live = self.console.is_terminal and not is_silent
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            *columns,
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=is_transient,
            disable=not self.is_live,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(plain(text), markup=False)


class CohortProgress(Bars):
    """Two bars, slides and tiles done; plain lines if stderr is not a terminal.

    Args:
        slides: number of slides.
        verb: what is done to them, shown in the bar.
        tiles: show the second bar.
    """

    def __init__(self, slides: int, *, verb: str = "slides", tiles: bool = True) -> None:
        super().__init__()
        self._verb = verb
        self._total = slides
        self._done = 0
        self._tiles: dict[str, tuple[int, int]] = {}
        self._slide_bar = self.bars.add_task(verb, total=slides)
        self._tile_bar = self.bars.add_task("tiles", total=None) if tiles else None

    def tiles(self, slide: str, done: int, total: int) -> None:
        """Update the count of one slide; the bar's total is extrapolated from the slides seen so far."""
        self._tiles[slide] = (done, total)
        if self._tile_bar is not None:
            seen = sum(total for _, total in self._tiles.values())
            expected = round(seen * max(1.0, self._total / max(1, len(self._tiles))))
            self.bars.update(self._tile_bar, completed=sum(done for done, _ in self._tiles.values()), total=expected)

    def slide(self, name: str, outcome: str = "") -> None:
        """Count a finished slide."""
        self._done += 1
        self.bars.update(self._slide_bar, completed=self._done)
        if not self.is_live:
            self.say(f"{self._verb} {self._done}/{self._total} {name} {outcome}".rstrip())
