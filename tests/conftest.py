"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.network import Network


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
