from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_training import EVERYTHING, TINY, patches
from two_processes import started_twice

from annotations.patches.targets import PatchTargets
from wsi.cnn.cells import cell_targets
from wsi.cnn.checkpoint import load_checkpoint
from wsi.cnn.resuming import Progress
from wsi.cnn.training import Training
from wsi.patches.blocks import BlockReader, JoinedPixels, block_of
from wsi.patches.feeding import StreamedPatches
from wsi.patches.passes import PassPlan
from wsi.readers.base import BadTile


class ArrayPixels:
    """Patches of an array, in clusters, that remember how they were read."""

    def __init__(self, images: NDArray[np.uint8], clusters: Sequence[int] = ()) -> None:
        self._images = images
        ends = np.cumsum([*clusters, len(images)])
        self._clusters = [c for c in np.split(np.arange(len(images)), ends[ends < len(images)]) if len(c)]
        self.reads: list[list[int]] = []

    @property
    def size_px(self) -> int:
        return int(self._images.shape[1])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        return ()

    def plan(self) -> PassPlan:
        slides = np.arange(len(self._clusters), dtype=np.int32) // 3
        return PassPlan(clusters=tuple(self._clusters), slide_of=slides, stretch=4, block=16)

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        assert workers >= 1
        self.reads.append(indices.tolist())
        out[...] = self._images[indices]


def numbered(count: int, side: int = 2) -> NDArray[np.uint8]:
    values = np.arange(count).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, side, side, 3)).copy()


def streamed(images: NDArray[np.uint8], targets: NDArray[np.uint8] | None = None, **changes: Any) -> StreamedPatches:
    held = PatchTargets.normal(len(images), images.shape[1])
    if targets is not None:
        held.put(np.arange(len(images)), targets)
    clusters = changes.pop("clusters", ())
    settled: dict[str, Any] = {"mpp": 2.0, "record": {"patches_sha256": "x"}}
    return StreamedPatches(ArrayPixels(images, clusters), held, **settled | changes)


# --- the order of a pass


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_a_pass_holds_every_patch_once_in_full_batches(
    clusters: list[int], owners: list[int], block: int, seed: int
) -> None:
    count = sum(clusters)
    source = streamed(numbered(count), clusters=clusters, block=block)
    chosen = np.flatnonzero(np.random.default_rng(seed).random(count) < 0.8)
    found = source.batches(chosen, np.array(owners), np.random.default_rng(seed))
    again = source.batches(chosen, np.array(owners), np.random.default_rng(seed))
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in again]
    assert len(found) == len(chosen) // len(owners)
    flat = np.concatenate([np.empty(0, int), *found])
    assert len(flat) == len(set(flat.tolist()))
    assert set(flat.tolist()) <= set(chosen.tolist())
    if len(chosen) % len(owners) == 0:
        assert set(flat.tolist()) == set(chosen.tolist())


def test_passes_differ_and_mix_the_slides() -> None:
    source = streamed(numbered(240), clusters=[4] * 59, block=120)
    rng = np.random.default_rng(0)
    first, second = (source.batches(np.arange(240), np.zeros(24, int), rng) for _ in range(2))
    assert not np.array_equal(first, second)
    slides = [len(set((batch // 12).tolist())) for batch in first]
    assert min(slides) >= 8  # of 20


def test_processes_read_neighbours() -> None:
    """Each process reads the patches of its own tiles: a block's clusters are hardly cut."""
    source = streamed(numbered(128), clusters=[8] * 15, block=32)
    owners = np.repeat([0, 1, 0, 1], 4)
    batches = source.batches(np.arange(128), owners, np.random.default_rng(3))
    for start in range(0, len(batches), 4):  # 32 patches of each process
        some = np.stack(batches[start : start + 4])
        of_each = [set((some[:, owners == rank] // 8).ravel().tolist()) for rank in (0, 1)]
        assert len(of_each[0] & of_each[1]) <= 1


# --- pixels


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 29), max_size=9), max_size=12), st.integers(1, 20), st.integers(1, 3))
def test_groups_come_in_their_order(parts: list[list[int]], block: int, workers: int) -> None:
    source = streamed(numbered(30), clusters=[3] * 9, block=block, workers=workers)
    groups = [np.array(part, int) for part in parts]
    found = [images.copy() for images in source.images(groups)]
    assert [images[:, 0, 0, 0].tolist() for images in found] == parts


def test_windows_are_bounded_and_read_by_tiles() -> None:
    pixels = ArrayPixels(numbered(60), [3] * 19)
    source = StreamedPatches(pixels, PatchTargets.normal(60, 2), mpp=2.0, record={}, block=10)
    order = np.random.default_rng(0).permutation(60)
    assert len(list(source.images([order[start : start + 4] for start in range(0, 60, 4)]))) == 15
    assert {len(read) for read in pixels.reads} == {8, 4}
    assert all(read == sorted(read) for read in pixels.reads)


def test_reading_stays_one_window_ahead_and_ends_early() -> None:
    pixels = ArrayPixels(numbered(60))
    reader = BlockReader(np.arange(60))
    with closing(reader.read(pixels, np.arange(60).reshape(6, 10), workers=1)) as blocks:
        next(blocks)
        assert len(pixels.reads) <= 2
    assert len(pixels.reads) <= 2


def test_a_failure_in_reading_is_told() -> None:
    class Broken(ArrayPixels):
        def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
            raise OSError(f"gone: {indices.size} for {out.shape} on {workers}")

    source = StreamedPatches(Broken(numbered(4)), PatchTargets.normal(4, 2), mpp=2.0, record={})
    with pytest.raises(OSError, match="gone"):
        list(source.images([np.arange(4)]))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.data())
def test_joined_pixels_are_those_of_the_parts(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    everything = numbered(total)
    starts = np.cumsum([0, *counts])
    joined = JoinedPixels(
        [ArrayPixels(everything[a:b], [2]) for a, b in itertools.pairwise(starts) if b > a] or [ArrayPixels(everything)]
    )
    assert len(joined) == total
    chosen = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=20)) if total else [], int)
    out = np.empty((len(chosen), 2, 2, 3), np.uint8)
    joined.read(chosen, out=out, workers=1)
    assert out[:, 0, 0, 0].tolist() == chosen.tolist()
    clusters = joined.plan().clusters
    assert sorted(np.concatenate([np.empty(0, int), *clusters]).tolist()) == list(range(total))
    assert len(joined.plan().slide_of) == len(clusters)


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_targets_come_back(count: int, side: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([0, 1, 255]), min_size=count * side**2, max_size=count * side**2))
    targets = np.array(values, np.uint8).reshape(count, side, side)
    targets[0] = 255
    held = PatchTargets.normal(count, side)
    held.put(np.arange(count)[::-1], targets[::-1])
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=8)), int)
    np.testing.assert_array_equal(held(chosen), targets[chosen])
    assert held.held[0] == 255
    both = PatchTargets.joined([held, held])
    np.testing.assert_array_equal(both(chosen + count), targets[chosen])
    with pytest.raises(ValueError, match="targets must be uint8"):
        held.put(np.arange(1), targets[:1, :, :0])


def test_a_window_fits_its_budget() -> None:
    assert block_of(256, 96 * 2**20) == 512
    assert block_of(16, 96 * 2**20) == 1024
    assert block_of(20000, 1) == 1


# --- training


def fit(block: int = 20, **changes: Any) -> Training:
    images, targets = patches()
    patients = np.arange(40) % 10
    source = streamed(images, targets, patients=patients, clusters=[3] * 13, block=block, workers=1)
    return small_training.fit(source, **changes)


def test_streamed_patches_are_learnt_as_held_ones_are() -> None:
    found, other = fit(epochs=8), small_training.fit(epochs=8)
    assert found.judges == other.judges
    assert found.checkpoint.network.mean == other.checkpoint.network.mean
    assert found.checkpoint.network.std == other.checkpoint.network.std
    np.testing.assert_array_equal(found.truth, other.truth)
    assert (found.history[found.best].judges_auc or 0) > 0.95
    assert found.checkpoint.provenance["patches_sha256"] == "x"


def test_margins_are_those_of_the_held_out_patches() -> None:
    images, targets = patches()
    for block in (4, 20):
        found = fit(epochs=1, block=block, temperature=False)
        shown = np.isin(np.arange(40) % 10, [int(name) for name in found.judges])
        with torch.inference_mode():
            logits = found.checkpoint.network(torch.from_numpy(images[shown]).permute(0, 3, 1, 2))
        np.testing.assert_allclose(found.margins, (logits[:, 1] - logits[:, 0]).flatten().numpy(), atol=1e-4)
        np.testing.assert_array_equal(found.truth, (cell_targets(targets[shown], TINY) == 1).ravel())


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {own!r}]
from pathlib import Path
import small_training, test_training_patches, wsi.cnn.training as training
from wsi.cnn.resuming import Progress
write, count = training.save_progress, 0
def save_progress(*arguments):
    global count
    write(*arguments)
    count += 1
    if count == {writings}:
        os.kill(os.getpid(), signal.SIGKILL)
training.save_progress = save_progress
test_training_patches.fit(method=small_training.EVERYTHING, resume=Progress(Path({path!r}), every=1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("writings", [2, 5])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, writings: int) -> None:
    path = tmp_path / "progress"
    code = KILLED.format(
        tests=str(Path(__file__).parents[1]), own=str(Path(__file__).parent), writings=writings, path=str(path)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    undisturbed = fit(method=EVERYTHING)
    resumed = fit(method=EVERYTHING, resume=Progress(path), workers=1)
    assert resumed.checkpoint.digest == undisturbed.checkpoint.digest
    assert resumed.history == undisturbed.history


TOGETHER = """
import sys
sys.path[:0] = [{tests!r}, {own!r}]
import os, small_training, test_training_patches
from pathlib import Path
from wsi.cnn.checkpoint import save_checkpoint
result = test_training_patches.fit(method=small_training.EVERYTHING, batch=20, epochs=14)
save_checkpoint(Path({path!r}) / ("rank" + os.environ["RANK"]), result.checkpoint)
"""


@pytest.mark.slow
def test_two_processes_learn_one_network(tmp_path: Path) -> None:
    code = TOGETHER.format(tests=str(Path(__file__).parents[1]), own=str(Path(__file__).parent), path=str(tmp_path))
    ended = started_twice([sys.executable, "-c", code])
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    first, second = (load_checkpoint(tmp_path / name) for name in ("rank0", "rank1"))
    assert first.digest == second.digest
    assert first.provenance["validation_auc"] > 0.9
