"""Open slides, few at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from os import fspath
from pathlib import Path
from typing import Any

from wsi.readers.base import BadTile, OnBadTile
from wsi.slide import Slide


@dataclass(slots=True, eq=False)
class SlidePool:
    """Open slides, the least recently used given back when there are more than ``most``; pickles without them.

    Attributes:
        most: slides that are open at a time.
        on_bad_tile: as for ``Slide.open``.
    """

    most: int = 16
    on_bad_tile: OnBadTile = "raise"
    _open: OrderedDict[str, Slide] = field(default_factory=OrderedDict, repr=False)
    _bad: set[tuple[str, BadTile]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"at least one slide must be open at a time, got {self.most}")

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: str | Path) -> Slide:
        """The slide at a path, good until ``most`` others were asked for.

        Raises:
            SlideError: it cannot be opened.
        """
        key = fspath(path)
        found = self._open.pop(key, None)
        self._open[key] = Slide.open(key, on_bad_tile=self.on_bad_tile) if found is None else found
        while len(self._open) > self.most:
            self._give_back(last=False)
        return self._open[key]

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles that could not be decoded and were read as white, each with its slide's path, so far."""
        still = {(path, tile) for path, slide in self._open.items() for tile in slide.bad_tiles}
        return tuple(sorted(self._bad | still))

    def close(self) -> None:
        """Give all slides back."""
        while self._open:
            self._give_back(last=True)

    def _give_back(self, *, last: bool) -> None:
        path, slide = self._open.popitem(last=last)
        self._bad.update((path, tile) for tile in slide.bad_tiles)
        slide.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SlidePool, (self.most, self.on_bad_tile)
