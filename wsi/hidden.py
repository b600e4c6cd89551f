"""Where the overview and the level that is read do not show the same: tissue under opacity, blank, or not stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, TileError
from wsi.geometry import Frame, Level, TileGrid
from wsi.raster import Image, Mask
from wsi.slide import Slide
from wsi.tissue import covers, overview

_WHITE = 255
_TRIED = 64
_FLAT = 4  # what pixels of a blank area differ by at most: JPEG's rounding
_UNLIKE = 10  # what the colour of a blank area differs by from the overview's, of 255
_DARKER = 24  # of 255, on average over a tile
_RUN, _SOME = 16, 0.02
_MOST_STEP = 4  # between the rows that are looked at


def shown(slide: Slide, tissue: Mask, *, downsample: float) -> Mask:
    """The tissue without what is hidden, or not stored, on the level that is read: there is nothing to learn from."""
    level = slide.level_for(downsample)
    grid = TileGrid(frame=slide.frame_of(level), tile_shape=level.tile_shape)
    array = tissue.array & ~hidden(slide, tissue, downsample=downsample)
    under, of_pixel = tiles_under(grid, Mask(frame=tissue.frame, array=array))
    is_missing = np.array([slide.is_missing(grid.tile(*tile)) for tile in under], dtype=bool)
    if is_missing.any():
        array[array] = ~is_missing[of_pixel]
    return Mask(frame=tissue.frame, array=array)


def hidden(slide: Slide, tissue: Mask, *, downsample: float) -> NDArray[np.bool_]:
    """The tissue that the level that is read does not show: bool, (rows, columns) of the mask.

    Where a slide has opacity: pixels under which the level is white all over, as what is hidden is read so, and glass
    is white, too. Else: pixels under which the level has one colour and the mask's own resolution another, as a level
    that was not filled in has under an overview that was. Up to 64 tiles, evenly over the tissue, are tried for that;
    only if one of them is blank are all looked at. Missing and bad tiles are not counted here. As many tiles are tried
    beside the tissue: where they show what the overview does not, the tissue is not known.

    Args:
        slide: its resolution must be known.
        tissue: from find_tissue.
        downsample: level-0 px per px that is read.

    Raises:
        TileError: a tile of the overview is damaged.
        SlideError: the level shows tissue where the overview shows none.
    """
    level = slide.level_for(downsample)
    grid = TileGrid(frame=slide.frame_of(level), tile_shape=level.tile_shape)
    if slide.has_opacity:
        return tissue.array & ~_not_white(slide, tissue.frame, level, grid, _tiles(_is_under(grid, tissue)))
    if level == slide.levels[-1]:
        return np.zeros(tissue.frame.shape, bool)
    known = overview(slide, tissue.frame).array
    is_under = _is_under(grid, tissue)
    _check_beside(slide, Image(frame=tissue.frame, array=known), grid, _spread(_tiles(~is_under)))
    under = _tiles(is_under)
    found = _blank(slide, tissue, known, grid, _spread(under))
    return _blank(slide, tissue, known, grid, under) if found.any() else found


def tiles_under(grid: TileGrid, mask: Mask) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """The tiles under a mask, a pixel's tile being the one under its centre.

    Returns:
        The (row, column) of each tile, and for each true pixel, row by row, the index of its tile, int64 (n,).
    """
    at = grid.frame.fractions(*mask.frame.centres(*np.nonzero(mask.array)))
    sides = zip(at, grid.tile_shape, grid.shape, strict=True)
    # the mask's last pixels may extend beyond the level
    tiles = np.stack([(one // side).astype(np.int64).clip(0, most - 1) for one, side, most in sides], axis=1)
    under, of_pixel = np.unique(tiles, axis=0, return_inverse=True)
    return [(row, column) for row, column in under.tolist()], of_pixel.ravel()


def cells_over(grid: TileGrid, row: int, column: int, cells: Frame) -> tuple[slice, slice]:
    """The cells of a frame that overlap a tile."""
    tile = grid.tile(row, column).region
    rows, columns = cells.fractions([tile.x, tile.right], [tile.y, tile.bottom])
    (top, bottom), (left, right) = rows.tolist(), columns.tolist()
    # rounding by a millionth of a cell must not pull in a neighbour
    return (
        slice(max(0, math.floor(top + 1e-6)), max(0, math.ceil(bottom - 1e-6))),
        slice(max(0, math.floor(left + 1e-6)), max(0, math.ceil(right - 1e-6))),
    )


def _spread(tiles: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most 64 of the tiles, evenly."""
    return [tiles[at] for at in np.unique(np.linspace(0, len(tiles) - 1, _TRIED).astype(int)).tolist()] if tiles else []


def _check_beside(slide: Slide, known: Image, grid: TileGrid, tiles: Sequence[tuple[int, int]]) -> None:
    """Refuse a slide whose overview is brighter than the level that is read, where it shows no tissue.

    Raises:
        SlideError: it is.
    """
    level = slide.level_for(grid.frame.downsample)
    um = known.frame.pixel_um
    darker = 0
    for tile in tiles:
        over = cells_over(grid, *tile, known.frame)
        expected = known.array[over]
        try:
            pixels = slide.read_window(level.index, grid.window(*tile))
        except TileError:
            continue
        if expected.size:
            darker += bool(expected.mean() - pixels[::_MOST_STEP, ::_MOST_STEP].mean() > _DARKER)
    if darker:
        raise SlideError(
            slide.path,
            f"its levels do not show the same: of {len(tiles)} tiles where the overview of {um:.3g} um shows "
            f"no tissue, {darker} {'has' if darker == 1 else 'have'} some on level {level.index}",
            mend="write its coarse levels again (sentinode convert does)",
        )


def _is_under(grid: TileGrid, tissue: Mask) -> NDArray[np.bool_]:
    """Which tiles lie under tissue, bool (rows, columns) of tiles."""
    if grid.tile_shape[0] == grid.tile_shape[1]:
        return covers(tissue, grid.frame.coarser(grid.tile_shape[0]))
    found = np.zeros(grid.shape, bool)
    for tile in grid:
        found[tile] = tissue.array[cells_over(grid, *tile, tissue.frame)].any()
    return found


def _tiles(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The (row, column) of chosen tiles, row by row."""
    return [(row, column) for row, column in np.argwhere(chosen).tolist()]


def _not_white(
    slide: Slide, cells: Frame, level: Level, grid: TileGrid, tiles: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """The cells under which a pixel of these tiles is not white."""
    found = np.zeros(cells.shape, bool)
    for tile in tiles:
        window = grid.window(*tile)
        rows, columns = np.nonzero((slide.read_window(level.index, window) < _WHITE).any(axis=2))
        found[_cells_at(cells, grid, rows + window.row, columns + window.column)] = True
    return found


def _is_partly_flat(pixels: NDArray[np.uint8]) -> bool:
    """Whether some of a tile has one colour, as far as short runs of its pixels tell: most tissue is ruled out fast."""
    green = pixels[::_MOST_STEP, :, 1]
    runs = green[:, : green.shape[1] // _RUN * _RUN].reshape(len(green), -1, _RUN)
    is_flat = runs.max(axis=2) - runs.min(axis=2) <= 2 * _FLAT
    return not is_flat.size or bool(is_flat.mean() > _SOME)


def _blank(
    slide: Slide, tissue: Mask, overview: NDArray[np.uint8], grid: TileGrid, tiles: Iterable[tuple[int, int]]
) -> NDArray[np.bool_]:
    """The pixels of tissue with their centre in one of these tiles, under which it has one colour, not theirs."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    level = slide.level_for(grid.frame.downsample)
    cells = tissue.frame
    colour = overview.copy()
    step = max(1, min(_MOST_STEP, int(cells.downsample / level.downsample) // 2))
    is_flat, is_own = np.ones(cells.shape, bool), np.zeros(cells.shape, bool)
    for tile in tiles:
        if slide.is_missing(grid.tile(*tile)):
            continue
        window = grid.window(*tile)
        try:
            pixels = slide.read_window(level.index, window)
        except TileError:
            continue  # whoever reads the slide says so
        if not _is_partly_flat(pixels):
            continue
        if any((bad.level, bad.row, bad.column) == (level.index, *tile) for bad in slide.bad_tiles):
            continue
        over = cells_over(grid, *tile, cells)
        rows, columns = np.nonzero(tissue.array[over])
        rows, columns = rows + over[0].start, columns + over[1].start
        at_rows, at_columns = grid.frame.fractions(*cells.centres(rows, columns))
        inner_rows = np.floor(at_rows).astype(np.int64) - window.row
        inner_columns = np.floor(at_columns).astype(np.int64) - window.column
        within = (inner_rows >= 0) & (inner_rows < window.height) & (inner_columns >= 0)
        within &= inner_columns < window.width
        own = rows[within], columns[within]
        colour[own] = pixels[inner_rows[within], inner_columns[within]]
        is_own[own] = True
        # against the pixel at the centre, not the next one: what is out of focus changes slowly
        down, _ = _cells_at(cells, grid, np.arange(window.row, window.bottom, step), np.zeros(1, np.int64))
        _, across = _cells_at(cells, grid, np.zeros(1, np.int64), np.arange(window.column, window.right))
        here = np.ix_(down, across)
        is_other = np.abs(pixels[::step, :, 1].astype(np.int16) - colour[..., 1][here]) > _FLAT
        rows, columns = np.nonzero(is_other & is_own[here])
        is_flat[down[rows], across[columns]] = False
        is_own[own] = False
    is_unlike: NDArray[np.bool_] = (np.abs(colour.astype(np.int16) - overview) > _UNLIKE).any(axis=2)
    # a pixel of a coarse slide may be flat by chance
    return ndimage.binary_opening(is_flat & is_unlike, np.ones((3, 3), bool)) & tissue.array


def _cells_at(
    cells: Frame, grid: TileGrid, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """The cells under pixels of the grid's frame, as indices."""
    at = cells.fractions(*grid.frame.centres(rows, columns))
    return tuple(fraction.astype(np.int64).clip(0, side - 1) for fraction, side in zip(at, cells.shape, strict=True))
