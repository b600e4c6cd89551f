"""Files that ask C libraries for more than there is, whatever they are called."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from openslide import OpenSlide

from wsi.errors import SlideError, SlideFormatError
from wsi.readers.openslide import detect_vendor
from wsi.readers.structure import check_ndpi, is_ndpi
from wsi.slide import Slide

SUFFIXES = (".tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".jpg", "")


def bigtiff_bomb(path: Path) -> None:
    """A tile byte count of 2**62: OpenSlide aborts its process on it."""
    entries = [
        *((256, 4, 1, 256), (257, 4, 1, 256), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3)),
        *((322, 4, 1, 256), (323, 4, 1, 256), (324, 16, 1, 8), (325, 16, 1, 2**62)),
    ]
    data = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(entries))
    path.write_bytes(data + b"".join(struct.pack("<HHQQ", *entry) for entry in entries) + bytes(8))


def ndpi(path: Path, *, strip_bytes: int = 100, width: int = 64, link: int = 0, count: int = 1) -> Path:
    """The skeleton of a Hamamatsu file: classic TIFF, 64-bit links, NDPI's flag."""
    entries = [
        *((256, 4, 1, width), (257, 4, 1, 64), (259, 3, 1, 7), (273, 4, 1, 1000), (279, 4, 1, strip_bytes)),
        *((65420, 4, count, 1), (65421, 11, 1, 0x41A00000)),
    ]
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<Q", link)
    path.write_bytes(data.ljust(2000, b"\0"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bomb_is_refused_whatever_its_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb{suffix}"
    bigtiff_bomb(path)
    code = f"from wsi import Slide\ntry:\n    Slide.open({str(path)!r})\nexcept ValueError as error:\n    print(error)"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lie outside the" in done.stdout


@pytest.mark.parametrize("suffix", [".ndpi", ".tif"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"strip_bytes": 2**32 - 1}, "claims a strip of"),
        ({"width": 2**31}, "claims an image of"),
        ({"link": 8}, "point back to themselves"),
        ({"link": 2**62}, "truncated or damaged"),
        ({"count": 2**31}, "truncated or damaged"),
    ],
)
def test_ndpi_is_told_by_its_content_and_checked(
    suffix: str, damage: dict[str, int], reason: str, tmp_path: Path
) -> None:
    path = ndpi(tmp_path / f"a{suffix}", **damage)
    with pytest.raises(SlideFormatError, match=reason):
        check_ndpi(path)
    with pytest.raises(SlideError, match=reason):
        Slide.open(path)


def test_a_whole_ndpi_skeleton_passes_and_is_openslides(tmp_path: Path) -> None:
    path = ndpi(tmp_path / "a.ndpi")
    assert is_ndpi(path)
    check_ndpi(path)
    assert detect_vendor(path) == OpenSlide.detect_format(str(path))
    bigtiff_bomb(tmp_path / "b.ndpi")
    assert not is_ndpi(tmp_path / "b.ndpi")


@pytest.mark.parametrize("kind", ["fifo", "zero"])
def test_a_slide_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SlideError, match="not a regular file"):
        Slide.open(path)
    with pytest.raises(SlideError, match="not a regular file"):
        Slide(path).fingerprint()
