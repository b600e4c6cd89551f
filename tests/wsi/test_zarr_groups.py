from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.zarr_groups import CODECS, open_group


@pytest.fixture
def group(tmp_path: Path) -> Path:
    path = tmp_path / "one.zarr"
    made = zarr.open_group(path, mode="w", zarr_format=3)
    made.create_array("data", data=np.arange(12.0).reshape(3, 4), chunks=(2, 2))
    made.create_group("table").create_array("rows", data=np.arange(5), chunks=(2,), shards=(4,))
    return path


def change(path: Path, what: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((path / "zarr.json").read_text())
    what(record)
    (path / "zarr.json").write_text(json.dumps(record))


def test_plain_groups_are_read(group: Path) -> None:
    (group / ".DS_Store").write_text("x")
    (group / "stray").mkdir()
    found = open_group(group)
    np.testing.assert_array_equal(found["data"][...], np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(found["table/rows"][...], np.arange(5))


def test_version_2_is_refused_before_a_filter_is_made(tmp_path: Path) -> None:
    """Its pickle filter would run code."""
    path = tmp_path / "old.zarr"
    zarr.open_group(path, mode="w", zarr_format=2).create_array("data", data=np.arange(3))
    with pytest.raises(ValueError, match="version 2"):
        open_group(path)


@pytest.mark.parametrize("name", ["numcodecs.pickle", "numcodecs.zfpy", "mine"])
@pytest.mark.parametrize("within", ["data", "table/rows"])
def test_foreign_codecs_are_refused_also_within_shards(group: Path, name: str, within: str) -> None:
    def add(record: dict[str, Any]) -> None:
        (first, *_) = record["codecs"]
        codecs = first["configuration"]["codecs"] if first["name"] == "sharding_indexed" else record["codecs"]
        codecs.append({"name": name, "configuration": {}})

    change(group / within, add)
    with pytest.raises(ValueError, match=name):
        open_group(group)
    assert name not in CODECS


@pytest.mark.parametrize(
    ("key", "sizes", "named"),
    [
        ("shape", [1_000_000, 2**40], "1000000 x"),
        ("chunk_shape", [2**20, 2**20], "1048576 x"),
        ("shape", [-1, 4], "-1"),
    ],
)
def test_bombs_end_at_once(group: Path, key: str, sizes: list[int], named: str) -> None:
    def claim(record: dict[str, Any]) -> None:
        (record if key == "shape" else record["chunk_grid"]["configuration"])[key] = sizes

    change(group / "data", claim)
    with pytest.raises(ValueError, match=named):
        open_group(group)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_metadata_is_one_of_the_named_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "one.zarr"
    zarr.open_group(path, mode="w", zarr_format=3).create_array("data", data=np.arange(12.0), chunks=(5,))
    file = path / data.draw(st.sampled_from(["zarr.json", "data/zarr.json"]))
    text = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(text)
    with suppress(ValueError, LookupError, TypeError, AttributeError, OSError, ArithmeticError):
        np.asarray(open_group(path)["data"][...])


def test_deep_json_is_refused(group: Path) -> None:
    (group / "zarr.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"zarr\.json"):
        open_group(group)
