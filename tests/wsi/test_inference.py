from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slide_files import ArraySlide

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.inference import BLOCK_CELLS, in_halves, infer, predict
from wsi.cnn.network import SMALL, Architecture, Layer, Network
from wsi.errors import CheckpointError, PathologyError, TileError
from wsi.geometry import Frame, Window
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue
from wsi.writing.pyramid import write_pyramid

TINY = Architecture((Layer(6, 4, 2), Layer(8, 4)))  # receptive field 10, stride 2: a block is 128 px


def checkpoint_of(architecture: Architecture = TINY) -> Checkpoint:
    return Checkpoint(network=Network(architecture, mean=(128.0,) * 3, std=(64.0,) * 3, seed=2).eval(), mpp=2.0)


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def all_tissue(slide: ArraySlide) -> Mask:
    frame = slide.frame_at(2.0)
    return Mask(frame=frame, array=np.ones(frame.shape, bool))


def plain(checkpoint: Checkpoint, array: np.ndarray) -> np.ndarray:
    """The unfolded network over the whole image at once, in double precision."""
    stride, margin = checkpoint.stride_px, checkpoint.architecture.margin_px
    rows, columns = array.shape[:2]
    padding = ((margin, margin + -rows % stride), (margin, margin + -columns % stride), (0, 0))
    padded = np.pad(array, padding, constant_values=255)
    network = checkpoint.architecture.build(mean=checkpoint.network.mean, std=checkpoint.network.std)
    network.fill(checkpoint.network.weights())
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(padded).permute(2, 0, 1)[None])
        return np.asarray(logits.double().softmax(1)[0, checkpoint.tumour_class])


def test_stitched_windows_are_the_whole_image() -> None:
    checkpoint = checkpoint_of()
    slide = ArraySlide(noise(333, 471))
    found = infer(slide, checkpoint, tissue=all_tissue(slide), window_px=1, workers=2, device="cpu")
    assert found.array.shape == (167, 236)
    assert found.tissue.all()
    np.testing.assert_allclose(found.array, plain(checkpoint, slide.array), atol=2e-6)
    np.testing.assert_array_equal(found.array, predict(checkpoint, slide.array, device="cpu"))
    assert found.array.std() > 0.01


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    window_px=st.integers(1, 700), workers=st.integers(1, 4), batch=st.integers(1, 9), threads=st.sampled_from([1, 2])
)
def test_windows_workers_and_batches_leave_no_bit_changed(
    window_px: int, workers: int, batch: int, threads: int
) -> None:
    checkpoint = checkpoint_of()
    slide = ArraySlide(noise(300, 413))
    expected = predict(checkpoint, slide.array, device="cpu", workers=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = infer(
            slide, checkpoint, tissue=all_tissue(slide), window_px=window_px, workers=workers, batch=batch, device="cpu"
        )
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found.array, expected)


def test_cells_are_centred_on_what_they_see() -> None:
    checkpoint = checkpoint_of(SMALL)
    slide = ArraySlide(noise(360, 310))
    found = infer(slide, checkpoint, tissue=all_tissue(slide), device="cpu", workers=1)
    assert found.frame.downsample == 4 * 8
    assert found.frame.shape == (45, 39)
    changed = slide.array.copy()
    changed[180, 140] ^= 255
    other = predict(checkpoint, changed, device="cpu", workers=1)
    rows, columns = np.nonzero(other != found.array)
    x, y = found.frame.centres([rows.min(), rows.max()], [columns.min(), columns.max()])
    # all cells within 48 px of the pixel see it, and no others
    half = 48 * 4
    assert abs((140 + 0.5) * 4 - x).max() < half
    assert abs((180 + 0.5) * 4 - y).max() < half
    assert x[1] - x[0] == y[1] - y[0] == 11 * 32


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.001, 0.01, 0.3]), window_px=st.sampled_from([128, 256, 512])
)
def test_only_cells_that_touch_tissue_are_judged(seed: int, share: float, window_px: int) -> None:
    checkpoint = checkpoint_of()
    slide = ArraySlide(noise(290, 310, seed))
    array = np.random.default_rng(seed).random((97, 104)) < share
    mask = Mask(frame=Frame(x=0, y=0, downsample=12, shape=(97, 104), mpp=0.5), array=array)
    found = infer(slide, checkpoint, tissue=mask, window_px=window_px, workers=1, device="cpu")
    level_0 = np.kron(array, np.ones((12, 12), bool))[: 290 * 4, : 310 * 4]
    expected = np.array(
        [
            [level_0[row : row + 8, column : column + 8].any() for column in range(0, 1240, 8)]
            for row in range(0, 1160, 8)
        ]
    )
    np.testing.assert_array_equal(found.tissue, expected)
    whole = predict(checkpoint, slide.array, device="cpu", workers=1)
    np.testing.assert_array_equal(found.array, np.where(expected, whole, 0))


def test_missing_tiles_are_never_inferred_on() -> None:
    checkpoint = checkpoint_of()
    missing = [(0, 0), (1, 3), (1, 4), (5, 5), *((row, 9) for row in range(13)), *((8, column) for column in range(14))]
    slide = ArraySlide(noise(13 * 32, 14 * 32), missing)
    slide.array[200:240, 100:180] = 255  # saturated, but stored
    found = infer(slide, checkpoint, tissue=all_tissue(slide), window_px=128, workers=2, device="cpu")
    expected = np.kron(slide.stored, np.ones((16, 16), bool))
    np.testing.assert_array_equal(found.tissue, expected)
    assert (found.array[~expected] == 0).all()
    whole = predict(checkpoint, slide.array, device="cpu")
    np.testing.assert_array_equal(found.array[expected], whole[expected])


def test_a_slide_without_stored_tiles_is_all_zero() -> None:
    slide = ArraySlide(noise(300, 300), [(row, column) for row in range(10) for column in range(10)])
    told: list[tuple[int, int]] = []
    found = infer(
        slide,
        checkpoint_of(),
        tissue=all_tissue(slide),
        window_px=128,
        workers=1,
        device="cpu",
        on_tiles=lambda done, total: told.append((done, total)),
    )
    assert not found.tissue.any()
    assert not found.array.any()
    assert told[-1] == (9, 9)


def test_progress_rises_to_the_total() -> None:
    slide = ArraySlide(noise(400, 300))
    told: list[tuple[int, int]] = []
    infer(
        slide,
        checkpoint_of(),
        tissue=all_tissue(slide),
        window_px=128,
        workers=1,
        device="cpu",
        on_tiles=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (12, 12)
    assert len(told) > 3


def test_a_network_that_gives_nan_is_refused() -> None:
    checkpoint = checkpoint_of()
    with torch.no_grad():
        checkpoint.network.get_parameter("head.weight").fill_(torch.inf)
    slide = ArraySlide(noise(50, 50))
    with pytest.raises(CheckpointError, match="NaN"):
        infer(slide, checkpoint, tissue=all_tissue(slide), device="cpu")


def test_a_failing_slide_ends_with_its_own_error_and_no_threads() -> None:
    slide = ArraySlide(noise(300, 300), fails=True)
    with pytest.raises(TileError, match="decoded"):
        infer(slide, checkpoint_of(), tissue=all_tissue(slide), window_px=128, device="cpu")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("cnn", "tile"))]


@pytest.mark.parametrize("odd", [{"window_px": 0}, {"workers": 0}, {"batch": -1}])
def test_nothing_positive_nothing_done(odd: dict[str, int]) -> None:
    slide = ArraySlide(noise(30, 30))
    with pytest.raises(ValueError, match="positive"):
        infer(slide, checkpoint_of(), tissue=all_tissue(slide), device="cpu", **odd)  # type: ignore[arg-type]


def test_predict_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="uint8"):
        predict(checkpoint_of(), np.zeros((4, 4)), device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("fitting", [1, 2, 5, 100])
def test_batches_are_halved_until_they_fit(fitting: int) -> None:
    tried: list[int] = []

    def forward(blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        tried.append(len(blocks))
        if len(blocks) > fitting:
            raise torch.OutOfMemoryError
        return [block.astype(np.float32) for block in blocks]

    blocks = [np.full(1, number, np.uint8) for number in range(13)]
    assert [int(values[0]) for values in in_halves(forward, blocks)] == list(range(13))
    assert tried[0] == 13


def test_too_small_a_gpu_is_said_in_one_sentence() -> None:
    def forward(_: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise torch.OutOfMemoryError

    with pytest.raises(PathologyError, match="memory is too small"):
        in_halves(forward, [np.zeros(1, np.uint8)] * 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_gpu_agrees_with_the_cpu() -> None:
    checkpoint = checkpoint_of(SMALL)
    slide = ArraySlide(noise(900, 1300))
    on_cpu = infer(slide, checkpoint, tissue=all_tissue(slide), device="cpu")
    for batch in (1, 7):
        on_gpu = infer(slide, checkpoint, tissue=all_tissue(slide), device="cuda", batch=batch)
        np.testing.assert_allclose(on_gpu.array, on_cpu.array, atol=1e-5)


@pytest.mark.slow
def test_a_real_slide_end_to_end(real_data: Callable[[str], Path]) -> None:
    checkpoint = checkpoint_of(SMALL)
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        found = infer(slide, checkpoint, tissue=find_tissue(slide), device="cpu", workers=2)
        frame = slide.frame_at(2.0)
        whole = predict(checkpoint, slide.read_frame(frame).array, device="cpu", workers=2)
    assert found.frame == frame.coarser(8)
    assert found.frame.pixel_um == pytest.approx(16.0)
    assert found.tissue.mean() > 0.2
    np.testing.assert_array_equal(found.array, np.where(found.tissue, whole, 0))


def test_a_block_is_as_the_description_says() -> None:
    assert BLOCK_CELLS * SMALL.stride_px == 512


def test_missing_tiles_are_asked_for_at_the_resolution_that_is_read(tmp_path: Path) -> None:
    """A coarse level stores tiles where the finest has none: they say nothing about what was looked at."""
    image = np.full((256, 256, 3), 255, np.uint8)
    image[:, 64:] = noise(256, 192)
    tiles = [
        None if column < 1 else image[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        for row in range(4)
        for column in range(4)
    ]
    path = tmp_path / "slide.tif"
    write_pyramid(path, width=256, height=256, mpp=2.0, tile_size=64, levels=3, tiles=tiles)
    with Slide.open(path) as slide:
        assert slide.is_missing(slide.frame.part(Window.whole((256, 64))))
        coarse = slide.frame_of(1)
        assert not slide.is_missing(coarse.part(Window.whole((128, 32))))
        tissue = Mask(frame=coarse, array=np.ones(coarse.shape, bool))
        found = infer(slide, checkpoint_of(), tissue=tissue, window_px=64, workers=1, device="cpu")
    np.testing.assert_array_equal(found.tissue, np.broadcast_to(np.arange(128) >= 32, (128, 128)))
