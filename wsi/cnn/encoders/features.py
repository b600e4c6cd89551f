"""An encoder's features for a slide's tiles, in a Zarr group that records what it was made from.

On a CPU every tile goes through the encoder alone, on one thread: its features have the same bits whatever the order of
tiles, the batch and the number of workers. On a GPU tiles are batched, and their features agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsi.cnn.device import equal_convolutions, lone_threads
from wsi.cnn.encoders.encoder import Encoder
from wsi.cnn.inference import SlideSource, in_halves
from wsi.cores import usable_cores
from wsi.coverage import Coverage
from wsi.errors import ArtefactError, NoTissueError, PathologyError
from wsi.geometry import Frame
from wsi.raster import Mask
from wsi.store import DONE, publish, verify
from wsi.tiles import TilePlan, TileWindow, stream_tiles
from wsi.zarr_groups import UNREADABLE, open_group

KIND = "sentinode features"
Precision: TypeAlias = Literal["float16", "float32"]

_GPU_BATCH = 64
_CHUNK_ROWS = 1024

_Pixels: TypeAlias = NDArray[np.uint8]
_Rows: TypeAlias = NDArray[np.float32]
_Encode: TypeAlias = Callable[[Sequence[_Pixels]], list[_Rows]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGeometry:
    """How a slide is cut into tiles.

    Attributes:
        mpp: um per px of a tile.
        size_px: side of a tile.
        stride_px: from one tile to the next; if smaller than size_px, tiles overlap by an even number of px.
    """

    mpp: float
    size_px: int
    stride_px: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"tiles need a positive mpp, got {self.mpp}")
        if not 1 <= self.stride_px <= self.size_px or (self.size_px - self.stride_px) % 2:
            raise ValueError(
                f"a stride must be at most the size and differ from it by an even number, got {self.stride_px} of "
                f"{self.size_px}"
            )

    def plan(self, slide: SlideSource, tissue: Mask) -> TilePlan:
        """The tiles whose middle (the square of the stride) touches tissue.

        Raises:
            ResolutionError: the slide's mpp is unknown.
        """
        halo = (self.size_px - self.stride_px) // 2
        return TilePlan.over(slide.frame_at(self.mpp), core_px=self.stride_px, halo_px=halo, mask=tissue)

    def to_json(self) -> dict[str, float]:
        return {"mpp": self.mpp, "size_px": self.size_px, "stride_px": self.stride_px}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideFeatures:
    """The stored features of a slide.

    Attributes:
        path: the Zarr group.
        grid: where the tiles' middles lie: one px per stride.
        cells: int32 (n, 2), row and column of each tile in the grid.
        positions: float64 (n, 2), x and y of each tile's top left corner in level-0 px; it may lie beyond the slide.
        width: features per tile.
        provenance: what the features were made from.
        coverage: how much of the tissue the tiles show; None if that was not recorded.
    """

    path: Path
    grid: Frame
    cells: NDArray[np.int32]
    positions: NDArray[np.float64]
    width: int
    provenance: dict[str, Any]
    coverage: Coverage | None = None

    @property
    def name(self) -> str:
        """The slide's name."""
        return self.path.name.removesuffix(".zarr")

    def __len__(self) -> int:
        return len(self.cells)

    def load(self) -> _Rows:
        """All features, float32 (n, width).

        Raises:
            ArtefactError: they cannot be read, or hold NaN or infinity.
        """
        try:
            group = open_group(self.path)
            features = np.asarray(group["features"][...], dtype=np.float32)
        except UNREADABLE as error:
            raise ArtefactError(self.path, f"its features cannot be read: {error}", mend="make them again") from error
        if features.shape != (len(self), self.width) or not np.isfinite(features).all():
            raise ArtefactError(self.path, "holds NaN, infinity or too few features", mend="make them again")
        return features


def encode_tiles(
    slide: SlideSource,
    encoder: Encoder,
    plan: TilePlan,
    *,
    batch: int | None = None,
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Generator[tuple[list[TileWindow], NDArray[np.float32]]]:
    """Stream the tiles of a plan through an encoder.

    At most 4 x workers tiles, one batch and the reading buffers are in memory at any time.

    Args:
        slide: its resolution must be known.
        encoder: for tiles of the plan's window size.
        plan: which tiles.
        batch: tiles encoded at a time; None chooses (2 per worker; 64 on a GPU, halved as its memory demands).
        workers: reading threads, and on a CPU also encoding threads; None uses the usable cores.
        on_tiles: called with (tiles done, tiles in all).

    Yields:
        (tiles, float32 (tiles, width)), in the order of the plan; tiles without stored pixels are left out.

    Raises:
        PathologyError: the encoder returns NaN or infinity; or the GPU's memory is too small for one tile.
        SlideError: the slide cannot be read.
        ValueError: batch or workers is not positive, or the plan's windows are not the encoder's.
    """
    count = usable_cores() if workers is None else workers
    if min(count, 1 if batch is None else batch) < 1:
        raise ValueError(f"batch and workers must be positive, got {batch}, {workers}")
    if plan.window_shape != (encoder.size_px, encoder.size_px):
        raise ValueError(f"the plan's windows are {plan.window_shape}, the encoder expects {encoder.size_px} px")
    at_once = batch or (_GPU_BATCH if encoder.device.type == "cuda" else 2 * count)
    return _encode_tiles(slide, encoder, plan, at_once, count, on_tiles or (lambda _, __: None))


def _encode_tiles(  # noqa: PLR0917  (the arguments of encode_tiles, settled)
    slide: SlideSource,
    encoder: Encoder,
    plan: TilePlan,
    at_once: int,
    workers: int,
    on_tiles: Callable[[int, int], None],
) -> Generator[tuple[list[TileWindow], NDArray[np.float32]]]:
    waiting: list[tuple[TileWindow, _Pixels]] = []
    with _encoding(encoder, workers) as encode, closing(stream_tiles(slide, plan, workers=workers)) as tiles:
        for done, (window, pixels) in enumerate(tiles, 1):
            if pixels is not None:
                waiting.append((window, pixels))
            is_last = done == len(plan)
            if waiting and (len(waiting) == at_once or is_last):
                windows = [one for one, _ in waiting]
                rows = np.stack(encode([one for _, one in waiting]))
                _check_finite(encoder, windows, rows)
                yield windows, rows
                waiting.clear()
            if not waiting:
                on_tiles(done, len(plan))


def _check_finite(encoder: Encoder, windows: Sequence[TileWindow], rows: _Rows) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        frame = windows[bad[0]].frame
        raise PathologyError(
            encoder.path,
            "returns NaN or infinity",
            where=f"tile at x {frame.x:.0f}, y {frame.y:.0f}",
            mend="check its --mean and --std, and its weights",
        )


@contextmanager
def _encoding(encoder: Encoder, workers: int) -> Iterator[_Encode]:
    if encoder.device.type == "cuda":
        with equal_convolutions():
            yield lambda tiles: in_halves(lambda part: list(encoder.encode(np.stack(part))), tiles)
        return
    with lone_threads(workers, "encoder") as pool:
        yield lambda tiles: list(pool.map(lambda tile: encoder.encode(tile[np.newaxis])[0], tiles))


def features_provenance(
    fingerprint: str, encoder: Encoder, geometry: TileGeometry, *, mask: str, precision: Precision
) -> dict[str, Any]:
    """Everything that determines the features of a slide; equal provenance means equal features.

    Args:
        fingerprint: of the slide.
        encoder: the encoder.
        geometry: how the slide is cut.
        mask: how the tissue was found.
        precision: how features are stored.
    """
    return {
        "slide": fingerprint,
        "encoder": encoder.to_json(),
        "tiles": geometry.to_json(),
        "mask": mask,
        "precision": precision,
    }


def write_features(
    path: Path,
    slide: SlideSource,
    encoder: Encoder,
    *,
    tissue: Mask,
    geometry: TileGeometry,
    provenance: dict[str, Any],
    precision: Precision = "float16",
    batch: int | None = None,
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    coverage: Callable[[], Coverage] | None = None,
) -> int:
    """Encode a slide's tissue and publish a Zarr v3 group: ``features``, ``cells`` and ``positions``, a row per tile.

    Memory does not grow with the slide: rows are written as they arrive, in chunks of 1,024.

    Args:
        path: the group, a folder.
        slide: its resolution must be known.
        encoder: for tiles of the geometry's size.
        tissue: mask in any frame of the slide.
        geometry: how the slide is cut.
        provenance: from features_provenance.
        precision: float16 halves the size; its 11 bits are more than an encoder's features mean.
        batch: as in encode_tiles.
        workers: as in encode_tiles.
        on_tiles: as in encode_tiles.
        coverage: measures how much of the tissue was read, when all of it has been; stored with the features. If it
            raises, nothing is published.

    Returns:
        The number of tiles.

    Raises:
        PathologyError: a feature is NaN, infinite or beyond float16; or as encode_tiles.
        NoTissueError: no tile touches both tissue and stored pixels.
        StorageError: the file system refuses.
    """
    plan = geometry.plan(slide, tissue)
    with publish(path, provenance, kind="feature table") as work:
        table = _Table(work, encoder, plan, precision)
        tiles = encode_tiles(slide, encoder, plan, batch=batch, workers=workers, on_tiles=on_tiles)
        with closing(tiles):
            for windows, rows in tiles:
                table.add(windows, rows)
        about: dict[str, Any] = {"kind": KIND, **_laid_out(plan, geometry), "provenance": provenance}
        if coverage is not None:
            about["coverage"] = coverage().to_json()
        if not table.close(about):
            raise NoTissueError(None, "no tile holds tissue", mend="check the slide and its tissue mask")
        return table.rows


def _laid_out(plan: TilePlan, geometry: TileGeometry) -> dict[str, Any]:
    frame = plan.frame
    return {
        "frame": {
            "x": frame.x,
            "y": frame.y,
            "downsample": frame.downsample,
            "mpp": frame.mpp,
            "rows": frame.shape[0],
            "columns": frame.shape[1],
        },
        "tiles": geometry.to_json(),
    }


class _Table:
    """The arrays of a group while they grow, a whole chunk at a time."""

    def __init__(self, folder: Path, encoder: Encoder, plan: TilePlan, precision: Precision) -> None:
        import zarr  # noqa: PLC0415  (slow import)
        from zarr.codecs import Crc32cCodec, ZstdCodec  # noqa: PLC0415

        self.rows = 0
        self._encoder = encoder
        self._waiting: list[tuple[TileWindow, _Rows]] = []
        self._group: Any = zarr.open_group(folder, mode="w", zarr_format=3)
        self._arrays: dict[str, Any] = {}
        chunk = max(1, min(_CHUNK_ROWS, len(plan)))
        for name, width, dtype, fill in (
            ("features", encoder.width, precision, math.nan),
            ("cells", 2, "int32", -1),
            ("positions", 2, "float64", math.nan),
        ):
            self._arrays[name] = self._group.create_array(
                name,
                shape=(len(plan), width),
                dtype=dtype,
                chunks=(chunk, width),
                fill_value=fill,
                compressors=(ZstdCodec(level=3), Crc32cCodec()),
                config={"write_empty_chunks": True},
            )
        self._chunk = chunk

    def add(self, windows: Sequence[TileWindow], rows: _Rows) -> None:
        """Add the next tiles."""
        self._waiting += zip(windows, rows, strict=True)
        while len(self._waiting) >= self._chunk:
            self._write(self._waiting[: self._chunk])
            del self._waiting[: self._chunk]

    def close(self, attributes: dict[str, Any]) -> int:
        """Write the remaining rows, cut the arrays to their true length, and return it."""
        if self._waiting:
            self._write(self._waiting)
        for array in self._arrays.values():
            array.resize((self.rows, array.shape[1]))
        self._group.attrs.update(attributes)
        return self.rows

    def _write(self, part: Sequence[tuple[TileWindow, _Rows]]) -> None:
        windows = [window for window, _ in part]
        with np.errstate(over="ignore"):  # infinity is detected below
            features = np.stack([row for _, row in part]).astype(self._arrays["features"].dtype)
        if not np.isfinite(features).all():
            raise PathologyError(self._encoder.path, "returns a feature beyond 65504", mend="store float32")
        there = slice(self.rows, self.rows + len(part))
        self._arrays["features"][there] = features
        self._arrays["cells"][there] = np.array([(window.row, window.column) for window in windows], np.int32)
        self._arrays["positions"][there] = np.array([(window.frame.x, window.frame.y) for window in windows])
        self.rows += len(part)


def read_features(path: Path) -> SlideFeatures:
    """Open the features of a slide: every file is compared with its sha256, the features are read later.

    Raises:
        ArtefactError: there are none, or they are incomplete or damaged.
    """
    if not (path / DONE).is_file():
        raise ArtefactError(path, f"has no complete features (no {DONE})", mend="make them with sentinode features")
    verify(path)
    try:
        return _opened(path, open_group(path))
    except UNREADABLE as error:
        raise ArtefactError(path, f"has no readable features: {error}", mend="make them again") from error


def _opened(path: Path, group: Any) -> SlideFeatures:  # noqa: ANN401  (zarr's groups hold anything)
    attributes: dict[str, Any] = dict(group.attrs)
    if attributes["kind"] != KIND:
        raise ValueError(f"it is a {attributes['kind']!r:.40}")
    frame = attributes["frame"]
    whole = Frame(
        x=frame["x"],
        y=frame["y"],
        downsample=frame["downsample"],
        mpp=frame["mpp"],
        shape=(frame["rows"], frame["columns"]),
    )
    grid = whole.coarser(attributes["tiles"]["stride_px"])
    cells: NDArray[np.int32] = np.asarray(group["cells"][...], dtype=np.int32)
    positions: NDArray[np.float64] = np.asarray(group["positions"][...], dtype=np.float64)
    count, width = group["features"].shape
    if not count or cells.shape != (count, 2) or positions.shape != (count, 2):
        raise ValueError(f"it has {count} features at {cells.shape} cells and {positions.shape} positions")
    if (cells < 0).any() or (cells >= np.array(grid.shape)).any():
        raise ValueError("its tiles lie outside the slide")
    if len(np.unique(cells, axis=0)) < count:
        raise ValueError("two of its tiles coincide")
    return SlideFeatures(
        path=path,
        grid=grid,
        cells=cells,
        positions=positions,
        width=int(width),
        provenance=dict(attributes["provenance"]),
        coverage=None if attributes.get("coverage") is None else Coverage.from_json(attributes["coverage"]),
    )
