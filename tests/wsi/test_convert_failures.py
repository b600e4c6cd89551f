"""Conversions that fail leave nothing behind and say why; what the command prints and refuses."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from staging.commands.convert import convert
from staging.errors import ConfigurationError
from wsi.errors import OutputExistsError, OutputNameError, SlideError, StorageError, TileError
from wsi.slide import Slide
from wsi.writing.convert import ConversionStats, convert_slide
from wsi.writing.pyramid import write_pyramid

resource = pytest.importorskip("resource", reason="limits on file sizes exist on Unix only")


def noise(index: int) -> NDArray[np.uint8]:
    return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    tiles = [noise(index) for index in range(64)]
    write_pyramid(path, width=512, height=512, mpp=0.25, tile_size=64, tiles=tiles, levels=1)
    return path


def converted(source: Path, target: Path, **options: Any) -> ConversionStats:
    with Slide.open(source) as slide:
        return convert_slide(slide, target, **options)


def spoil(path: Path, *, row: int, column: int, skipped: int) -> None:
    """Overwrite a tile of 8 x 8 with zeros, all but its first bytes."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first.aspage()
        offset, count = page.dataoffsets[row * 8 + column], page.databytecounts[row * 8 + column]
    with path.open("r+b") as file:
        file.seek(offset + skipped)
        file.write(bytes(count - skipped))


@pytest.mark.parametrize(
    ("skipped", "options"),
    [(0, {"tile_size": 512}), (0, {"reencode": True}), (4, {"tile_size": 64}), (4, {"mpp": 0.6})],
    ids=["copied", "decoded", "copied, then decoded for the next level", "resampled"],
)
def test_a_corrupt_tile_is_named_and_leaves_nothing(slide_path: Path, skipped: int, options: dict[str, Any]) -> None:
    spoil(slide_path, row=2, column=5, skipped=skipped)
    with pytest.raises(TileError, match=r"in\.tif, level 0, tile row 2, tile column 5"):
        converted(slide_path, slide_path.with_name("out.tif"), **options)
    assert [entry.name for entry in slide_path.parent.iterdir()] == ["in.tif"]


def test_an_interrupt_leaves_nothing(slide_path: Path) -> None:
    target = slide_path.with_name("out.tif")
    target.write_bytes(b"before")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    for options in ({"reencode": True}, {}):
        with pytest.raises(KeyboardInterrupt):
            converted(slide_path, target, tile_size=64, on_tiles=interrupt, **options)
        assert sorted(entry.name for entry in slide_path.parent.iterdir()) == ["in.tif", "out.tif"]
        assert target.read_bytes() == b"before"


@pytest.mark.parametrize("options", [{}, {"reencode": True}])
def test_a_full_disk_is_a_storage_error(slide_path: Path, options: dict[str, Any]) -> None:
    before, limits = threading.active_count(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"out\.tif: cannot be written: File too large"):
            converted(slide_path, slide_path.with_name("out.tif"), tile_size=64, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in slide_path.parent.iterdir()] == ["in.tif"]
    assert threading.active_count() == before


def test_a_slide_is_never_written_over_itself(slide_path: Path) -> None:
    before = slide_path.read_bytes()
    link = slide_path.with_name("link.tif")
    os.link(slide_path, link)
    for target in (slide_path, link):
        with pytest.raises(SlideError, match="is the slide to be converted"):
            converted(slide_path, target)
    assert slide_path.read_bytes() == before


def test_wrong_arguments(slide_path: Path) -> None:
    for options in ({"tile_size": 100}, {"quality": 0}, {"quality": 101}, {"mpp": 0.0}, {"workers": 0}):
        with pytest.raises(ValueError, match=r"."):
            converted(slide_path, slide_path.with_name("out.tif"), **options)
    with pytest.raises(StorageError):
        converted(slide_path, slide_path.parent / "no" / "out.tif")
    assert [entry.name for entry in slide_path.parent.iterdir()] == ["in.tif"]


def test_the_bytes_do_not_depend_on_the_number_of_threads(slide_path: Path) -> None:
    for options in ({}, {"reencode": True}, {"mpp": 0.7}):
        written = set()
        for workers in (1, 2, 5):
            converted(slide_path, slide_path.with_name("out.tif"), workers=workers, tile_size=64, **options)
            written.add(slide_path.with_name("out.tif").read_bytes())
        assert len(written) == 1


def test_progress_reaches_the_total(slide_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    converted(
        slide_path, slide_path.with_name("out.tif"), tile_size=64, on_tiles=lambda *numbers: calls.append(numbers)
    )
    assert calls[-1] == (128, 128)  # 64 copied, 64 decoded for the next level
    assert calls == sorted(calls)


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(convert)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_what_it_did(slide_path: Path) -> None:
    target = slide_path.with_name("out.tif")
    done = command(slide_path, target, "--tile-size", "64")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told.pop("seconds") > 0
    assert told == {
        "output": str(target),
        "levels": 4,
        "tiles_copied": 64,
        "tiles_encoded": 16 + 4 + 1,
        "bytes": target.stat().st_size,
        "warnings": [],
    }
    assert "slides converted 1/1 in" in done.stderr


def test_the_command_refuses_wrong_usage(slide_path: Path) -> None:
    assert isinstance(command(slide_path, "out.png").exception, OutputNameError)
    assert isinstance(command(slide_path, slide_path, "--overwrite").exception, OutputExistsError)
    assert isinstance(command(slide_path, "o.tif", "--tile-size", "100").exception, ConfigurationError)
    assert [entry.name for entry in slide_path.parent.iterdir()] == ["in.tif"]


def test_the_header_of_the_result_is_bigtiff(slide_path: Path) -> None:
    target = slide_path.with_name("out.tif")
    converted(slide_path, target)
    assert struct.unpack("<2sHHH", target.read_bytes()[:8]) == (b"II", 43, 8, 0)


@pytest.mark.slow
def test_the_command_converts_annotations(tmp_path: Path) -> None:
    source, target = tmp_path / "slide.xml", tmp_path / "slide.geojson"
    corners = [(10, 10), (90, 10), (90, 50), (10, 50)]
    coordinates = "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in enumerate(corners))
    source.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation></Annotations>"
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups>'
        "</ASAP_Annotations>",
        encoding="utf-8",
    )
    done = command(source, target)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["annotations"], told["vertices"]) == (1, 4)
    (feature,) = json.loads(target.read_text(encoding="utf-8"))["features"]
    assert {tuple(corner) for corner in feature["geometry"]["coordinates"][0]} == set(corners)
