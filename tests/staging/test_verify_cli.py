from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from staging.cli import app
from staging.errors import CohortError, TableError
from staging.lesions.tables import LESION_COLUMNS
from staging.runs.records import broken_tables, write_tables_record
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap
from wsi.writing.pyramid import write_pyramid


def heatmaps(folder: Path, count: int = 3) -> list[Path]:
    cells = np.zeros((20, 30), np.float32)
    found = Heatmap(frame=Frame(x=0, y=0, downsample=8, shape=cells.shape, mpp=0.5), array=cells, tissue=cells == 0)
    paths = [folder / f"{number}.zarr" for number in range(count)]
    for path in paths:
        write_heatmap(path, found, {"number": path.name})
    return paths


def test_what_is_as_it_was_made_is_said_to_be(tmp_path: Path) -> None:
    heatmaps(tmp_path)
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"artefacts": 3, "broken": {}})
    alone = CliRunner().invoke(app, ["verify", str(tmp_path / "0.zarr")])
    assert (alone.exit_code, json.loads(alone.stdout)) == (0, {"artefacts": 1, "broken": {}})


def test_what_changed_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    paths = heatmaps(tmp_path)
    chunk = next(file for file in sorted(paths[1].rglob("c/*/*")) if file.is_file())
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert list(found["broken"]) == ["1.zarr"]
    assert "was changed" in found["broken"]["1.zarr"][0]
    assert "1.zarr: probability/c/0/0 was changed" in done.stderr
    assert chunk.read_bytes() == bytes(data)


@pytest.mark.parametrize("record", [None, "{}", "[]", '{"stages.csv": {}}'])
def test_a_run_that_lost_the_record_of_its_tables_is_not_unchanged(tmp_path: Path, record: str | None) -> None:
    for name in ("run.json", "stages.csv", "labels.csv"):
        (tmp_path / name).write_text("{}" if name == "run.json" else "slide,label\n")
    (tmp_path / "slides").mkdir()
    assert broken_tables(tmp_path)
    if record is not None:
        (tmp_path / "tables.json").write_text(record)
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 1
    assert "tables" in json.loads(done.stdout)["broken"]
    for name in ("stages.csv", "labels.csv", "tables.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert broken_tables(tmp_path) == ()  # a first call that was killed before it had any


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(CohortError, match="no sentinode artefacts"):
        CliRunner().invoke(app, ["verify", str(tmp_path)], catch_exceptions=False)


def test_a_table_that_lost_its_rows_is_not_read(tmp_path: Path) -> None:
    values = np.zeros((40, 40), dtype=np.float32)
    values[5:35, 5:35] = 0.99
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=(40, 40), mpp=1.0)
    write_heatmap(tmp_path / "a.zarr", Heatmap(frame=frame, array=values, tissue=values > -1), {})
    called = CliRunner().invoke
    assert called(app, ["lesions", str(tmp_path / "a.zarr"), "-o", str(tmp_path / "out")]).exit_code == 0
    table = tmp_path / "out" / "lesions.csv"
    label = ["label", str(table), "-o", str(tmp_path / "labels.csv"), "--overwrite"]
    assert called(app, label).exit_code == 0
    assert "a,macro" in (tmp_path / "labels.csv").read_text()
    assert json.loads(called(app, ["verify", str(tmp_path / "out")]).stdout) == {"artefacts": 4, "broken": {}}
    table.write_text(table.read_text().splitlines()[0] + "\n")
    refused = called(app, label)
    assert isinstance(refused.exception, TableError)
    assert "has another size since lesions.json was written (call lesions again)" in str(refused.exception)
    broken = called(app, ["verify", str(tmp_path / "out")])
    assert (broken.exit_code, json.loads(broken.stdout)["broken"]) == (1, {"lesions.csv": ["has another size"]})


def test_the_tables_of_a_run_are_read_as_it_wrote_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "slides").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    labels, lesions = run / "labels.csv", run / "lesions.csv"
    labels.write_text("slide,label\n")
    lesions.write_text(",".join(LESION_COLUMNS) + "\n")
    write_tables_record(run)
    labels.write_text("slide,label\nx,micro\n")
    for command in (["stage", str(labels)], ["label", str(lesions)]):
        done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "o.csv")])
        assert isinstance(done.exception, CohortError)
        assert "labels.csv" in str(done.exception)
        assert not (tmp_path / "o.csv").exists()
    # a corrected copy is the user's own
    (tmp_path / "mine.csv").write_text(labels.read_text())
    assert CliRunner().invoke(app, ["stage", str(tmp_path / "mine.csv"), "-o", str(tmp_path / "o.csv")]).exit_code == 3


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="does not exist"):
        CliRunner().invoke(app, ["verify", str(tmp_path / "x")], catch_exceptions=False)


@pytest.mark.parametrize("form", ["sparse", "png"])
def test_patches_that_changed_are_named_and_made_again(tmp_path: Path, form: str) -> None:
    image = np.full((256, 256, 3), 244, np.uint8)
    image[60:200, 60:200] = np.random.default_rng(0).integers(120, 190, (140, 140, 3))
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "s.tif", width=256, height=256, mpp=8.0, tile_size=256, levels=1, tiles=[image])
    corners = np.array([(80.0, 80.0), (150.0, 80.0), (150.0, 150.0), (80.0, 150.0)])
    drawn = Annotation(name="a", group="metastases", role=Role.TUMOUR, kind="Polygon", vertices=corners)
    write_asap(tmp_path / "in" / "s.xml", [drawn])
    out = tmp_path / "out"
    arguments = ["patches", tmp_path / "in", tmp_path / "in", "--mpp", 8, "--size", 32, "--format", form, "-o", out]
    patches = [str(one) for one in arguments]
    assert CliRunner().invoke(app, patches, catch_exceptions=False).exit_code == 0
    assert json.loads(CliRunner().invoke(app, ["verify", str(out)]).stdout) == {"artefacts": 1, "broken": {}}
    stored = max((path for path in out.glob("[!.]*/**/*") if path.is_file()), key=lambda path: path.stat().st_size)
    right = stored.read_bytes()
    stored.write_bytes(right[:-9] + bytes([right[-9] ^ 1]) + right[-8:])
    done = CliRunner().invoke(app, ["verify", str(out)])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["broken"] == {"s": [f"{stored.relative_to(out)} was changed"]}
    trained = CliRunner().invoke(app, ["train", str(out), "-o", str(tmp_path / "m.safetensors")])
    assert "is not what was stored" in str(trained.exception)
    again = CliRunner().invoke(app, patches, catch_exceptions=False)
    assert (again.exit_code, stored.read_bytes()) == (0, right)
    assert json.loads(again.stdout)["remade"] == {"s": [f"{stored.relative_to(out)} was changed"]}
    assert "s: made again" in again.stderr
    (out / "patches.parquet").write_bytes(b"PAR1")
    broken = json.loads(CliRunner().invoke(app, ["verify", str(out)]).stdout)["broken"]
    assert broken == {"patches.parquet": ["patches.parquet has another size"]}
