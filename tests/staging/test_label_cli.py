from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from slide_files import stained

from staging.phantom.cells import Canvas, Kind, cut_stamps
from staging.phantom.stain import E_UNIT, H_UNIT
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap
from wsi.writing.pyramid import write_pyramid


def sentinode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "staging", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def result(*arguments: str | Path) -> dict[str, Any]:
    done = sentinode(*arguments)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def stored(path: Path, cells: tuple[int, int], *, mpp: float = 0.5, probability: float = 0.95) -> Path:
    """A heatmap of 16 um cells with one rectangular lesion."""
    values = np.zeros((150, 200), dtype=np.float32)
    values[3 : 3 + cells[0], 3 : 3 + cells[1]] = probability
    frame = Frame(x=0.0, y=0.0, downsample=16 / mpp, shape=values.shape, mpp=mpp)
    write_heatmap(path, Heatmap(frame=frame, array=values, tissue=np.ones(values.shape, dtype=np.bool_)), {})
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heatmaps of eight patients whose labels follow from the size of the lesion, and their table."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(3)
    sizes = {"negative": (0, 0), "itc": (3, 7), "micro": (8, 50), "macro": (60, 180)}
    rows = []
    for patient in range(8):
        for node, (label, (height, width)) in enumerate(sizes.items()):
            name = f"patient_{patient * 10:03d}_node_{node}"
            stored(root / "heatmaps" / f"{name}.zarr", (height + int(rng.integers(0, 2)) * (height > 0), width))
            rows.append(f"{name}.tif,{label}")
    (root / "labels.csv").write_text("slide,label\n" + "\n".join(rows) + "\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_a_label_that_was_learned(kind: str, cohort: Path, tmp_path: Path) -> None:
    train: list[str | Path] = [
        "label",
        "--train",
        cohort / "heatmaps",
        cohort / "labels.csv",
        "--trees",
        "15",
        "--folds",
        "4",
    ]
    record = result(*train, "-o", tmp_path / "model.json", "--kind", kind)
    assert (record["slides"], record["groups"]) == (32, 8)
    assert record["nested"]["quadratic_kappa"] > 0.9
    with Pillow.open(record["importances"]) as picture:
        assert picture.size[0] > 400
    first = (tmp_path / "model.json").read_bytes()
    result(*train, "-o", tmp_path / "model.json", "--kind", kind, "--overwrite")
    assert (tmp_path / "model.json").read_bytes() == first
    applied = result("label", "--apply", tmp_path / "model.json", cohort / "heatmaps", "-o", tmp_path / "labels.csv")
    assert applied["slides"] == 32
    found = rows_of(tmp_path / "labels.csv")
    truth = rows_of(cohort / "labels.csv")
    assert all(found[name.removesuffix(".tif")]["label"] == row["label"] for name, row in truth.items())
    shares = [float(found["patient_000_node_2"][name]) for name in ("negative", "itc", "micro", "macro")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    staged = result("stage", tmp_path / "labels.csv", "-o", tmp_path / "stages.csv", "--nodes", "4")
    assert sum(staged["probabilities"]["patient_010"].values()) == pytest.approx(1.0, abs=1e-6)
    assert staged["probabilities"]["patient_010"]["pN1"] > 0.5


@pytest.mark.slow
def test_one_centre_after_the_other(cohort: Path, tmp_path: Path) -> None:
    train: list[str | Path] = ["label", "--train", cohort / "heatmaps", cohort / "labels.csv", "--trees", "5"]
    record = result(*train, "--hold-out", "centres", "-o", tmp_path / "model.json")
    assert record["groups"] == len(record["nested"]["limits"]) == 4


@pytest.mark.slow
def test_what_cannot_be_trained_or_applied(cohort: Path, tmp_path: Path) -> None:
    heatmaps, table, model = cohort / "heatmaps", cohort / "labels.csv", tmp_path / "model.json"
    short = tmp_path / "short.csv"
    short.write_text("".join(table.read_text().splitlines(True)[:-1]))
    single = tmp_path / "single.csv"
    text = table.read_text()
    for label in ("negative", "itc", "macro"):
        text = text.replace(f",{label}", ",micro")
    single.write_text(text)
    cases: list[tuple[list[str | Path], int, str]] = [
        (["--train", heatmaps, short, "-o", model], 1, "there is no label for patient_070_node_3"),
        (["--train", heatmaps, single, "-o", model], 1, "one label: micro"),
        (["--train", heatmaps, table, "-o", model, "--folds", "9"], 1, "too few patients for 9 folds: 8"),
        (["--train", heatmaps, "-o", model], 2, "the folder of heatmaps and the table"),
        (["--train", "--apply", model, heatmaps, table, "-o", model], 2, "exclude each other"),
        (["--apply", table, heatmaps, "-o", tmp_path / "out.csv"], 1, "not a slide classifier"),
        (["--train", tmp_path, table, "-o", model], 1, "contains no heatmaps"),
    ]
    for arguments, code, reason in cases:
        done = sentinode("label", *arguments)
        assert (done.returncode, reason in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    assert not model.exists()


def slide_with_nuclei(path: Path, nuclei: int) -> None:
    """A slide of 0.5 um px with so many nuclei in its upper left 200 um."""
    rng = np.random.default_rng(2)
    canvas = Canvas(size=512, pixel_um=0.5)
    canvas.ground(h=0.1, e=0.5)
    steps = np.stack(np.meshgrid(np.arange(56.0, 150.0, 9.0), np.arange(56.0, 150.0, 9.0)), axis=-1).reshape(-1, 2)
    canvas.put(cut_stamps(rng, Kind(nucleus_um=6.0), pixel_um=0.5, count=9), steps[:nuclei])
    h, e = canvas.core()
    image = stained(h / H_UNIT, e / E_UNIT * 0.3)
    write_pyramid(path, width=512, height=512, mpp=0.5, tile_size=512, tiles=[image], quality=95)


@pytest.mark.slow
def test_cells_are_counted_in_small_lesions_only(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("few", "many"):
        slide_with_nuclei(tmp_path / "slides" / f"{name}.tif", 20 if name == "few" else 100)
        stored(tmp_path / f"{name}.zarr", (7, 7))
    stored(tmp_path / "large.zarr", (20, 50))
    record = result("lesions", *tmp_path.glob("*.zarr"), "-o", tmp_path / "lesions")
    table = tmp_path / "lesions" / "lesions.csv"
    plain = result("label", table, "-o", tmp_path / "plain.csv")
    assert {row["label"] for row in rows_of(tmp_path / "plain.csv").values()} == {"itc", "micro"}
    assert plain["rule"]["lesions"] == record["settings"]
    assert plain["rule"]["itc_max_cells"] == 200
    assert json.loads((tmp_path / "plain.rule.json").read_text()) == plain["rule"]
    counted = result("label", table, "--cells", tmp_path / "slides", "-o", tmp_path / "counted.csv")
    assert counted["cells"]["large"] == [None]
    (few,), (many,) = counted["cells"]["few"], counted["cells"]["many"]
    assert few == pytest.approx(20, abs=3)
    assert many == pytest.approx(100, abs=10)
    assert rows_of(tmp_path / "counted.csv")["many"]["most_cells"] == str(many)
    (tmp_path / "slides" / "few.tif").unlink()
    done = sentinode("label", table, "--cells", tmp_path / "slides", "-o", tmp_path / "fewer.csv")
    assert (done.returncode, "there is no slide few" in done.stderr) == (1, True)


def test_more_than_two_hundred_nuclei_make_micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from staging.lesions import cell_counts  # noqa: PLC0415
    from staging.lesions.labels import SizeRule  # noqa: PLC0415
    from staging.lesions.tables import label_table, read_lesion_table  # noqa: PLC0415

    stored(tmp_path / "a.zarr", (7, 7))
    result("lesions", tmp_path / "a.zarr", "-o", tmp_path)
    slide_with_nuclei(tmp_path / "a.tif", 1)
    found = read_lesion_table(tmp_path / "lesions.csv")
    for count, label in ((200, "itc"), (201, "micro")):
        monkeypatch.setattr(cell_counts, "find_nuclei", lambda *_, _count=count, **__: range(_count))
        counts = cell_counts.count_cells(found, tmp_path / "lesions.csv", {"a": tmp_path / "a.tif"}, rule=SizeRule())
        (tmp_path / "labels.csv").write_text(label_table(found, SizeRule(), cell_counts=counts))
        assert rows_of(tmp_path / "labels.csv")["a"]["label"] == label


def test_noise_that_would_be_larger_than_itc_is_wrong_usage(tmp_path: Path) -> None:
    done = sentinode("label", tmp_path / "lesions.csv", "-o", tmp_path / "labels.csv", "--smallest-um", "201")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--smallest-um" in done.stderr


def test_slides_without_lesions_are_asked_of_heatmaps_alone(tmp_path: Path) -> None:
    table = tmp_path / "lesions.csv"
    table.write_text("slide,lesion,class,longest_diameter_um,area_um2,x,y,probability\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").touch()
    for given in ("fifo", "slides", "nowhere", "lesions.csv"):
        done = sentinode("label", table, "--heatmaps", tmp_path / given, "-o", tmp_path / "labels.csv")
        assert (done.returncode, done.stdout) == (1, "")
        assert "no folder with heatmaps" in done.stderr
        assert not (tmp_path / "labels.csv").exists()
