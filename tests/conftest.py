"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
