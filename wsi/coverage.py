"""How much of a slide's tissue was looked at: tissue that was not is never called negative."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, TileGrid
from wsi.hidden import cells_over, hidden, tiles_under
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.tissue import covers

_MOST = 1e6
_ROUNDING_MM2 = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The tissue of a slide and the part of it that was looked at.

    Attributes:
        tissue_mm2: area that the tissue detector found on the overview.
        looked_mm2: area of the part that was looked at.
        missing_tiles: tiles under tissue that the slide does not store, on the level that was read.
        bad_tiles: tiles under tissue that could not be decoded.
    """

    tissue_mm2: float
    looked_mm2: float
    missing_tiles: int = 0
    bad_tiles: int = 0

    @property
    def share(self) -> float:
        """The share of the tissue that was looked at, 0 to 1; 0 without tissue, as nothing was seen."""
        return self.looked_mm2 / self.tissue_mm2 if self.tissue_mm2 else 0.0

    def is_whole(self, tolerance: float) -> bool:
        """Whether at most the share ``tolerance`` of the tissue went unseen."""
        return self.share >= 1 - tolerance

    def __str__(self) -> str:
        text = f"{self.looked_mm2:.2f} of {self.tissue_mm2:.2f} mm2 of tissue were looked at ({self.share:.1%})"
        found = [
            f"{count} {kind} tile{'s' if count > 1 else ''}"
            for count, kind in ((self.missing_tiles, "missing"), (self.bad_tiles, "bad"))
            if count
        ]
        return f"{text}; {' and '.join(found)} under tissue" if found else text

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps, the share among them."""
        return {**asdict(self), "share": round(self.share, 6)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Coverage:
        """Read the values of to_json.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        values = {name: record[name] for name in ("tissue_mm2", "looked_mm2", "missing_tiles", "bad_tiles")}
        # a slide has less than a square metre
        if not all(isinstance(value, int | float) and 0 <= value < _MOST for value in values.values()):
            raise ValueError("its coverage is not of numbers from 0 on")
        if values["looked_mm2"] > values["tissue_mm2"] + _ROUNDING_MM2:
            raise ValueError("more tissue was looked at than there is")
        return cls(**values)


def measure_coverage(slide: Slide, tissue: Mask, looked: Mask, *, downsample: float) -> Coverage:
    """Measure how much of the tissue was looked at.

    Args:
        slide: what was looked at; its resolution must be known.
        tissue: where tissue was found.
        looked: the cells that were looked at, bool (rows, columns) in a frame that covers the slide.
        downsample: level-0 px per px that was read: determines the level whose tiles are counted.

    Raises:
        ResolutionError: mpp is unknown.
    """
    wanted = covers(_without_rim(tissue), looked.frame)
    unseen = wanted & ~looked.array
    cell_mm2 = looked.frame.pixel_um**2 / 1e6
    missing, bad = _tiles(slide, Mask(frame=looked.frame, array=unseen), downsample) if unseen.any() else (0, 0)
    return Coverage(
        tissue_mm2=round(float(wanted.sum()) * cell_mm2, 6),
        looked_mm2=round(float((wanted & looked.array).sum()) * cell_mm2, 6),
        missing_tiles=missing,
        bad_tiles=bad,
    )


def stored_coverage(slide: Slide, tissue: Mask, *, downsample: float) -> Coverage:
    """Measure how much of the tissue lies on stored tiles that can be decoded and seen, for whatever reads them all.

    A pixel of the mask belongs to the tile under its centre. Missing tiles are known beforehand, bad ones only after
    they were read (with on_bad_tile="white").

    Args:
        slide: its resolution must be known.
        tissue: where tissue was found.
        downsample: level-0 px per px that is read: determines the level whose tiles count.

    Raises:
        ResolutionError: mpp is unknown.
    """
    grid, bad = _stored(slide, downsample)
    wanted = _without_rim(tissue)
    is_hidden = hidden(slide, wanted, downsample=downsample)
    indices, of_pixel = tiles_under(grid, Mask(frame=tissue.frame, array=wanted.array & ~is_hidden))
    counts = np.bincount(of_pixel, minlength=len(indices))
    is_bad = np.array([tile in bad for tile in indices], dtype=bool)
    is_missing = np.array([tile not in bad and slide.is_missing(grid.tile(*tile)) for tile in indices], dtype=bool)
    pixel_mm2 = tissue.frame.pixel_um**2 / 1e6
    return Coverage(
        tissue_mm2=round(int(wanted.array.sum()) * pixel_mm2, 6),
        looked_mm2=round(int(counts[~(is_bad | is_missing)].sum()) * pixel_mm2, 6),
        missing_tiles=int(is_missing.sum()),
        bad_tiles=int(is_bad.sum()),
    )


def without_unread(heatmap: Heatmap, slide: Slide, tissue: Mask, *, downsample: float) -> Heatmap:
    """The heatmap with the cells over tiles that could not be decoded, or that are hidden, marked as not looked at."""
    looked = heatmap.tissue & ~unread(slide, heatmap.frame, downsample=downsample)
    unshown = hidden(slide, tissue, downsample=downsample)
    looked &= ~covers(Mask(frame=tissue.frame, array=unshown), heatmap.frame)
    return Heatmap(frame=heatmap.frame, array=np.where(looked, heatmap.array, np.float32(0)), tissue=looked)


def unread(slide: Slide, cells: Frame, *, downsample: float) -> NDArray[np.bool_]:
    """The cells over a tile that could not be decoded and was read as white, bool (rows, columns) of ``cells``."""
    grid, bad = _stored(slide, downsample)
    found = np.zeros(cells.shape, bool)
    for row, column in bad:
        found[cells_over(grid, row, column, cells)] = True
    return found


def _without_rim(tissue: Mask) -> Mask:
    """The tissue that absorbs light: the mask of find_tissue is a pixel wider."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    core = ndimage.binary_erosion(tissue.array, structure=np.ones((3, 3), bool), border_value=1)
    return Mask(frame=tissue.frame, array=core)


def _tiles(slide: Slide, unseen: Mask, downsample: float) -> tuple[int, int]:
    """(missing, bad) tiles under cells that were not looked at."""
    grid, bad = _stored(slide, downsample)
    under = [tile for tile in grid if unseen.array[cells_over(grid, *tile, unseen.frame)].any()]
    missing = [tile for tile in under if tile not in bad and slide.is_missing(grid.tile(*tile))]
    return len(missing), len(bad.intersection(under))


def _stored(slide: Slide, downsample: float) -> tuple[TileGrid, set[tuple[int, int]]]:
    """The tiles of the level that is read, and which of them could not be decoded."""
    level = slide.level_for(downsample)
    grid = TileGrid(frame=slide.frame_of(level), tile_shape=level.tile_shape)
    return grid, {(tile.row, tile.column) for tile in slide.bad_tiles if tile.level == level.index}
