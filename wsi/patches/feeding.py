"""Patches that a network learns from: all of them in memory, or read from the slides while it learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.cores import usable_cores
from wsi.patches.blocks import BlockReader, PatchPixels, block_of
from wsi.patches.passes import PassPlan

_BLOCK_BYTES = 96 * 2**20  # of pixels read together; two blocks are in memory
Indices = NDArray[np.int64]


class TrainingPatches(Protocol):
    """Patches with a class for every pixel."""

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        ...

    @property
    def mpp(self) -> float:
        """Um per pixel."""
        ...

    @property
    def patients(self) -> NDArray[np.str_]:
        """Text (n,): the patient of each patch, who is either learnt from or a judge."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """Identifies these patches; values that JSON can hold."""
        ...

    def __len__(self) -> int: ...

    def targets(self, chosen: Indices) -> NDArray[np.uint8]:
        """Uint8 (n, side, side): 0 normal, 1 tumour, 255 ignored."""
        ...

    def batches(self, chosen: Indices, owners: Indices, rng: np.random.Generator) -> list[Indices]:
        """One pass over the chosen patches in random order, in full batches; the remainder waits for another pass.

        Args:
            chosen: indices of the patches.
            owners: the process that computes each slot of a batch.
            rng: the only source of randomness.
        """
        ...

    def reading_order(self, chosen: Indices) -> Indices:
        """The order, as indices into ``chosen``, in which these patches are fastest to read."""
        ...

    def images(self, parts: Sequence[Indices]) -> Generator[NDArray[np.uint8], None, None]:
        """Uint8 (n, side, side, 3) of each of several groups of patches, in order."""
        ...


class HeldPatches:
    """Patches in memory; a pass is fully shuffled.

    Args:
        images: uint8 (n, side, side, 3), RGB.
        targets: uint8 (n, side, side): 0 normal, 1 tumour, 255 ignored.
        mpp: um per pixel.
        patients: (n,), the patient of each patch; None makes each its own.

    Raises:
        ValueError: the shapes or types do not match.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[np.uint8],
        *,
        mpp: float,
        patients: NDArray[Any] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(f"images must be uint8 (n, side, side, 3), got {images.dtype} {images.shape}")
        if targets.dtype != np.uint8 or targets.shape != images.shape[:3]:
            raise ValueError(f"targets must be uint8 {images.shape[:3]}, got {targets.dtype} {targets.shape}")
        self._images, self._targets = images, targets
        self._mpp, self._patients = mpp, _names(patients, len(images))

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return int(self._images.shape[1])

    @property
    def mpp(self) -> float:
        """Um per pixel."""
        return self._mpp

    @property
    def patients(self) -> NDArray[np.str_]:
        """Text (n,)."""
        return self._patients

    @property
    def record(self) -> Mapping[str, Any]:
        """Sha256 of all pixels and targets."""
        return {"images_sha256": _sha256(self._images), "targets_sha256": _sha256(self._targets)}

    def __len__(self) -> int:
        return len(self._images)

    def targets(self, chosen: Indices) -> NDArray[np.uint8]:
        """Uint8 (n, side, side)."""
        return self._targets[chosen]

    def batches(self, chosen: Indices, owners: Indices, rng: np.random.Generator) -> list[Indices]:
        """One pass, see TrainingPatches."""
        order, size = rng.permutation(chosen), len(owners)
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def reading_order(self, chosen: Indices) -> Indices:
        """The given order."""
        return np.arange(len(chosen))

    def images(self, parts: Sequence[Indices]) -> Generator[NDArray[np.uint8], None, None]:
        """Uint8 (n, side, side, 3) of each group."""
        for part in parts:
            yield self._images[part]


class StreamedPatches:
    """Patches read while a network learns, each tile decoded once per block, in bounded memory.

    A pass is shuffled by ``wsi.patches.passes.PassPlan``: stretches of patches that share tiles in random order over
    all slides, and fully within blocks of some hundred patches. Several processes divide the patches of a block by
    tiles, too.

    Args:
        pixels: reads them.
        targets: returns uint8 (n, side, side) for indices.
        mpp: um per pixel.
        patients: (n,), the patient of each patch; None makes each its own.
        record: identifies these patches; values that JSON can hold.
        block: patches read together; by default as many as fit into 96 MiB, 1,024 at most.
        workers: decoding threads; by default one per usable core.

    Raises:
        SlideError: a slide cannot be opened.
        ValueError: there are not as many patients as patches.
    """

    def __init__(
        self,
        pixels: PatchPixels,
        targets: Callable[[Indices], NDArray[np.uint8]],
        *,
        mpp: float,
        patients: NDArray[Any] | None = None,
        record: Mapping[str, Any],
        block: int | None = None,
        workers: int | None = None,
    ) -> None:
        self._pixels, self._targets, self._record = pixels, targets, dict(record)
        self._mpp, self._patients = mpp, _names(patients, len(pixels))
        self._block = block or block_of(pixels.size_px, _BLOCK_BYTES)
        self._plan = pixels.plan()
        self._order = np.empty(len(pixels), np.int64)
        self._order[np.concatenate([np.empty(0, np.int64), *self._plan.clusters])] = np.arange(len(pixels))
        self._reader, self._workers = BlockReader(self._order), workers or usable_cores()

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return self._pixels.size_px

    @property
    def mpp(self) -> float:
        """Um per pixel."""
        return self._mpp

    @property
    def patients(self) -> NDArray[np.str_]:
        """Text (n,)."""
        return self._patients

    @property
    def record(self) -> Mapping[str, Any]:
        """As given."""
        return self._record

    def __len__(self) -> int:
        return len(self._pixels)

    def targets(self, chosen: Indices) -> NDArray[np.uint8]:
        """Uint8 (n, side, side)."""
        return self._targets(chosen)

    def batches(self, chosen: Indices, owners: Indices, rng: np.random.Generator) -> list[Indices]:
        """One pass, see TrainingPatches."""
        size, shares = len(owners), np.bincount(owners)
        # Each process reads its own share of a block: as many patches as a single process would.
        together = max(1, self._block // int(shares.max()))
        plan = replace(_only(self._plan, chosen, len(self)), block=together * size)
        found: list[Indices] = []
        for block in plan.blocks(seed=int(rng.integers(2**63)), epoch=0):
            count = len(block) // size
            kept = block[: count * size]
            by_tile = kept[np.argsort(self._order[kept], kind="stable")]
            dealt = np.empty((count, size), np.int64)
            for number, lane in enumerate(np.split(by_tile, np.cumsum(shares * count)[:-1])):
                dealt[:, owners == number] = rng.permutation(lane).reshape(count, shares[number])
            found += list(dealt)
        return found

    def reading_order(self, chosen: Indices) -> Indices:
        """By slide and tile."""
        return np.argsort(self._order[chosen], kind="stable")

    def images(self, parts: Sequence[Indices]) -> Generator[NDArray[np.uint8], None, None]:
        """Uint8 (n, side, side, 3) of each group; as many are read together as fit into a block.

        Raises:
            PathologyError: patches cannot be read.
        """
        groups = list(_together(parts, self._block))
        together = map(np.concatenate, groups)
        with closing(self._reader.read(self._pixels, together, workers=self._workers)) as blocks:
            for group, block in zip(groups, blocks, strict=True):
                ends = np.cumsum([len(part) for part in group])[:-1]
                for order in np.split(block.order, ends):
                    yield block.pixels[order]


def _names(patients: NDArray[Any] | None, count: int) -> NDArray[np.str_]:
    names = np.arange(count).astype(str) if patients is None else np.asarray(patients).astype(str)
    if names.shape != (count,):
        raise ValueError(f"patients need shape ({count},), got {names.shape}")
    return names


def _together(parts: Iterable[Indices], most: int) -> Iterator[list[Indices]]:
    """Consecutive groups together, up to ``most`` patches."""
    held: list[Indices] = []
    for part in parts:
        if held and sum(map(len, held)) + len(part) > most:
            yield held
            held = []
        held.append(part)
    if held:
        yield held


def _only(plan: PassPlan, chosen: Indices, count: int) -> PassPlan:
    """The plan restricted to the chosen patches."""
    is_chosen = np.zeros(count, bool)
    is_chosen[chosen] = True
    clusters = [cluster[is_chosen[cluster]] for cluster in plan.clusters]
    kept = np.array([len(cluster) > 0 for cluster in clusters], bool)
    return replace(plan, clusters=tuple(cluster for cluster in clusters if len(cluster)), slide_of=plan.slide_of[kept])


def _sha256(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
