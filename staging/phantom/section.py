"""Render the tiles of one slide from its anatomy, its outlines and the textures of its centre."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from staging.phantom.anatomy import CELL_UM, RIM, TINT_CELL_UM, Anatomy
from staging.phantom.atlas import RELIEF_STEP, Atlas, atlases
from staging.phantom.growth import fill_polygon
from staging.phantom.noise import Field, product, spline_rows
from staging.phantom.plan import Difficulty
from staging.phantom.stain import Centre

TILE_PX = 512
_FAR_UM = 700.0
_SOFT_MPP = 0.6
"""Borders between tissues are blurred below this many um per px."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """One slide that can be rendered tile by tile.

    Attributes:
        centre: the centre whose stain, optics and scanner are used.
        difficulty: by what tumour is told.
        mpp: um per px.
        width, height: of the slide in px.
        anatomy: the tissues of the section.
        tumours, islands: outlines (n, 2) x, y in level-0 px: metastases, and areas cut out of them.
        shifts: start of each texture, int (tissues, 2).
    """

    centre: Centre
    difficulty: Difficulty
    mpp: float
    width: int
    height: int
    anatomy: Anatomy
    tumours: Sequence[NDArray[np.float64]]
    islands: Sequence[NDArray[np.float64]]
    shifts: NDArray[np.intp]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return -(-self.height // TILE_PX), -(-self.width // TILE_PX)

    def tiles(self) -> Iterator[NDArray[np.uint8] | None]:
        """Yield all tiles row by row, uint8 (512, 512, 3); None where a Philips scanner stores nothing."""
        rows, columns = self.grid
        return (self.tile(row, column) for row in range(rows) for column in range(columns))

    def tile(self, row: int, column: int) -> NDArray[np.uint8] | None:
        """Render one tile, including beyond the slide's edge where the last tiles overhang."""
        top, left = row * TILE_PX, column * TILE_PX
        tint = _Spline.of(self.anatomy.tint.shape[:2], (top, left), TILE_PX, mpp=self.mpp, cell_um=TINT_CELL_UM)
        tinted = self.anatomy.tint[tint.cells]
        plain = bool(tinted.min(initial=1.0) > 0.999)
        if self.centre.philips and plain and self._is_far(top, left):
            return None
        textures = self._textures()
        out = np.empty((TILE_PX, TILE_PX, 3), dtype=np.uint8)
        packed = out.view("V3")[..., 0]

        def copy(code: int, block: _Block, where: NDArray[np.bool_] | None) -> None:
            source = self._texture(textures, code, block).view("V3")[..., 0]
            if where is None:
                packed[block.inside] = source
            else:
                np.copyto(packed[block.inside], source, where=where)

        _soften(out, self._compose(top, left, textures, copy))
        if not plain:
            _shade(out, tint, tinted, rows=2 if self.mpp > 2 or tinted.min() < 0.8 else 4 if self.mpp > 1.2 else 8)
        return out

    def classes(self, row: int, column: int) -> NDArray[np.uint8]:
        """Return the tissue codes of one tile as rendered, uint8 (512, 512)."""
        out = np.empty((TILE_PX, TILE_PX), dtype=np.uint8)

        def copy(code: int, block: _Block, where: NDArray[np.bool_] | None) -> None:
            np.copyto(out[block.inside], np.uint8(code), where=True if where is None else where)

        self._compose(row * TILE_PX, column * TILE_PX, self._textures(), copy)
        return out

    def tumour_mask(self, row: int, column: int) -> NDArray[np.bool_] | None:
        """Return which px of a tile have their centre in a metastasis, bool (512, 512); None if there are none."""
        top, left = row * TILE_PX, column * TILE_PX
        mask = _fill(self.tumours, top, left)
        if mask is not None:
            cut = _fill(self.islands, top, left)
            if cut is not None:
                mask &= ~cut
        return mask

    def _textures(self) -> tuple[Atlas, ...]:
        return atlases(self.centre, self.mpp, TILE_PX, self.difficulty)

    def _texture(self, textures: Sequence[Atlas], code: int, block: _Block) -> NDArray[np.uint8]:
        shift = self.shifts[code]
        return textures[code].window(block.top + shift[0], block.left + shift[1], block.side, block.side)

    def _is_far(self, top: int, left: int) -> bool:
        reach = round(_FAR_UM / self.mpp)
        corner, side = (top - reach, left - reach), TILE_PX + 2 * reach
        around = _Spline.of(self.anatomy.tissue.shape, corner, side, mpp=self.mpp, cell_um=CELL_UM)
        return not self.anatomy.tissue[around.cells].any()

    def _compose(self, top: int, left: int, textures: Sequence[Atlas], copy: _Copy) -> list[NDArray[np.intp]]:
        """Compose all tissues; return the px (flat indices into the tile) along their borders."""
        seams: list[NDArray[np.intp]] = []
        tumour = self.tumour_mask(top // TILE_PX, left // TILE_PX)
        anatomy = self.anatomy
        whole = _Spline.of(anatomy.tissue.shape, (top, left), TILE_PX, mpp=self.mpp, cell_um=CELL_UM)
        codes = anatomy.tissue[whole.cells]
        is_plain = tumour is None and bool((codes == codes[0, 0]).all())
        for block in _blocks(anatomy.tissue.shape, top, left, self.mpp, TILE_PX if is_plain else _block_side(self.mpp)):
            mask = None if tumour is None else tumour[block.inside]
            covered = mask is not None and bool(mask.all())
            if not covered:
                seams += self._blend(anatomy.tissue, block, None, textures, copy)
            if mask is not None and bool(mask.any()):
                seams += self._blend(anatomy.tumour, block, None if covered else mask, textures, copy)
        if tumour is not None and self.mpp < _SOFT_MPP:
            seams.append(_seam(tumour, slice(0, TILE_PX), slice(0, TILE_PX), 1))
        return seams

    def _blend(
        self,
        grid: NDArray[np.uint8],
        block: _Block,
        where: NDArray[np.bool_] | None,
        textures: Sequence[Atlas],
        copy: _Copy,
    ) -> list[NDArray[np.intp]]:
        """Put the tissues of a grid into one block; return the px along their borders if they are to be blurred.

        At each px the tissue with the largest share of the surrounding cells (by splines) times its relief wins.
        """
        cells = grid[block.spline.cells]
        present = np.flatnonzero(np.bincount(cells.ravel()))
        if len(present) == 1:
            copy(int(present[0]), block, where)
            return []
        thin = _thinning(self.mpp)
        down, across = block.spline.down[thin // 2 :: thin], block.spline.across[thin // 2 :: thin].T
        shares = down @ (cells == present[:, None, None]).astype(np.float32) @ across
        seams: list[NDArray[np.intp]] = []
        best: Field | None = None
        for code, share in zip(present.tolist(), shares, strict=True):
            row, column = block.top + self.shifts[code, 0], block.left + self.shifts[code, 1]
            relief = textures[code].relief_window(row, column, block.side, block.side)
            score = np.multiply(relief[thin // 2 :: thin, thin // 2 :: thin], np.float32(RELIEF_STEP))
            score += np.float32(1)
            score *= share  # a factor, so that a tissue never wins beyond the reach of its cells
            if best is None:
                copy(code, block, where)
                best = score
                continue
            won = score > best
            if code != present[-1]:
                np.maximum(best, score, out=best)
            if self.mpp < _SOFT_MPP:
                seams.append(_seam(won, *block.inside, thin))
            if thin > 1:
                won = won.repeat(thin, axis=1).repeat(thin, axis=0)
            if where is not None:
                won &= where
            copy(code, block, won)
        return seams


@dataclass(frozen=True, slots=True)
class _Block:
    """A square of px on the slide, its position inside its tile, and the cells around it."""

    top: int
    left: int
    side: int
    inside: tuple[slice, slice]
    spline: _Spline


def _blocks(shape: tuple[int, int], top: int, left: int, mpp: float, side: int) -> Iterator[_Block]:
    """Cut a tile into squares."""
    starts = range(0, TILE_PX, side)
    columns = [_axis(shape[1], left + x, side, mpp, CELL_UM) for x in starts]
    for y in starts:
        cell_rows, down = _axis(shape[0], top + y, side, mpp, CELL_UM)
        for x, (cell_columns, across) in zip(starts, columns, strict=True):
            spline = _Spline((cell_rows, cell_columns), down, across)
            yield _Block(top + y, left + x, side, (slice(y, y + side), slice(x, x + side)), spline)


class _Copy(Protocol):
    """Puts one tissue into a block of the tile."""

    def __call__(self, code: int, block: _Block, where: NDArray[np.bool_] | None) -> None: ...


@dataclass(frozen=True, slots=True)
class _Spline:
    """The cells of a grid that matter for a square of px, and the matrices that interpolate them."""

    cells: tuple[slice, slice]
    down: Field
    across: Field

    @classmethod
    def of(cls, shape: tuple[int, int], corner: tuple[int, int], side: int, *, mpp: float, cell_um: float) -> _Spline:
        top, left = corner
        rows, down = _axis(shape[0], top, side, mpp, cell_um)
        columns, across = _axis(shape[1], left, side, mpp, cell_um)
        return cls((rows, columns), down, across)


@lru_cache(maxsize=256)
def _axis(cells: int, start: int, side: int, mpp: float, cell_um: float) -> tuple[slice, Field]:
    position = (start + 0.5) * mpp / cell_um + RIM
    first = int(np.floor(position)) - 1
    matrix = spline_rows(side, mpp / cell_um, position - first)
    index = np.clip(np.arange(first, first + matrix.shape[1]), 0, cells - 1)
    low, high = int(index[0]), int(index[-1]) + 1
    if high - low < matrix.shape[1]:
        # the square overhangs the grid: the outermost cells stand in for the missing ones
        inner = np.zeros((side, high - low), dtype=np.float32)
        np.add.at(inner.T, index - low, matrix.T)
        matrix = inner
    return slice(low, high), matrix


def _thinning(mpp: float) -> int:
    """Return the spacing in px at which the border between two tissues is computed."""
    return 2 if mpp <= 1.2 else 1


def _block_side(mpp: float) -> int:
    return 256 if mpp <= 0.6 else 128 if mpp <= 1.2 else 64


def _fill(outlines: Sequence[NDArray[np.float64]], top: int, left: int) -> NDArray[np.bool_] | None:
    mask: NDArray[np.bool_] | None = None
    for outline in outlines:
        x, y = outline[:, 0] - left, outline[:, 1] - top
        if x.max() <= 0 or y.max() <= 0 or x.min() >= TILE_PX or y.min() >= TILE_PX:
            continue
        filled = _fill_one(x, y)
        mask = filled if mask is None else mask | filled
    return mask if mask is not None and mask.any() else None


def _fill_one(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    crosses = (np.minimum(x, x2) < TILE_PX) & (np.maximum(x, x2) > 0)
    crosses &= (np.minimum(y, y2) < TILE_PX) & (np.maximum(y, y2) > 0)
    if crosses.any():
        return fill_polygon(x, y, (TILE_PX, TILE_PX))
    return np.full((TILE_PX, TILE_PX), fill_polygon(x, y, (1, 1))[0, 0])  # no edge in the tile: all of it or none


def _seam(mask: NDArray[np.bool_], rows: slice, columns: slice, thin: int) -> NDArray[np.intp]:
    """Px along a mask's border, as flat indices into the tile; the mask has every ``thin``-th px."""
    edge = np.zeros(mask.shape, dtype=bool)
    np.not_equal(mask[1:], mask[:-1], out=edge[1:])
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    y, x = np.divmod(np.flatnonzero(edge), mask.shape[1])
    first = (y * thin + rows.start) * TILE_PX + x * thin + columns.start
    return np.concatenate([first + dy * TILE_PX + dx for dy in range(thin) for dx in range(thin)])


def _soften(tile: NDArray[np.uint8], seams: Sequence[NDArray[np.intp]]) -> None:
    """Average the px along the borders with their neighbours, in place: no lens images a knife edge."""
    if not seams:
        return
    index = np.concatenate(seams)
    row, column = np.divmod(index, TILE_PX)
    inner = (row > 0) & (row < TILE_PX - 1) & (column > 0) & (column < TILE_PX - 1)
    index = index[inner]
    pixels = tile.reshape(-1, 3)
    total = np.full((len(index), 3), 2, dtype=np.uint16)
    for offset in (-TILE_PX - 1, -TILE_PX + 1, TILE_PX - 1, TILE_PX + 1):
        total += pixels[index + offset]
    pixels[index] = (total >> 2).astype(np.uint8)


def _shade(tile: NDArray[np.uint8], spline: _Spline, tint: Field, *, rows: int) -> None:
    """Pass the tile's light through the tint, in place; groups of ``rows`` px share the same tint."""
    shares = np.moveaxis(tint, 2, 0) * np.float32(256)
    down, across = spline.down[rows // 2 :: rows], spline.across.T
    light = np.stack([product(product(down, share), across) for share in shares])
    factors = np.empty((TILE_PX // rows, TILE_PX, 3), dtype=np.uint16)
    np.copyto(factors, np.moveaxis(light, 0, 2), casting="unsafe")
    stripes = tile.reshape(-1, rows, TILE_PX * 3)
    some = max(1, 32 // rows)  # few enough at a time that the widened px stay in the processor's cache
    wide = np.empty((some, rows, TILE_PX * 3), dtype=np.uint16)
    for first in range(0, len(stripes), some):
        part = stripes[first : first + some]
        np.copyto(wide, part)
        np.multiply(wide, factors[first : first + some].reshape(-1, 1, TILE_PX * 3), out=wide)
        np.right_shift(wide, 8, out=wide)
        np.copyto(part, wide, casting="unsafe")
