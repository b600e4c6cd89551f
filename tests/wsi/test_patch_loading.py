"""Patches into a training loop: the right pixels, every patch once, whatever processes share the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from wsi.cnn.patch_loading import PatchDataset, PatchItems, PatchStream
from wsi.geometry import Frame
from wsi.patches.blocks import SlidePixels
from wsi.patches.pool import SlidePool
from wsi.patches.reading import PatchPositions
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

COUNT, SIDE = 90, 32


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> PatchPositions:
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(3):
        tiles = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(16)]
        paths.append(folder / f"s{number}.tif")
        write_pyramid(paths[-1], width=512, height=512, mpp=0.5, tiles=tiles, tile_size=128)
    return PatchPositions(
        slides=tuple(str(path) for path in paths),
        slide=rng.integers(0, 3, COUNT).astype(np.int32),
        x=rng.integers(-20, 460, COUNT).astype(np.float64),
        y=rng.integers(-20, 460, COUNT).astype(np.float64),
        downsample=rng.choice([1.0, 1.5], COUNT),
        size_px=SIDE,
    )


@pytest.fixture(scope="module")
def pixels(positions: PatchPositions) -> torch.Tensor:
    found = []
    for number, x, y, downsample in zip(positions.slide, positions.x, positions.y, positions.downsample, strict=True):
        frame = Frame(x=float(x), y=float(y), downsample=float(downsample), shape=(SIDE, SIDE), mpp=None)
        with Slide.open(positions.slides[number]) as slide:
            found.append(slide.read_frame(frame).array)
    return torch.from_numpy(np.stack(found))


def labels() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(COUNT) * 7 % 5


def check(batches: list[PatchItems], pixels: torch.Tensor) -> list[int]:
    seen = []
    for images, found, indices in batches:
        assert images.dtype == torch.uint8
        assert torch.equal(images, pixels[indices])
        assert torch.equal(found, torch.from_numpy(labels())[indices])
        seen += indices.tolist()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), pytest.param(2, "spawn", id="spawn")])
def test_every_patch_once_with_its_pixels(
    positions: PatchPositions, pixels: torch.Tensor, workers: int, start: str | None
) -> None:
    stream = PatchStream(positions, labels(), batch=8, block=20, stretch=4, most_slides=2)
    next(iter(stream))  # the parent has slides open when workers are forked
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=workers > 0,
    )
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == stream.batches(workers)
        assert [len(batch.indices) for batch in batches].count(8) >= len(batches) - max(1, workers)
        orders.append(check(batches, pixels))
        assert sorted(orders[-1]) == list(range(COUNT))
    # kept workers hear of the new epoch, and an epoch can be repeated
    assert orders[0] == orders[2] != orders[1]


class Changed(IterableDataset[PatchItems]):
    """Grey levels changed in place by the worker; labels say whether the training process can map the pixels."""

    def __init__(self, stream: PatchStream) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[PatchItems]:
        for images, found, indices in self._stream:
            is_shared = images.is_shared()  # type: ignore[no-untyped-call]
            yield PatchItems(images.add_(1), torch.full_like(found, is_shared), indices)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files without a name are Linux's")
@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_a_worker_may_change_its_batches_however_they_are_sent(
    positions: PatchPositions, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(torch.multiprocessing, "get_sharing_strategy", lambda: strategy)
    stream = Changed(PatchStream(positions, batch=8, block=24))
    batches = list(DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    for images, is_shared, indices in batches:
        assert torch.equal(images, pixels[indices] + 1)
        assert is_shared.bool().all() == (strategy == "file_descriptor")
        images.zero_()  # nothing else lies in this memory
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(COUNT))
    assert not torch.cat([batch.images for batch in batches]).any()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    world=st.integers(1, 5),
    batch=st.integers(1, 20),
    block=st.integers(1, 60),
    stretch=st.integers(1, 30),
    epoch=st.integers(0, 9),
    drop=st.booleans(),
)
def test_ranks_share_patches_without_overlap(
    positions: PatchPositions, *, world: int, batch: int, block: int, stretch: int, epoch: int, drop: bool
) -> None:
    taken: list[list[list[int]]] = []
    for rank in range(world):
        stream = PatchStream(
            positions, batch=batch, block=block, stretch=stretch, rank=rank, world_size=world, drop_last=drop
        )
        stream.set_epoch(epoch)
        with mock.patch.object(SlidePixels, "read"):  # who gets what, without pixels
            taken.append([items.indices.tolist() for items in stream])
        assert len(taken[-1]) == stream.batches()
    # as many steps on every rank: none waits for another
    assert len({len(one) for one in taken}) == 1
    every = [index for one in taken for indices in one for index in indices]
    assert len(every) == len(set(every))
    lost = world * (batch - 1) if drop else 0
    assert COUNT - (world - 1) - lost <= len(every) <= COUNT
    if world == 1 and not drop:
        assert sorted(every) == list(range(COUNT))


def test_ranks_are_those_of_the_process_group(positions: PatchPositions, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(rank: int | None, world: int | None) -> list[list[int]]:
        return [items.indices.tolist() for items in PatchStream(positions, batch=8, rank=rank, world_size=world)]

    expected = batches(1, 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert batches(None, None) == expected


def test_in_order_without_shuffling(positions: PatchPositions, pixels: torch.Tensor) -> None:
    stream = PatchStream(positions, labels(), batch=16, block=40, shuffle=False)
    assert check(list(stream), pixels) == list(range(COUNT))


def test_slides_stay_few_and_are_given_back(positions: PatchPositions, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[SlidePool, int]] = []
    get = SlidePool.get

    def counted(self: SlidePool, path: str | Path) -> Slide:
        found = get(self, path)
        held.append((self, len(self)))
        return found

    monkeypatch.setattr(SlidePool, "get", counted)
    stream = PatchStream(positions, batch=8, block=16, most_slides=2)
    for _ in stream:
        pass
    for _, batch in zip(range(2), stream, strict=False):  # left before its end
        assert len(batch.indices) == 8
    assert max(count for _, count in held) == 2
    assert not any(len(pool) for pool, _ in held)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_any_patch_by_its_number(positions: PatchPositions, pixels: torch.Tensor, workers: int) -> None:
    dataset = PatchDataset(positions, labels(), most_slides=2)
    assert len(dataset) == COUNT
    one = dataset[17]
    assert torch.equal(one.images, pixels[17])
    assert (int(one.labels), int(one.indices)) == (17 * 7 % 5, 17)
    loader = DataLoader(dataset, batch_size=11, shuffle=True, num_workers=workers, collate_fn=PatchDataset.joined)
    assert sorted(check(list(loader), pixels)) == list(range(COUNT))


def test_misuse_is_refused(positions: PatchPositions) -> None:
    with pytest.raises(ValueError, match="as many labels"):
        PatchDataset(positions, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="at least one patch"):
        PatchStream(positions, batch=0)
    with pytest.raises(ValueError, match="no rank 2"):
        PatchStream(positions, rank=2, world_size=2)
    with pytest.raises(ValueError, match="together"):
        PatchStream(positions, rank=0)


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    gone = PatchPositions(
        slides=(str(tmp_path / "gone.tif"),),
        slide=np.zeros(1, np.int32),
        x=np.zeros(1),
        y=np.zeros(1),
        downsample=np.ones(1),
        size_px=SIDE,
    )
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        PatchStream(gone)
