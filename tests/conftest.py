"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from slide_files import picture

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.network import Network
from wsi.writing.pyramid import write_pyramid

# no test asserts a time, and a busy machine is no failure
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a file among the real slides, XML and tables; skips where SENTINODE_TEST_DATA is unset."""
    root = os.environ.get("SENTINODE_TEST_DATA")

    def locate(name: str) -> Path:
        if not root:
            pytest.skip("SENTINODE_TEST_DATA is unset: no real slides here")
        path = Path(root) / name
        if not path.exists():
            pytest.fail(f"SENTINODE_TEST_DATA is set but {path} is missing")
        return path

    return locate


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """A checkpoint of seeded random weights: what it finds means nothing, but it is the same every time."""

    def make(*, mpp: float, seed: int = 0) -> Checkpoint:
        return Checkpoint(network=Network(seed=seed), mpp=mpp)

    return make


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Philips-like file: 3 x 4 tiles of which (0, 0), (0, 1), (1, 0), (1, 1) and (2, 3) are missing."""
    path = tmp_path_factory.mktemp("sparse") / "philips.tif"
    image = np.zeros((192, 256, 3), dtype=np.uint8)
    image[...] = picture(192, 256)
    missing = {(0, 0), (0, 1), (1, 0), (1, 1), (2, 3)}
    tiles = [
        None if (row, column) in missing else image[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        for row in range(3)
        for column in range(4)
    ]
    write_pyramid(path, width=256, height=192, mpp=0.25, tile_size=64, tiles=tiles, philips=True)
    return path


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 x 420 px in JPEG tiles of 64 px, five of them missing, two levels below."""
    image = np.full((448, 512, 3), 255, dtype=np.uint8)
    image[:420, :500] = picture(420, 500)
    missing = {(0, 0), (0, 1), (3, 4), (6, 7), (2, 2)}
    path = tmp_path_factory.mktemp("plain") / "slide.tif"
    tiles = [
        None if (row, column) in missing else image[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        for row in range(7)
        for column in range(8)
    ]
    write_pyramid(path, width=500, height=420, mpp=0.25, tile_size=64, levels=3, tiles=tiles)
    return path
