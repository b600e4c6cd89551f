"""Labelled patches with all their pixels: one Zarr group, published atomically, or read from sparse slides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.errors import PatchStoreError
from annotations.patches.batch import PatchBatch
from annotations.patches.sparse_store import TABLE, read_pixels
from annotations.patches.table import PatchTable
from wsi.errors import ArtefactError
from wsi.patches.passes import PassPlan
from wsi.readers.base import BadTile
from wsi.store import DONE, publish, verify
from wsi.zarr_groups import UNREADABLE, open_group

STORE_KIND = "sentinode patches"
_CHUNK_PATCHES = 8  # compressed together, hence read together
_CHUNK_BYTES = 16 * 2**20  # fewer patches, where they are large
_SHARD_BYTES = 64 * 2**20  # of pixels in one file
_STRETCH, _BLOCK = 64, 1024  # patches in a stretch, and read at a time: see PassPlan
_NO_CENTRE = -1
_TEXTS = ("slide", "patient", "kind", "split")
_NUMBERS = ("centre", "x", "y", "tumour_fraction")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchSet:
    """Patches of many slides.

    Attributes:
        images: uint8 (n, side, side, 3), RGB.
        targets: uint8 (n, side, side): 1 tumour, 0 anything else, 255 unknown.
        mpp: um per pixel.
        table: columns of n: slide, patient, kind, split (text); centre (-1 unknown); x, y (level-0 px of the outer
            corner of pixel (0, 0)); tumour_fraction.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    mpp: float
    table: Mapping[str, NDArray[Any]]

    @property
    def size_px(self) -> int:
        """Side of a patch."""
        return int(self.images.shape[1])

    @property
    def patients(self) -> NDArray[Any]:
        """Text (n,): the patient of each patch; one patient's patches are never divided between training and test."""
        return self.table["patient"]


def write_patches(path: str | Path, batches: Sequence[PatchBatch], *, drawn: PatchTable | None = None) -> None:
    """Publish batches as one store, atomically; equal batches yield equal bytes.

    Args:
        path: the folder to publish; an older store there is replaced.
        batches: all with one mpp and one size.
        drawn: their rows, in the same order: adds what the batches lack (class, lesion, level ...) and the rule by
            which a patch is tumour.

    Raises:
        PatchStoreError: there are no patches, or their mpp or size differ.
        StorageError: the file system refuses.
        ValueError: the rows are not those of the batches.
    """
    import zarr  # noqa: PLC0415  (slow import)

    path = Path(path)
    mpp, side = _common(path, batches)
    count = sum(len(batch.kinds) for batch in batches)
    attributes: dict[str, Any] = {"kind": STORE_KIND, "mpp": mpp, "size_px": side, "count": count}
    with publish(path, attributes, kind="patch store") as work:
        group = zarr.open_group(work, mode="w", zarr_format=3)
        group.attrs.update(attributes)
        _write_pixels(group, "images", (batch.images for batch in batches), (count, side, side, 3))
        _write_pixels(group, "targets", (batch.targets for batch in batches), (count, side, side))
        table = group.create_group("table")
        columns = _columns(batches)
        if drawn is not None:
            if not np.array_equal(columns["slide"], drawn["slide"]):
                raise ValueError("the rows are from other slides than the batches")
            columns = {
                name: column.astype(str) if column.dtype == object else column for name, column in drawn.columns.items()
            } | columns
            table.attrs["rule"] = str(drawn.rule)
        for name, column in columns.items():
            _write_column(table, name, column)


def read_patches(path: str | Path) -> PatchSet:
    """Read all of a published store: Zarr after comparing every file with its sha256, or a folder of sparse slides.

    Raises:
        PatchStoreError: there is none, or it is incomplete, damaged or something else.
        PathologyError: a sparse slide or its annotations cannot be read.
    """
    path = Path(path)
    if (path / TABLE).is_file():
        return _read_sparse(path)
    store = open_store(path)
    rows = np.arange(len(store))
    images = np.empty((len(rows), store.size_px, store.size_px, 3), np.uint8)
    store.pixels(rows).read(rows, out=images, workers=1)
    return PatchSet(images=images, targets=store.targets(rows), mpp=store.mpp, table=store.table)


def open_store(path: Path) -> PatchStore:
    """A published Zarr store, after comparing every file with its sha256.

    Raises:
        PatchStoreError: there is none, or it is incomplete, damaged or something else.
    """
    if not (path / DONE).is_file():
        raise PatchStoreError(
            path, f"is not a complete patch store: it has no {DONE}", mend="make it with sentinode patches"
        )
    try:
        verify(path)
        group: Any = open_group(path)
        store = PatchStore(group) if group.attrs.get("kind") == STORE_KIND else None
    except ArtefactError as error:
        raise PatchStoreError(error.path, error.reason, where=error.where, mend="make the patches again") from error
    except UNREADABLE as error:
        raise PatchStoreError(path, f"is not a readable patch store: {error}", mend="make it again") from error
    if store is None:
        raise PatchStoreError(path, "is another kind of artefact", mend="make patches with sentinode patches")
    if not store.is_whole:
        raise PatchStoreError(path, "its parts do not match", mend="make it again")
    return store


class PatchStore:
    """A published Zarr store whose pixels are read on demand; open it with ``open_store``.

    Attributes:
        mpp: um per pixel.
        size_px: side of the patches.
        table: as of PatchSet.
    """

    def __init__(self, group: Any) -> None:  # noqa: ANN401  (zarr's groups are not typed)
        self._images, self._targets = group["images"], group["targets"]
        self.mpp, self.size_px = float(group.attrs["mpp"]), int(group.attrs["size_px"])
        self.table = {name: _read_column(group["table"][name]) for name in (*_TEXTS, *_NUMBERS)}
        self._count = int(group.attrs["count"])

    @property
    def is_whole(self) -> bool:
        """Whether pixels, classes and resolution are consistent."""
        shape = (self._count, self.size_px, self.size_px)
        is_right = (self._images.shape, self._targets.shape) == ((*shape, 3), shape)
        return is_right and math.isfinite(self.mpp) and self.mpp > 0

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Uint8 (n, side, side) of the given patches."""
        targets = np.empty((len(rows), self.size_px, self.size_px), np.uint8)
        _fill(targets, self._targets, rows)
        return targets

    def pixels(self, rows: NDArray[np.int64]) -> ZarrPixels:
        """The pixels of the given patches, to be read later."""
        return ZarrPixels(self._images, rows)


class ZarrPixels:
    """Patches of a Zarr array, as ``wsi.patches.blocks`` reads them.

    Args:
        images: the array, uint8 (m, side, side, 3).
        rows: int (n,), which of its patches.
    """

    def __init__(self, images: Any, rows: NDArray[np.int64]) -> None:  # noqa: ANN401  (zarr's arrays are not typed)
        self._images, self._rows = images, rows

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return int(self._images.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Always empty: a damaged part is an error."""
        return ()

    def plan(self) -> PassPlan:
        """Patches compressed together are read together."""
        chunk = self._rows // int(self._images.chunks[0])
        clusters = np.split(np.arange(len(self._rows)), np.flatnonzero(np.diff(chunk)) + 1)
        return PassPlan(
            clusters=tuple(clusters), slide_of=np.zeros(len(clusters), np.int32), stretch=_STRETCH, block=_BLOCK
        )

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill ``out``; ``workers`` is ignored because Zarr has its own threads.

        Raises:
            PatchStoreError: a part is damaged.
        """
        del workers
        try:
            _fill(out, self._images, self._rows[indices])
        except (RuntimeError, ValueError, OSError) as error:
            raise PatchStoreError(
                self._images.store_path, f"has a damaged part: {error}", mend="make the patches again"
            ) from error


def _fill(out: NDArray[np.uint8], array: Any, rows: NDArray[np.int64]) -> None:  # noqa: ANN401  (a Zarr array)
    """Read patches of an array. Neighbours are read as slices: Zarr takes 20 times as long for lists of indices."""
    at = 0
    for stretch in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(stretch):
            out[at : at + len(stretch)] = array[int(stretch[0]) : int(stretch[-1]) + 1]
            at += len(stretch)


def join_patches(sets: Sequence[PatchSet]) -> PatchSet:
    """Several sets as one, in the given order.

    Raises:
        PatchStoreError: none, or their mpp or size differ.
    """
    kinds = {(one.mpp, one.size_px) for one in sets}
    if len(kinds) != 1:
        listed = ", ".join(f"{side} px at {mpp} um/px" for mpp, side in sorted(kinds)) or "none given"
        raise PatchStoreError(
            None,
            f"patch sets must have the same size and resolution: {listed}",
            mend="draw all with one --size and --mpp",
        )
    return PatchSet(
        images=np.concatenate([one.images for one in sets]),
        targets=np.concatenate([one.targets for one in sets]),
        mpp=sets[0].mpp,
        table={name: np.concatenate([one.table[name] for one in sets]) for name in sets[0].table},
    )


def _read_sparse(path: Path) -> PatchSet:
    found, images, targets = read_pixels(path)
    table = {name: found[name].astype(str) if name in _TEXTS else found[name] for name in (*_TEXTS, *_NUMBERS)}
    return PatchSet(images=images, targets=targets, mpp=found.mpp, table=table)


def _common(path: Path, batches: Sequence[PatchBatch]) -> tuple[float, int]:
    if not any(batch.kinds for batch in batches):
        raise PatchStoreError(path, "there are no patches to store", mend="draw some, or find out why none were found")
    kinds = {(batch.mpp, batch.images.shape[1]) for batch in batches}
    if len(kinds) > 1:
        listed = ", ".join(f"{side} px at {mpp} um/px" for mpp, side in sorted(kinds))
        raise PatchStoreError(
            path, f"the patches differ in size or resolution: {listed}", mend="draw all with one --size and --mpp"
        )
    ((mpp, side),) = kinds
    return mpp, side


def _columns(batches: Sequence[PatchBatch]) -> dict[str, NDArray[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in (*_TEXTS, *_NUMBERS)}
    for batch in batches:
        count = len(batch.kinds)
        columns["slide"] += [batch.slide] * count
        columns["patient"] += [batch.patient] * count
        columns["kind"] += batch.kinds
        columns["split"] += [batch.split] * count
        columns["centre"] += [_NO_CENTRE if batch.centre is None else batch.centre] * count
        columns["x"] += batch.x.tolist()
        columns["y"] += batch.y.tolist()
        columns["tumour_fraction"] += batch.tumour_fraction.tolist()
    return {name: np.array(column) for name, column in columns.items()}


def _write_pixels(group: Any, name: str, parts: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:  # noqa: ANN401
    from zarr.codecs import BloscCodec, Crc32cCodec  # noqa: PLC0415  (slow import)

    chunk = max(1, min(_CHUNK_PATCHES, shape[0], _CHUNK_BYTES // math.prod(shape[1:])))
    chunks_per_shard = max(1, min(-(-shape[0] // chunk), _SHARD_BYTES // (chunk * math.prod(shape[1:]))))
    shard = chunk * chunks_per_shard
    array = group.create_array(
        name,
        shape=shape,
        dtype=np.uint8,
        chunks=(chunk, *shape[1:]),
        shards=(shard, *shape[1:]),
        # A lost chunk must not read as "no tumour".
        fill_value=255,
        compressors=(BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"), Crc32cCodec()),
        config={"write_empty_chunks": True},
    )
    at = 0
    for start, whole in _regrouped(parts, shard):
        array[start : start + len(whole)] = whole
        at = start + len(whole)
    if at != shape[0]:
        raise AssertionError(f"{at} of {shape[0]} patches were written")


def _regrouped(parts: Iterable[NDArray[np.uint8]], size: int) -> Iterable[tuple[int, NDArray[np.uint8]]]:
    """(index of the first patch, patches) in whole shards, so that each is written once."""
    start, held, count = 0, list[NDArray[np.uint8]](), 0
    # Batches may be memory-mapped files: at most two shards of them are in memory.
    for part in (batch[at : at + size] for batch in parts for at in range(0, len(batch), size)):
        held.append(part)
        count += len(part)
        if count >= size:
            joined = np.concatenate(held)
            whole = count - count % size
            yield start, joined[:whole]
            start, held, count = start + whole, [joined[whole:]], count - whole
    if count:
        yield start, np.concatenate(held)


def _write_column(table: Any, name: str, column: NDArray[Any]) -> None:  # noqa: ANN401
    """Numbers unchanged; text as codes into a list of names, which every Zarr reader understands."""
    if column.dtype.kind != "U":
        table.create_array(name, data=column)
        return
    names, codes = np.unique(column, return_inverse=True)
    array = table.create_array(name, data=codes.astype(np.int32))
    array.attrs["names"] = names.tolist()


def _read_column(array: Any) -> NDArray[Any]:  # noqa: ANN401
    names = array.attrs.get("names")
    values = np.asarray(array[...])
    return values if names is None else np.array(names)[values]
