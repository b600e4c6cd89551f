"""The patches a network may learn from and is judged on: several stores and tables, ready to read.

Sets that fit into memory are read once; for all others the pixels are read from the slides while the network learns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.errors import FoldError, PatchStoreError
from annotations.files.formats import read_annotations
from annotations.patches.labels import PatchLabels
from annotations.patches.sparse_store import TABLE, paint_targets, read_store
from annotations.patches.splits import FOLD, TEST, VALIDATION
from annotations.patches.table import located, read_patch_table, table_bytes
from annotations.patches.targets import PatchTargets
from annotations.patches.zarr_store import open_store
from wsi.cores import usable_cores
from wsi.patches.blocks import JoinedPixels, PatchPixels, SlidePixels
from wsi.patches.feeding import HeldPatches, StreamedPatches, TrainingPatches
from wsi.readers.base import BadTile, OnBadTile
from wsi.slide import Slide
from wsi.store import DONE

HELD_BYTES = 512 * 2**20
_TOGETHER = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSet:
    """Patches of several sources.

    Attributes:
        patches: with their pixels, mpp and patients.
        slides: text (n,), the slide of each patch.
        judges: patients in the split ``validation``.
        left_out: patients whose patches were left out: those of the split ``test``, or of the fold left out.
        pixels: where the pixels are read from.
        groups: roles of further groups, from all sources together.
    """

    patches: TrainingPatches
    slides: NDArray[np.str_]
    judges: frozenset[str]
    left_out: frozenset[str]
    pixels: PatchPixels
    groups: Mapping[str, Role]

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles read as white so far because they could not be decoded, each with its slide."""
        return self.pixels.bad_tiles

    @property
    def is_streamed(self) -> bool:
        """Whether pixels are read while the network learns."""
        return isinstance(self.patches, StreamedPatches)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """One store or table, without the patches that are left out."""

    path: Path
    mpp: float
    pixels: PatchPixels
    targets: PatchTargets
    patients: NDArray[np.str_]
    slides: NDArray[np.str_]
    splits: NDArray[np.str_]
    left_out: frozenset[str]
    digest: str
    groups: Mapping[str, Role] = field(default_factory=dict)


def open_training_set(
    paths: Sequence[Path],
    *,
    fold: int | None = None,
    on_bad_tile: OnBadTile = "raise",
    held_bytes: int | None = None,
    workers: int | None = None,
) -> TrainingSet:
    """Open the output of ``sentinode patches``. Patches of the split ``test`` are left out: they are for testing only.

    Args:
        paths: folders of sparse slides, tables (``.parquet``, or a folder that holds one), Zarr stores; joined.
        fold: the fold to leave out, if patients were split into folds.
        on_bad_tile: as for ``Slide.open``.
        held_bytes: sets of at most this many bytes of pixels and classes are read into memory; 512 MiB by default.
        workers: decoding threads.

    Raises:
        PatchStoreError: a source is incomplete or damaged, its slides or annotations have changed since, or sources
            differ in size, resolution, or a patient's split.
        FoldError: ``fold`` does not match the folds.
        PathologyError: a slide or its annotations cannot be read.
    """
    sources = [_opened(Path(path), fold, on_bad_tile) for path in paths]
    _check_alike(sources)
    if fold is not None and not any(_folds(source.splits) for source in sources):
        raise FoldError(None, f"there are no folds, so no fold {fold}", mend="leave --fold out")
    left_out = frozenset[str]().union(*(source.left_out for source in sources))
    judges, others = (
        frozenset(
            patient
            for source in sources
            for patient in source.patients[(source.splits == VALIDATION) == is_judge].tolist()
        )
        for is_judge in (True, False)
    )
    for one, two, what in (
        (left_out, judges | others, "is left out of one source but not of another"),
        (judges, others, "is in the split validation in one source but not in another"),
    ):
        if one & two:
            raise PatchStoreError(None, f"{min(one & two)} {what}", mend="draw them with one split")
    pixels = JoinedPixels([source.pixels for source in sources])
    targets = PatchTargets.joined(source.targets for source in sources)
    return TrainingSet(
        patches=_patches(pixels, targets, sources, HELD_BYTES if held_bytes is None else held_bytes, workers),
        slides=np.concatenate([source.slides for source in sources]),
        judges=judges,
        left_out=left_out,
        pixels=pixels,
        groups={name: role for source in sources for name, role in source.groups.items()},
    )


def _patches(
    pixels: JoinedPixels, targets: PatchTargets, sources: Sequence[_Source], held_bytes: int, workers: int | None
) -> TrainingPatches:
    count, side, mpp = len(pixels), pixels.size_px, sources[0].mpp
    patients = np.concatenate([source.patients for source in sources])
    if count * side**2 * 4 > held_bytes:
        digest = hashlib.sha256("".join(source.digest for source in sources).encode()).hexdigest()
        return StreamedPatches(
            pixels, targets, mpp=mpp, patients=patients, record={"patches_sha256": digest}, workers=workers
        )
    images = np.empty((count, side, side, 3), np.uint8)
    everything = np.arange(count)
    pixels.read(everything, out=images, workers=workers or usable_cores())
    return HeldPatches(images, targets(everything), mpp=mpp, patients=patients)


def _opened(path: Path, fold: int | None, on_bad_tile: OnBadTile) -> _Source:
    if path.is_file() or (path / TABLE).is_file():
        return _of_table(path, fold, on_bad_tile)
    return _of_zarr(path, fold)


def _of_table(path: Path, fold: int | None, on_bad_tile: OnBadTile) -> _Source:
    folder = path.parent if path.is_file() else path
    table = read_patch_table(path if path.is_file() else path / TABLE)
    if "store" in table.about:
        table = read_store(folder)
    facts: Mapping[str, Any] = table.about.get("store") or table.about.get("sources") or {}
    if not facts:
        raise PatchStoreError(
            path, "does not say where its annotations are", mend="make it again with sentinode patches"
        )
    splits = table["split"].astype(str)
    kept = _is_kept(path, splits, fold)
    rows = table.rows(kept)
    names, digest = rows["slide"].astype(str), hashlib.sha256(table_bytes(rows))
    targets = PatchTargets.normal(len(rows), rows.size_px)
    for name in np.unique(names).tolist():
        digest.update(_fingerprint(located(table.files[name], folder), facts[name]).encode())
        labels = PatchLabels.of(_contours(folder, facts[name], table.groups))
        for chosen in _blocks(np.flatnonzero(names == name)):
            targets.put(chosen, paint_targets(labels, rows.rows(chosen)))
    return _Source(
        path=path,
        mpp=rows.mpp,
        pixels=SlidePixels(rows.positions(folder), on_bad_tile=on_bad_tile),
        targets=targets,
        patients=rows["patient"].astype(str),
        slides=names,
        splits=splits[kept],
        left_out=frozenset(table["patient"][~kept].tolist()),
        digest=digest.hexdigest(),
        groups=table.groups,
    )


def _of_zarr(path: Path, fold: int | None) -> _Source:
    store = open_store(path)
    splits = store.table["split"]
    kept = _is_kept(path, splits, fold)
    rows = np.flatnonzero(kept)
    targets = PatchTargets.normal(len(rows), store.size_px)
    for chosen in _blocks(np.arange(len(rows))):
        targets.put(chosen, store.targets(rows[chosen]))
    return _Source(
        path=path,
        mpp=store.mpp,
        pixels=store.pixels(rows),
        targets=targets,
        patients=store.table["patient"][rows],
        slides=store.table["slide"][rows],
        splits=splits[rows],
        left_out=frozenset(store.table["patient"][~kept].tolist()),
        digest=hashlib.sha256((path / DONE).read_bytes()).hexdigest(),
    )


def _is_kept(path: Path, splits: NDArray[np.str_], fold: int | None) -> NDArray[np.bool_]:
    """Which patches may be used for learning or validation."""
    folds = _folds(splits)
    if folds and fold is None:
        raise FoldError(
            path, f"splits its patients into {len(folds)} folds", mend="say which one is left out with --fold"
        )
    if folds and f"{FOLD}{fold}" not in folds:
        raise FoldError(path, f"has no fold {fold}, only {', '.join(folds)}", mend="name one of them with --fold")
    kept: NDArray[np.bool_] = (splits != TEST) & (splits != f"{FOLD}{fold}")
    if not kept.any():
        raise PatchStoreError(
            path, "holds no patches to learn from: all are in the split test", mend="split differently"
        )
    return kept


def _folds(splits: NDArray[np.str_]) -> list[str]:
    return sorted({split for split in splits.tolist() if split.startswith(FOLD)})


def _check_alike(sources: Sequence[_Source]) -> None:
    kinds = sorted({(source.pixels.size_px, source.mpp) for source in sources})
    if len(kinds) != 1:
        listed = ", ".join(f"{side} px at {mpp} um/px" for side, mpp in kinds) or "none given"
        raise PatchStoreError(
            None,
            f"patch sets must have the same size and resolution: {listed}",
            mend="draw all with one --size and --mpp",
        )


def _fingerprint(slide: str, fact: Mapping[str, Any]) -> str:
    """The fingerprint of a slide, checked against the one that patches were drawn from."""
    found = Slide(slide).fingerprint()
    if found != fact["fingerprint"]:
        raise PatchStoreError(slide, "has changed since patches were drawn from it", mend="draw the patches again")
    return found


def _contours(folder: Path, fact: Mapping[str, Any], groups: Mapping[str, Role]) -> Sequence[Annotation]:
    if fact["contours"] is None:
        return ()
    path = folder / fact["contours"]
    expected = fact.get("contours_sha256")
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest() if expected is not None else None
    except OSError as error:
        raise PatchStoreError(path, f"cannot be read: {error.strerror}", mend="restore it") from error
    if found != expected:
        raise PatchStoreError(path, "has changed since patches were labelled by it", mend="draw the patches again")
    return read_annotations(path, groups)


def _blocks(chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(chosen), _TOGETHER):
        yield chosen[start : start + _TOGETHER]
