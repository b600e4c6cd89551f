"""Progress bars on stderr: slides and tiles, with the time remaining."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from wsi.errors import plain

Slide = TypeVar("Slide")

log = logging.getLogger("staging.progress")
TELL_EVERY_S = 30.0
"""How often the time left is told where stderr is no terminal."""


class Bars:
    """Bars on stderr with plain lines above them. If stderr is no terminal, only lines, and every half minute one more.

    Nothing is printed if the logger ``staging.progress`` is switched off.

    Args:
        columns: shown between the count and the time remaining.
        is_transient: remove the bars when they finish.
        is_silent: print nothing at all.
    """

    def __init__(self, *columns: ProgressColumn, is_transient: bool = False, is_silent: bool = False) -> None:
        is_silent = is_silent or not log.isEnabledFor(logging.WARNING)
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
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        sys.stderr.flush()

    def start(self) -> None:
        """Show the bars, or begin to tell the time left."""
        self.bars.start()
        if not (self.is_live or self.console.quiet):
            self._ended = threading.Event()
            self._teller = threading.Thread(target=self._tell, args=(self._ended,), daemon=True, name="time-left")
            self._teller.start()

    def stop(self) -> None:
        """Stop what ``start`` began."""
        self._ended.set()
        if self._teller is not None:
            self._teller.join()  # it may be in the middle of a line
            self._teller = None
        self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(plain(text), markup=False)

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(TELL_EVERY_S):
            for task in self.bars.tasks:
                if task.visible and task.total and not task.finished:
                    self.say(time_left(task))


def time_left(task: Task) -> str:
    """Say in a line how far a task is, and how long the rest will take if it goes on like this."""
    done = f"{task.description}: {task.completed:,.0f} of {task.total or 0:,.0f}"
    speed = task.fields.get("speed")
    # the mean since the start: a slide's tiles come in bursts, which a running mean would follow
    left = (task.elapsed or 0) * ((task.total or 0) - task.completed) / task.completed if task.completed else None
    rest = "" if left is None else f", about {timedelta(seconds=max(1, round(left)))} left"
    return f"{done}{f', {speed}' if speed else ''}{rest}"


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


def watched(slides: Iterable[Slide], *, count: int, verb: str, name: Callable[[Slide], str]) -> Iterator[Slide]:
    """Yield slides one by one, and count each when the next is asked for.

    Args:
        slides: anything that stands for slides.
        count: how many they are.
        verb: what is done to them.
        name: of one.
    """
    with CohortProgress(count, verb=verb, tiles=False) as progress:
        for one in slides:
            yield one
            progress.slide(name(one))
