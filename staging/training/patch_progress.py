"""Progress of drawing and storing patches on stderr: slides, then patches per second."""

from __future__ import annotations

import time

from rich.progress import TextColumn

from staging.bars import Bars


class PatchProgress(Bars):
    """Two bars, slides drawn from and patches stored; plain lines if stderr is not a terminal.

    Args:
        slides: maximum number of slides drawn from; ``begin`` gives the exact number.
    """

    def __init__(self, slides: int) -> None:
        super().__init__(TextColumn("{task.fields[speed]}"))
        self._slides, self._drawn, self._stored = slides, 0, 0
        self._start = 0.0
        self._drawing = self.bars.add_task("slides drawn from", total=slides, speed="")
        self._storing = self.bars.add_task("patches stored", total=None, speed="", visible=False)

    def begin(self, slides: int) -> None:
        """Set the number of slides drawn from, without those left out."""
        self._slides = slides
        self.bars.update(self._drawing, total=slides)

    def slide(self, name: str, outcome: str = "") -> None:
        """Count a slide that patches were drawn from."""
        self._drawn += 1
        self.bars.update(self._drawing, completed=self._drawn)
        if not self.is_live:
            self.say(f"drawn from {self._drawn}/{self._slides} {name} {outcome}".rstrip())

    def stored(self, name: str, patches: int, total: int) -> None:
        """Count the stored patches of a slide; an empty name starts the count."""
        if not name:
            self._start = time.perf_counter()
            self.bars.update(self._storing, total=total, visible=True)
            return
        self._stored += patches
        speed = f"{self._stored / max(1e-6, time.perf_counter() - self._start):,.0f} patches/s"
        self.bars.update(self._storing, completed=self._stored, speed=speed)
        if not self.is_live:
            self.say(f"stored {self._stored}/{total} {name}, {speed}")
