"""A bounded number of open slides."""

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
    """Open slides; beyond ``most`` the least recently used is closed. Pickles without them.

    Attributes:
        most: slides open at a time.
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
        """The slide at a path, valid until ``most`` others have been requested.

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
        """Tiles read as white so far because they could not be decoded, each with its slide's path."""
        still = {(path, tile) for path, slide in self._open.items() for tile in slide.bad_tiles}
        return tuple(sorted(self._bad | still))

    def close(self) -> None:
        """Close all slides."""
        while self._open:
            self._give_back(last=True)

    def _give_back(self, *, last: bool) -> None:
        path, slide = self._open.popitem(last=last)
        self._bad.update((path, tile) for tile in slide.bad_tiles)
        slide.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SlidePool, (self.most, self.on_bad_tile)
