from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from annotations.files.formats import read_annotations
from annotations.polygons import tumour_area
from staging.errors import ConfigurationError
from staging.lesions.components import bands_of
from staging.lesions.files import SHAPE_COLUMNS
from staging.lesions.labels import SizeRule
from staging.lesions.masks import MaskFile
from staging.lesions.settings import settings_of, unknown_settings
from staging.runs.config import RunConfig
from wsi.geometry import Frame, Window
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap
from wsi.slide import Slide
from wsi.store import json_text


def sentinode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "staging", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def result(*arguments: str | Path) -> dict[str, Any]:
    done = sentinode(*arguments)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


def stored(path: Path, values: NDArray[np.float32], provenance: dict[str, Any] | None = None) -> Path:
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=values.shape, mpp=0.25)
    heatmap = Heatmap(frame=frame, array=values, tissue=np.ones(values.shape, dtype=np.bool_))
    write_heatmap(path, heatmap, provenance or {"slide": "0"})
    return path


def spotted() -> NDArray[np.float32]:
    values = np.zeros((40, 50), dtype=np.float32)
    values[5:15, 5:25] = 0.95
    values[30:36, 30:36] = 0.7
    return values


NOTHING: dict[str, float | None] = dict.fromkeys(("threshold", "peak", "merge_gap_um", "smallest_um"))


def heatmap_of_run(run: Path, config: RunConfig) -> Path:
    """A heatmap with its run around it."""
    (run / "heatmaps").mkdir(parents=True)
    (run / "run.json").write_text(json_text(config.to_json()))
    return stored(run / "heatmaps" / "a.zarr", spotted(), {"slide": "0", "configuration": config.digest})


@pytest.mark.slow
def test_settings_come_from_the_option_the_run_or_the_default(tmp_path: Path) -> None:
    config = RunConfig(model="0" * 64, threshold=0.4, peak=0.6, rule=SizeRule(smallest_um=10.0))
    run, made_from = tmp_path / "run", {"slide": "0", "configuration": config.digest}
    path = heatmap_of_run(run, config)
    found = settings_of(path, options=NOTHING | {"peak": 0.65})
    assert (found.threshold.value, found.threshold.source) == (0.4, str(run / "run.json"))
    assert (found.peak.value, found.peak.source) == (0.65, "option")
    assert found.smallest_um.value == 10.0
    record = result("lesions", path, "-o", tmp_path / "out")
    assert record["settings"]["peak"] == {"value": 0.6, "source": str(run / "run.json")}
    assert record["lesions"] == {"a": 2}
    lone = stored(tmp_path / "b.zarr", spotted(), made_from)
    assert settings_of(lone, options=NOTHING).peak.source == "default"
    record = result("lesions", lone, "-o", tmp_path / "out", "--overwrite")
    assert record["settings"]["peak"] == {"value": 0.9, "source": "default"}
    assert record["lesions"] == {"b": 1}
    assert "is measured with threshold 0.5 and peak 0.9, defaults" in record["warnings"]["b"][0]
    done = sentinode("lesions", path, lone, "-o", tmp_path / "both")
    assert done.returncode == 2
    assert "different settings" in done.stderr


def test_a_single_heatmap_is_measured_with_its_checkpoints_settings(tmp_path: Path) -> None:
    made_from = {"slide": "0", "model": "1", "threshold": 0.4, "peak": 0.98}
    path = stored(tmp_path / "a.zarr", spotted(), made_from)
    found = settings_of(path, options=NOTHING)
    assert (found.threshold.value, found.peak.value, found.peak.source) == (0.4, 0.98, str(path))
    assert unknown_settings(path, found) == ()
    odd = stored(tmp_path / "b.zarr", spotted(), {**made_from, "peak": "high", "threshold": 7})
    found = settings_of(odd, options=NOTHING)
    assert (found.threshold.source, found.peak.source) == ("default", "default")


@pytest.mark.slow
def test_the_output_of_a_run_stands_for_its_heatmaps(tmp_path: Path) -> None:
    config = RunConfig(model="0" * 64, threshold=0.4, peak=0.6, rule=SizeRule(smallest_um=10.0))
    heatmap_of_run(tmp_path / "run", config)
    record = result("lesions", tmp_path / "run", "-o", tmp_path / "out")
    assert (record["lesions"], record["skipped"], record["warnings"]) == ({"a": 2}, {}, {})


@pytest.mark.slow
def test_lesions_of_a_run_are_classed_by_its_rule(tmp_path: Path) -> None:
    rule = SizeRule(smallest_um=10.0, itc_max_um=100.0, micro_max_um=300.0)
    path = heatmap_of_run(tmp_path / "run", RunConfig(model="0" * 64, threshold=0.4, peak=0.6, rule=rule))
    record = result("lesions", path, "-o", tmp_path / "out")
    assert record["settings"]["micro_max_um"] == {"value": 300.0, "source": str(tmp_path / "run" / "run.json")}
    for table in ("lesions.csv", "lesion_features.csv"):
        assert [row["class"] for row in rows_of(tmp_path / "out" / table)] == ["macro", "micro"]
    assert names_of(tmp_path / "out" / "a.geojson") == ["lesion 1 (macro)", "lesion 2 (micro)"]
    same = stored(tmp_path / "a.zarr", spotted())
    record = result("lesions", same, "-o", tmp_path / "out", "--peak", "0.6", "--overwrite")
    assert record["settings"]["itc_max_um"] == {"value": 200.0, "source": "default"}
    assert names_of(tmp_path / "out" / "a.geojson") == ["lesion 1 (micro)", "lesion 2 (itc)"]


def names_of(outlines: Path) -> list[str]:
    return [one["properties"]["name"] for one in json.loads(outlines.read_text())["features"]]


def test_the_table_has_all_measures(tmp_path: Path) -> None:
    record = result("lesions", stored(tmp_path / "a.zarr", spotted()), "-o", tmp_path, "--peak", "0.5")
    first, second = rows_of(Path(record["features"]))
    assert tuple(first) == SHAPE_COLUMNS
    assert float(first["area_um2"]) == 200 * 16**2
    assert float(first["major_axis_um"]) == pytest.approx(4 * 20 / 12**0.5 * 16, abs=0.1)
    assert (first["left"], first["top"], first["width"], first["height"]) == ("320", "320", "1280", "640")
    assert (first["probability_mean"], second["probability_mean"]) == ("0.9500", "0.7000")
    assert [row["longest_diameter_um"] for row in rows_of(Path(record["table"]))] == [
        row["longest_diameter_um"] for row in (first, second)
    ]
    assert (tmp_path / "a.geojson").is_file()


def mask_pyramid(path: Path, mask: NDArray[np.bool_], value: int) -> Path:
    height, width = mask.shape
    padded = np.pad((mask * value).astype(np.uint8), ((0, -height % 64), (0, -width % 64)))
    tiles = (
        tile if tile.any() or row == column == 0 else None
        for row in range(0, height, 64)
        for column in range(0, width, 64)
        for tile in [padded[row : row + 64, column : column + 64]]
    )
    tifffile.imwrite(path, tiles, shape=mask.shape, dtype=np.uint8, tile=(64, 64), compression="deflate")
    return path


def test_mask_heatmap_and_outline_measure_alike(tmp_path: Path) -> None:
    mask = np.zeros((200, 300), dtype=np.bool_)
    mask[100:140, 32:192] = True
    path = mask_pyramid(tmp_path / "mask.tif", mask, 255)
    values = mask[2::4, 2::4].astype(np.float32)
    frame = Frame(x=0.0, y=0.0, downsample=4.0, shape=values.shape, mpp=4.0)
    heatmap = tmp_path / "heat.zarr"
    write_heatmap(heatmap, Heatmap(frame=frame, array=values, tissue=values >= 0), {"slide": "0"})
    corners = [[32, 100], [192, 100], [192, 140], [32, 140], [32, 100]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"classification": {"name": "tumor"}},
    }
    drawing = tmp_path / "drawn.geojson"
    drawing.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    record = result("lesions", path, heatmap, drawing, "-o", tmp_path / "out", "--slide-mpp", "4")
    assert record["tumour_value"] == {"mask": 255}
    of_mask, of_heatmap, of_outline = rows_of(tmp_path / "out" / "lesion_features.csv")
    for name in ("area_um2", "major_axis_um", "minor_axis_um", "extent", "solidity", "x", "y", "left", "height"):
        assert of_mask[name] == of_heatmap[name] == of_outline[name], name
    assert float(of_mask["longest_diameter_um"]) == pytest.approx(float(of_outline["longest_diameter_um"]), rel=0.01)


def test_a_lesion_is_one_feature_with_its_own_size(tmp_path: Path) -> None:
    values = np.zeros((40, 50), dtype=np.float32)
    values[5:15, 5:25] = 0.95
    values[15, 25] = 0.9  # touches at a corner
    values[5:8, 27:31] = 0.9  # two cells of 16 um away: merged
    values[8:10, 8:12] = 0  # a hole
    values[30:36, 30:36] = 0.7
    stored(tmp_path / "a.zarr", values)
    assert result("lesions", tmp_path / "a.zarr", "--peak", "0.5", "-o", tmp_path / "out")["lesions"] == {"a": 2}
    features = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert [one["geometry"]["type"] for one in features] == ["MultiPolygon", "Polygon"]
    table = rows_of(tmp_path / "out" / "lesions.csv")
    for one, row in zip(features, table, strict=True):
        measured, geometry = one["properties"]["measurements"], shapely.geometry.shape(one["geometry"])
        assert geometry.is_valid
        assert geometry.area * 0.25**2 == measured["area um2"] == float(row["area_um2"])
        assert measured["longest diameter um"] == float(row["longest_diameter_um"])
    assert sum(one["properties"]["measurements"]["area um2"] for one in features) == (values > 0).sum() * 16**2
    # it comes back as the same tumour, in both formats
    areas = [tumour_area(read_annotations(tmp_path / "out" / f"a.{form}")) for form in ("geojson", "xml")]
    assert areas[0].equals(areas[1])
    assert areas[0].area == (values > 0).sum() * 64**2


def test_a_mask_file_is_its_pixels_in_any_window(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).random((150, 200)) < 0.3
    mask[:64, 64:128] = False
    with Slide.open(mask_pyramid(tmp_path / "mask.tif", mask, 1)) as slide:
        file = MaskFile(slide)
        assert file.value == 1
        for band_rows in (1, 37, 64, 150):
            assert (np.concatenate(list(bands_of(file, band_rows=band_rows))) == mask).all()
        assert (file[slice(10, 100), slice(60, 130)] == mask[10:100, 60:130]).all()


@pytest.mark.slow
def test_values_that_may_mean_several_things_are_asked_for(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[:20] = True
    path = mask_pyramid(tmp_path / "mask.tif", mask, 2)
    assert "--slide-mpp" in sentinode("lesions", path, "-o", tmp_path / "out").stderr
    done = sentinode("lesions", path, "-o", tmp_path / "out", "--slide-mpp", "4")
    assert (done.returncode, "--tumour-value" in done.stderr) == (2, True)
    assert result("lesions", path, "-o", tmp_path / "out", "--tumour-value", "2", "--slide-mpp", "4")["lesions"] == {
        "mask": 1
    }
    with Slide.open(path) as slide, pytest.raises(ConfigurationError, match="no level 7"):
        MaskFile(slide, level=7)


@pytest.mark.slow
def test_what_the_organisers_software_wrote(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    mask = real_data("slides/asap_mask_864x800.tif")
    record = result("lesions", mask, "-o", tmp_path / "mask")
    assert record["tumour_value"] == {"asap_mask_864x800": 1}
    with Slide.open(mask) as slide:
        tumour = slide.read_window(0, Window(row=0, column=0, height=800, width=864))[..., 0] == 1
        area = tumour.sum() * slide.frame.pixel_um**2
    found = rows_of(tmp_path / "mask" / "lesion_features.csv")
    assert sum(float(row["area_um2"]) for row in found) == pytest.approx(area, rel=0.01)
    drawing = real_data("annotations/camelyon16/tumor_009.xml")
    assert "--slide-mpp" in sentinode("lesions", drawing, "-o", tmp_path / "out").stderr
    record = result("lesions", drawing, "-o", tmp_path / "out", "--slide-mpp", "0.243")
    assert record["lesions"]["tumor_009"] >= 1


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = stored(tmp_path / "a.zarr", spotted()), stored(tmp_path / "other" / "a.zarr", spotted())
    assert "same name" in sentinode("lesions", one, other, "-o", tmp_path / "out").stderr


def test_a_name_that_is_no_text_is_left_out_and_said(tmp_path: Path) -> None:
    stored(tmp_path / "in" / "a.zarr", spotted())
    stored(tmp_path / "in" / "b\x1b[2J\n.zarr", spotted())
    done = sentinode("lesions", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "\x1b" not in done.stderr + done.stdout
    assert "characters that are not text" in done.stderr
    assert {row["slide"] for row in rows_of(tmp_path / "out" / "lesions.csv")} == {"a"}
    assert list(json.loads(done.stdout)["quarantined"]) == ["b\x1b[2J\n"]


def test_settings_of_a_run_that_cannot_be_read_are_not_replaced_by_defaults(tmp_path: Path) -> None:
    config = RunConfig(model="0" * 64, threshold=0.4, peak=0.6, rule=SizeRule(smallest_um=10.0))
    heatmap = heatmap_of_run(tmp_path / "run", config)
    (tmp_path / "run" / "run.json").write_text("[" * 100_000)
    done = sentinode("lesions", heatmap, "-o", tmp_path / "out")
    assert (done.returncode, "does not say the settings of the run" in done.stderr) == (2, True)
    (tmp_path / "run" / "run.json").unlink()
    assert result("lesions", heatmap, "-o", tmp_path / "out")["settings"]["threshold"]["source"] == "default"
