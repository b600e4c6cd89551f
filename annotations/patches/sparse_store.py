"""Patches stored as the tiles they were cut from: a folder of sparse slides beside the table, no new format.

OUT/patches.parquet is the table, OUT/slides/NAME.tif holds the compressed tiles that its patches touch, copied byte
for byte, and OUT/annotations/ holds the files they were labelled by. The slides open in OpenSlide and QuPath.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.errors import PatchStoreError
from annotations.files.formats import read_annotations
from annotations.patches.labels import PatchLabels
from annotations.patches.table import PatchTable, located, read_patch_table, write_patch_table
from wsi.geometry import Frame
from wsi.patches.pool import SlidePool
from wsi.patches.reading import read_positions, source_windows
from wsi.slide import Slide
from wsi.store import storage
from wsi.windows import Windows
from wsi.writing.sparse import write_sparse

TABLE = "patches.parquet"
SLIDES, ANNOTATIONS = "slides", "annotations"


def patch_windows(slide: Slide, rows: PatchTable) -> dict[int, Windows]:
    """The windows that the patches of one slide are read from, by level: for ``wsi.writing.sparse``."""
    found: dict[int, list[Windows]] = {}
    for downsample in np.unique(rows["downsample"]).tolist():
        chosen = rows.rows(rows["downsample"] == downsample)
        level, windows = source_windows(slide, chosen["x"], chosen["y"], downsample=downsample, size_px=chosen.size_px)
        found.setdefault(level.index, []).append(windows)
    return {level: Windows.joined(parts) for level, parts in found.items()}


def store_slide(
    folder: Path, slide: Slide, rows: PatchTable, *, annotation_file: Path | None, quality: int = 90
) -> dict[str, Any]:
    """Write one slide's part of a store; each file is whole or absent.

    Args:
        folder: of the store.
        slide: the slide.
        rows: its patches.
        annotation_file: the file they were labelled by; copied into the store.
        quality: of tiles that cannot be copied and must be re-encoded.

    Returns:
        The fields of ``wsi.writing.sparse.SparseStats``; ``fingerprint`` of the sparse slide; ``contours``, the path
        of the copied annotation file relative to the folder, or None.

    Raises:
        PathologyError: the slide cannot be read, or the store cannot be written.
    """
    target = folder / sparse_name(slide.name)
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    stats = write_sparse(slide, target, patch_windows(slide, rows), quality=quality)
    copied = None
    if annotation_file is not None:
        copied = f"{ANNOTATIONS}/{slide.name}{annotation_file.suffix.lower()}"
        with storage(folder / copied):
            (folder / copied).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(annotation_file, folder / copied)
    return {**asdict(stats), "fingerprint": Slide(target).fingerprint(), "contours": copied}


def finish_store(folder: Path, table: PatchTable, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Publish the table of a store whose slides are all written; this completes the store.

    Args:
        folder: of the store.
        table: all patches.
        done: what store_slide returned, by slide.

    Raises:
        StorageError: the file system refuses.
    """
    files = {name: sparse_name(name) for name in table.files}
    about = {**table.about, "store": {name: dict(done[name]) for name in sorted(done)}}
    write_patch_table(folder / TABLE, replace(table, files=files, about=about))


def read_store(folder: str | Path) -> PatchTable:
    """The table of a store, after checking that its slides are there and of the recorded length.

    Its ``files`` are relative to the store's folder: ``table.positions(folder)``.

    Raises:
        PatchStoreError: there is no complete store.
    """
    folder = Path(folder)
    if not (folder / TABLE).is_file():
        raise PatchStoreError(
            folder,
            f"is not a complete patch store: it has no {TABLE}",
            mend="make it with sentinode patches; a second call resumes it",
        )
    table = read_patch_table(folder / TABLE)
    if "store" not in table.about:
        raise PatchStoreError(
            folder, "is an export for other tools: its slides are elsewhere", mend="make patches without --format"
        )
    for name, record in table.about["store"].items():
        file = Path(located(table.files[name], folder))
        if not file.is_file() or file.stat().st_size != record["file_bytes"]:
            raise PatchStoreError(file, "has changed since it was written", mend="make the patches again")
    return table


def read_pixels(folder: str | Path) -> tuple[PatchTable, NDArray[np.uint8], NDArray[np.uint8]]:
    """All patches of a store in memory.

    Returns:
        The table; images, uint8 (n, side, side, 3); targets, uint8 (n, side, side): 1 tumour, 0 anything else, 255
        unknown.

    Raises:
        PatchStoreError: there is no complete store, or its patches differ in size.
        PathologyError: a slide or its annotations cannot be read.
    """
    folder = Path(folder)
    table = read_store(folder)
    pool = SlidePool()
    try:
        images = read_positions(table.positions(folder), np.arange(len(table)), pool)
    finally:
        pool.close()
    targets = np.zeros(images.shape[:3], dtype=np.uint8)
    for name, record in table.about["store"].items():
        if record["contours"] is not None:
            chosen = np.flatnonzero(table["slide"] == name)
            labels = PatchLabels.of(read_annotations(folder / record["contours"], table.groups))
            targets[chosen] = paint_targets(labels, table.rows(chosen))
    return table, images, targets


def paint_targets(labels: PatchLabels, rows: PatchTable) -> NDArray[np.uint8]:
    """The classes of all pixels of one slide's patches: uint8 (n, side, side), 1 tumour, 0 anything else, 255 unknown.

    Raises:
        PatchStoreError: the patches differ in size.
    """
    side = rows.size_px
    targets = np.empty((len(rows), side, side), dtype=np.uint8)
    for number, (x, y, downsample) in enumerate(zip(rows["x"], rows["y"], rows["downsample"], strict=True)):
        frame = Frame(x=float(x), y=float(y), downsample=float(downsample), shape=(side, side), mpp=None)
        targets[number] = labels.target(frame)
    return targets


def sparse_name(slide: str) -> str:
    """The path of a sparse slide relative to the store's folder."""
    return f"{SLIDES}/{slide}.tif"
