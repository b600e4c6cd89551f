"""Patches straight from slides into a training loop: torch datasets over ``wsi.patches.reading``.

PatchStream is the faster: it yields whole batches, each tile decoded once per block. PatchDataset returns any patch at
any time, for custom samplers. Both may be forked or spawned into DataLoader workers: only paths and positions are sent,
and every process opens its own slides, a bounded number at a time.

Example: a training loop without extracting patches::

    table = read_patch_table("patches.parquet")                     # of annotations
    table = table.rows(table["split"] == "train")
    stream = PatchStream(table.positions(), table.labels, batch=64)
    for epoch in range(20):
        stream.set_epoch(epoch)
        for images, labels, _ in DataLoader(stream, batch_size=None):
            ...                                                # images: uint8 (64, side, side, 3)

Without DataLoader workers all cores decode on threads and no pixel is copied between processes: the fastest way if the
network computes on another device. With ``num_workers`` each worker decodes on one core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from wsi.cores import usable_cores
from wsi.patches.blocks import BlockReader, ReadBlock, SlidePixels, block_of
from wsi.patches.passes import PassPlan
from wsi.patches.pool import SlidePool
from wsi.patches.reading import PatchPositions, read_positions
from wsi.readers.base import OnBadTile

_BLOCK_BYTES = 192 * 2**20


class PatchItems(NamedTuple):
    """A batch.

    Attributes:
        images: uint8 (n, side, side, 3), RGB.
        labels: int64 (n,), from the argument ``labels``; zeros without it.
        indices: int64 (n,), of the patches: rows of the table.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


class PatchStream(IterableDataset[PatchItems]):
    """Batches of patches, one pass over all of them per iteration; for ``DataLoader(stream, batch_size=None)``.

    The shuffle works in blocks: see ``wsi.patches.passes.PassPlan``. DataLoader workers and the ranks of a distributed
    training divide the patches without overlap. All ranks have the same number of batches; fewer patches than there
    are workers in all are left out, different ones in every pass.

    Args:
        positions: of the patches.
        labels: int (n,), one for each.
        batch: patches per batch.
        seed: determines the order, with the epoch; equal seeds yield equal batches for equal numbers of workers.
        block: patches read at a time by each worker, rounded up to whole batches; by default as many as fit into 192
            MiB of pixels, 1,024 at most. While they are yielded the next block is read: two are in memory.
        stretch: patches kept together because they share tiles.
        shuffle: False yields the patches in order, still decoding each tile once per block.
        drop_last: leave out a last batch that is not full.
        rank: of this process among ``world_size``; by default torch.distributed's, if it is initialised.
        world_size: processes that train together.
        most_slides: open at a time in each worker.
        on_bad_tile: as for ``Slide.open``.

    Raises:
        SlideError: a slide cannot be opened.
        ValueError: labels and positions do not match, or a number is out of range.
    """

    def __init__(
        self,
        positions: PatchPositions,
        labels: NDArray[np.integer] | None = None,
        *,
        batch: int = 32,
        seed: int = 0,
        block: int | None = None,
        stretch: int = 64,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        most_slides: int = 16,
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        super().__init__()
        if batch < 1:
            raise ValueError(f"a batch must hold at least one patch, got {batch}")
        self._positions = positions
        self._labels = _checked(positions, labels)
        self._batch, self._seed = batch, seed
        self._is_shuffled, self._is_last_dropped = shuffle, drop_last
        self._rank, self._world_size = _own_rank(rank, world_size)
        self._most_slides, self._on_bad_tile = most_slides, on_bad_tile
        block = block_of(positions.size_px, _BLOCK_BYTES) if block is None else block
        with closing(SlidePool(most_slides, on_bad_tile)) as pool:
            self._plan = PassPlan.of(positions, pool, stretch=stretch, block=-(-block // batch) * batch)
        self._reader = BlockReader(positions.slide)
        # In shared memory: persistent workers see the new number, too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Set another order for the next pass, the same on all ranks. Persistent workers see it, too."""
        self._epoch[0] = epoch

    def batches(self, workers: int = 0) -> int:
        """Batches of this rank in a pass with ``workers`` DataLoader workers (0: none, as for DataLoader)."""
        parts = self._world_size * max(1, workers)
        total = 0
        for worker in range(max(1, workers)):
            number = self._rank * max(1, workers) + worker
            start, stop = self._plan.part(number=number, parts=parts, even=self._world_size > 1)
            total += (stop - start) // self._batch if self._is_last_dropped else -(-(stop - start) // self._batch)
        return total

    def __iter__(self) -> Iterator[PatchItems]:
        info = get_worker_info()
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        # Workers are processes already; without them, all cores decode.
        threads = usable_cores() if info is None else 1
        blocks = self._plan.blocks(
            seed=self._seed,
            epoch=int(self._epoch[0]),
            number=self._rank * workers + worker,
            parts=self._world_size * workers,
            even=self._world_size > 1,
            shuffle=self._is_shuffled,
        )
        pixels = SlidePixels(self._positions, most_slides=self._most_slides, on_bad_tile=self._on_bad_tile)
        with closing(pixels), closing(self._reader.read(pixels, blocks, workers=threads)) as reading:
            for block in reading:
                yield from self._batches_of(block)

    def _batches_of(self, block: ReadBlock) -> Iterator[PatchItems]:
        for start in range(0, len(block.indices), self._batch):
            chosen = block.indices[start : start + self._batch]
            if len(chosen) == self._batch or not self._is_last_dropped:
                images = _gathered(block.pixels, block.order[start : start + self._batch])
                labels = torch.from_numpy(self._labels[chosen])
                yield PatchItems(images, labels, torch.from_numpy(chosen.copy()))


class PatchDataset(Dataset[PatchItems]):
    """Any patch by its index; a DataLoader with a batch size requests whole batches, whose tiles are decoded once.

    Batches need no collating: pass ``collate_fn=PatchDataset.joined`` to the DataLoader.

    Args:
        positions: of the patches.
        labels: int (n,), one for each.
        most_slides: open at a time in each worker.
        on_bad_tile: as for ``Slide.open``.
    """

    def __init__(
        self,
        positions: PatchPositions,
        labels: NDArray[np.integer] | None = None,
        *,
        most_slides: int = 16,
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        super().__init__()
        self._positions = positions
        self._labels = _checked(positions, labels)
        self._pool = SlidePool(most_slides, on_bad_tile)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> PatchItems:
        """One patch: image (side, side, 3), label and index without a first axis."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[PatchItems]:
        """Several at once, as DataLoader's fetcher requests them."""
        chosen = np.asarray(indices, dtype=np.int64)
        threads = usable_cores() if get_worker_info() is None else 1
        images = torch.from_numpy(read_positions(self._positions, chosen, self._pool, workers=threads))
        labels = torch.from_numpy(self._labels[chosen])
        numbers = torch.from_numpy(chosen)
        return [PatchItems(*parts) for parts in zip(images, labels, numbers, strict=True)]

    @staticmethod
    def joined(items: Sequence[PatchItems]) -> PatchItems:
        """A batch from its patches."""
        return PatchItems(*(torch.stack(parts) for parts in zip(*items, strict=True)))


def _gathered(pixels: NDArray[np.uint8], chosen: NDArray[np.int64]) -> torch.Tensor:
    """A copy of the chosen patches; in a DataLoader worker, in memory that the training process can map."""
    # torch itself opens a tensor sent by another process this way; its absence only costs time
    mapped: Any = getattr(torch.UntypedStorage, "_new_shared_fd_cpu", None)
    if get_worker_info() is None or mapped is None or not _are_tensors_sent_as_files():
        # take, not pixels[chosen]: it releases the interpreter's lock for the decoding threads.
        return torch.from_numpy(pixels.take(chosen, axis=0))
    # Writing a file takes half the time of filling mapped memory page by page; and this file uses none of /dev/shm,
    # which is small in containers.
    with os.fdopen(os.memfd_create("patches"), "wb") as file:
        for at in chosen.tolist():
            file.write(pixels[at])
        file.flush()
        storage = mapped(file.fileno(), len(chosen) * pixels[0].nbytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(len(chosen), *pixels.shape[1:])


def _are_tensors_sent_as_files() -> bool:
    """Whether torch shares memory by open files without a name: on Linux, unless configured otherwise."""
    strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    return hasattr(os, "memfd_create") and strategy == "file_descriptor"


def _checked(positions: PatchPositions, labels: NDArray[np.integer] | None) -> NDArray[np.int64]:
    if labels is None:
        return np.zeros(len(positions), np.int64)
    if labels.shape != (len(positions),):
        raise ValueError(f"{len(positions)} patches need as many labels, got {labels.shape}")
    return labels.astype(np.int64)


def _own_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise ValueError(f"there is no rank {rank} among {world_size}")
        return rank, world_size
    if rank is not None or world_size is not None:
        raise ValueError("rank and world_size must be given together or not at all")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
