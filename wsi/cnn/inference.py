"""From a slide to its Heatmap, over tissue only.

The network always sees blocks of one size, cut from one fixed grid, one block at a time with one thread; threads work
on different blocks. Convolutions of another shape or thread count sum in another order (the last bits of the logits
differ, measured: up to 4e-7), so only this makes a cell's probability the same bit for bit whatever the windows in
which the slide is read, the number of threads and the size of the image. It is also faster than threads within a
convolution. On a GPU blocks are batched; its results agree with the CPU's to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.device import equal_convolutions, lone_threads, pick_device
from wsi.cores import usable_cores
from wsi.errors import CheckpointError, PathologyError
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Mask
from wsi.tiles import FrameSource, TilePlan, TileWindow, stream_tiles
from wsi.tissue import covers

BLOCK_CELLS = 64
_BLOCK_PX, _FEWEST_CELLS = 512, 8  # fewer cells at large strides: a block of 64 would be 2,048 px wide and take 1 GB
_GPU_BATCH = 32
_WHITE = 255

_Pixels: TypeAlias = NDArray[np.uint8]
_Cells: TypeAlias = NDArray[np.float32]
_Judge: TypeAlias = Callable[[Sequence[_Pixels]], list[_Cells]]


class SlideSource(FrameSource, Protocol):
    """What inference needs of a Slide."""

    def frame_at(self, mpp: float) -> Frame:
        """As Slide.frame_at."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A square of cells: where it begins in the heatmap, the cells along a side, and the pixels they see."""

    row: int
    column: int
    cells: int
    pixels: _Pixels


def block_cells(stride_px: int) -> int:
    """Cells along a side of the blocks that a network of this stride always sees."""
    return max(min(_FEWEST_CELLS, BLOCK_CELLS), min(BLOCK_CELLS, _BLOCK_PX // stride_px))


def infer(
    slide: SlideSource,
    checkpoint: Checkpoint,
    *,
    tissue: Mask,
    window_px: int = 1024,
    batch: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Heatmap:
    """Apply the network to the tissue of a slide.

    Memory beyond the heatmap does not grow with the slide: at most 4 x workers windows (3.5 MB each at 1024 px) and the
    reading buffers, the batch, and about 30 MB per worker within the network.

    Args:
        slide: its resolution must be known.
        checkpoint: its mpp is the resolution that is read.
        tissue: mask in any frame of the slide.
        window_px: side of the window read at a time, in px at the checkpoint's resolution; rounded up to whole blocks
            (64 cells, 512 px at stride 8). It has no influence on the result.
        batch: blocks computed at a time; None chooses (2 per worker; 32 on a GPU, halved as often as its memory
            demands).
        device: auto, cpu or cuda.
        workers: reading threads, and on a CPU also computing threads; None uses the usable cores.
        on_tiles: called with (windows done, windows in all).

    Returns:
        Heatmap whose cells are the checkpoint's stride_px squares of ``slide.frame_at(checkpoint.mpp)`` and cover it
        (the last row and column may overhang): the network's output at a square's centre. ``tissue`` is true for cells
        that overlap a tissue pixel and do not lie wholly where the slide stores no pixels; all others are 0.

    Raises:
        ResolutionError: the slide's mpp is unknown.
        CheckpointError: the network returns NaN.
        SlideError: the slide cannot be read.
        PathologyError: the device does not exist, or its memory is too small for one block.
        ValueError: window_px, batch or workers is not positive.
    """
    count = usable_cores() if workers is None else workers
    if min(window_px, count, 1 if batch is None else batch) < 1:
        raise ValueError(f"window_px, batch and workers must be positive, got {window_px}, {batch}, {workers}")
    architecture = checkpoint.architecture
    frame = slide.frame_at(checkpoint.mpp)
    cells = frame.coarser(architecture.stride_px)
    wanted = covers(tissue, cells)
    block_px = block_cells(architecture.stride_px) * architecture.stride_px
    plan = TilePlan.over(
        frame,
        core_px=-(-window_px // block_px) * block_px,
        halo_px=architecture.margin_px,
        mask=Mask(frame=cells, array=wanted),
    )
    target = pick_device(device)
    at_once = batch or (_GPU_BATCH if target.type == "cuda" else 2 * count)
    probability = np.zeros(cells.shape, np.float32)
    seen = np.zeros(cells.shape, np.bool_)
    waiting: list[_Block] = []
    done = 0

    def flush() -> None:
        for block, values in zip(waiting, judge([block.pixels for block in waiting]), strict=True):
            rows, columns = _slices(block, cells.shape)
            keep = seen[rows, columns]
            probability[rows, columns][keep] = values[: keep.shape[0], : keep.shape[1]][keep]
        waiting.clear()
        if on_tiles is not None:
            on_tiles(done, len(plan))

    with _judging(checkpoint, target, count) as judge, closing(stream_tiles(slide, plan, workers=count)) as windows:
        for window, pixels in windows:
            if pixels is not None:
                _mark(slide, cells, window, pixels, wanted=wanted, seen=seen, stride=architecture.stride_px)
                waiting += _blocks(window, pixels, seen, checkpoint)
            done += 1
            if len(waiting) >= at_once:
                flush()
        flush()
    return Heatmap(frame=cells, array=probability, tissue=seen)


def predict(
    checkpoint: Checkpoint, image: NDArray[np.uint8], *, device: str = "auto", workers: int | None = None
) -> NDArray[np.float32]:
    """The probability of tumour over one whole image, surrounded by white.

    Args:
        checkpoint: the network.
        image: uint8 (rows, columns, 3), RGB at the checkpoint's mpp.
        device: auto, cpu or cuda.
        workers: computing threads; None uses the usable cores.

    Returns:
        Float32 (ceil(rows / stride_px), ceil(columns / stride_px)); on the CPU bit for bit what ``infer`` returns for a
        slide of these pixels.

    Raises:
        CheckpointError: the network returns NaN.
        PathologyError: the device does not exist.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image must be uint8 (rows, columns, 3), got {image.dtype} {image.shape}")
    stride, margin = checkpoint.stride_px, checkpoint.architecture.margin_px
    shape = -(-image.shape[0] // stride), -(-image.shape[1] // stride)
    side_cells = block_cells(stride)
    blocks = -(-shape[0] // side_cells), -(-shape[1] // side_cells)
    block_px = side_cells * stride
    padded = np.full((blocks[0] * block_px + 2 * margin, blocks[1] * block_px + 2 * margin, 3), _WHITE, np.uint8)
    padded[margin : margin + image.shape[0], margin : margin + image.shape[1]] = image
    side = block_px + 2 * margin
    corners = [(row, column) for row in range(blocks[0]) for column in range(blocks[1])]
    pieces = [padded[row * block_px :, column * block_px :][:side, :side] for row, column in corners]
    whole = np.empty((blocks[0] * side_cells, blocks[1] * side_cells), np.float32)
    with _judging(checkpoint, pick_device(device), workers or usable_cores()) as judge:
        for (row, column), values in zip(corners, judge(pieces), strict=True):
            whole[row * side_cells :, column * side_cells :][:side_cells, :side_cells] = values
    return whole[: shape[0], : shape[1]]


def _slices(block: _Block, shape: tuple[int, int]) -> tuple[slice, slice]:
    return (
        slice(block.row, min(block.row + block.cells, shape[0])),
        slice(block.column, min(block.column + block.cells, shape[1])),
    )


def _mark(
    slide: SlideSource,
    cells: Frame,
    window: TileWindow,
    pixels: _Pixels,
    *,
    wanted: NDArray[np.bool_],
    seen: NDArray[np.bool_],
    stride: int,
) -> None:
    """Mark the wanted cells of a window as seen, except those under which the slide stores no pixels."""
    top, left = window.core.row // stride, window.core.column // stride
    core = pixels[window.inner.slices]
    inside = wanted[top : top + core.shape[0] // stride, left : left + core.shape[1] // stride].copy()
    # pixels that are not stored read as white, so only white cells need checking
    height, width = inside.shape
    squares = core[: height * stride, : width * stride].reshape(height, stride, width, stride, 3)
    for row, column in np.argwhere(inside & (squares[:, 0, :, 0] == _WHITE).all(axis=2)):
        is_white = (squares[row, :, column] == _WHITE).all()
        cell = cells.part(Window(row=top + int(row), column=left + int(column), height=1, width=1))
        # at the resolution that was read, so that the slide checks the same stored level
        if is_white and slide.is_missing(cell.finer(stride)):
            inside[row, column] = False
    seen[top : top + height, left : left + width] = inside


def _blocks(window: TileWindow, pixels: _Pixels, seen: NDArray[np.bool_], checkpoint: Checkpoint) -> Iterator[_Block]:
    """The blocks of a window that hold a seen cell."""
    stride, margin = checkpoint.stride_px, checkpoint.architecture.margin_px
    side_cells = block_cells(stride)
    block_px = side_cells * stride
    side = block_px + 2 * margin
    top, left = window.core.row // stride, window.core.column // stride
    for down in range(0, pixels.shape[0] - side + 1, block_px):
        for right in range(0, pixels.shape[1] - side + 1, block_px):
            row, column = top + down // stride, left + right // stride
            if seen[row : row + side_cells, column : column + side_cells].any():
                # a copy, so that a waiting block does not keep its whole window in memory
                piece = pixels[down : down + side, right : right + side].copy()
                yield _Block(row=row, column=column, cells=side_cells, pixels=piece)


def _judging(checkpoint: Checkpoint, device: torch.device, workers: int) -> AbstractContextManager[_Judge]:
    return _on_gpu(checkpoint, device) if device.type == "cuda" else _on_cpu(checkpoint, workers)


@contextmanager
def _on_cpu(checkpoint: Checkpoint, workers: int) -> Iterator[_Judge]:
    """Compute blocks one per thread, each thread alone."""
    network = checkpoint.network.folded()

    def judge_one(pixels: _Pixels) -> _Cells:
        cells: _Cells = _forward(network, pixels[None], torch.device("cpu"), checkpoint.tumour_class)[0]
        return _checked(checkpoint, cells)

    with lone_threads(workers, "cnn") as pool:
        yield lambda blocks: list(pool.map(judge_one, blocks))


@contextmanager
def _on_gpu(checkpoint: Checkpoint, device: torch.device) -> Iterator[_Judge]:
    network = checkpoint.network.folded().to(device)

    def judge(blocks: Sequence[_Pixels]) -> list[_Cells]:
        def forward(part: Sequence[_Pixels]) -> list[_Cells]:
            return list(_forward(network, np.stack(part), device, checkpoint.tumour_class))

        return list(_checked(checkpoint, np.stack(in_halves(forward, blocks)))) if blocks else []

    with equal_convolutions():
        yield judge


def in_halves(forward: Callable[[Sequence[_Pixels]], list[_Cells]], blocks: Sequence[_Pixels]) -> list[_Cells]:
    """Apply ``forward`` to blocks, to half as many at a time whenever the GPU's memory is too small.

    Raises:
        PathologyError: not even one block fits.
    """
    try:
        return forward(blocks)
    except torch.OutOfMemoryError as error:
        if len(blocks) == 1:
            raise PathologyError(
                None, "the GPU's memory is too small for one block", mend="free it or use the device cpu"
            ) from error
    torch.cuda.empty_cache()
    half = len(blocks) // 2
    return in_halves(forward, blocks[:half]) + in_halves(forward, blocks[half:])


def _forward(network: torch.nn.Module, pixels: _Pixels, device: torch.device, tumour: int) -> _Cells:
    """Uint8 (n, rows, columns, 3) to the probability of tumour, float32 (n, i, j)."""
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float()
        probability: _Cells = network(images).softmax(dim=1)[:, tumour].cpu().numpy()
    return probability


def _checked(checkpoint: Checkpoint, probability: _Cells) -> _Cells:
    if not np.isfinite(probability).all():
        raise CheckpointError(checkpoint.path, "its network returns NaN", mend="train again")
    clipped: _Cells = np.clip(probability, 0, 1)
    return clipped
