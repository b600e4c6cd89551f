"""The container of written slides: what tifffile finds in it, and what failures leave behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi.errors import StorageError
from wsi.writing.bigtiff import (
    BigTiff,
    Tags,
    long8_table,
    long_table,
    longs,
    new_bigtiff,
    opaque,
    rational,
    shorts,
    text,
)


def grey_page(offsets: list[int], counts: list[int], *, width: int) -> Tags:
    return {
        256: longs(width),
        257: longs(16),
        258: shorts(8),
        259: shorts(1),
        262: shorts(1),
        277: shorts(1),
        322: longs(16),
        323: longs(16),
        324: long8_table(np.array(offsets, dtype="<u8").tobytes()),
        325: long_table(np.array(counts, dtype="<u4").tobytes()),
    }


def test_tifffile_reads_pages_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = np.arange(16 * 48, dtype=np.uint64).astype(np.uint8).reshape(16, 48)
    with new_bigtiff(path) as file:
        offsets = [file.append(image[:, x : x + 16].tobytes()) for x in (0, 16, 32)]
        file.append(b"odd")
        page = grey_page(offsets, [256] * 3, width=48) | {270: text("a longer description"), 282: rational(40_000.0)}
        file.write_directories([page, grey_page(offsets[:1], [256], width=16)])
        size = file.size
    assert path.stat().st_size == size
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        first, second = (page.aspage() for page in tiff.pages)
        assert first.description == "a longer description"
        assert first.tags["XResolution"].value == (40_000, 1)
        np.testing.assert_array_equal(first.asarray(), image)
        np.testing.assert_array_equal(second.asarray(), image[:, :16])
        assert all(page.offset % 8 == 0 for page in (first, second))


def test_common_jpeg_tables_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tables, others = b"\xff\xd8" + b"t" * 100 + b"\xff\xd9", b"\xff\xd8" + b"o" * 100 + b"\xff\xd9"
    with new_bigtiff(path) as file:
        start = file.append(bytes(256))
        page = grey_page([start], [256], width=16)
        file.write_directories([page | {347: opaque(data)} for data in (tables, others, tables)])
    data = path.read_bytes()
    assert (data.count(tables), data.count(others)) == (1, 1)
    with tifffile.TiffFile(path) as tiff:
        assert [page.aspage().jpegtables for page in tiff.pages] == [tables, others, tables]


@given(st.floats(1e-3, 1e7))
def test_a_rational_is_as_near_as_a_reader_can_tell(value: float) -> None:
    numerator, denominator = (int(part) for part in np.frombuffer(rational(value)[2], dtype="<u4"))
    assert numerator / denominator == pytest.approx(value, rel=1e-6)


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"before")
    with new_bigtiff(path) as file:
        file.append(b"pixels")
        assert path.read_bytes() == b"before"
        assert len(list(tmp_path.iterdir())) == 2
        assert all(entry.name.startswith(".") for entry in tmp_path.iterdir() if entry != path)
    assert path.read_bytes().startswith(b"II+\0")
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_bigtiff(tmp_path / "a.tif") as file:
            file.append(b"pixels")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_source_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    def failing() -> None:
        with new_bigtiff(tmp_path / "a.tif"):
            raise OSError(errno.EIO, "the slide's disk")

    with pytest.raises(OSError, match="the slide's disk") as caught:
        failing()
    assert not isinstance(caught.value, StorageError)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with new_bigtiff(tmp_path / "a.tif") as file:
            file.append(b"pixels")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write()
    assert caught.value.path == str(tmp_path / "a.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full exists on Linux only")
def test_every_write_may_find_the_disk_full(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb", buffering=0) as always_full, pytest.raises(StorageError, match="cannot be"):
        BigTiff(tmp_path / "a.tif", always_full)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"), new_bigtiff(tmp_path / "no" / "a.tif"):
        pass
