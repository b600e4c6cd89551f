"""Which patches a cohort gives: labels that agree with the outlines, balance, and slides that never give any."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from annotations.annotation import Annotation
from annotations.errors import PatchStoreError
from annotations.files.formats import read_annotations
from annotations.painting import layers
from annotations.patches.batch import Shares, draw_patches
from annotations.patches.labels import LabelRule, PatchLabels
from annotations.patches.sparse_store import read_pixels, read_store, store_slide
from annotations.patches.table import PatchTable, read_patch_table
from annotations.patches.zarr_store import read_patches
from staging.cli import app
from staging.cohorts.camelyon import StageTable, find_slides
from staging.errors import CohortError, ConfigurationError
from staging.lesions.labels import SlideLabel
from staging.training.outputs import FORMATS, ExportFormat, PatchOutput, SlidePart
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe, find_sources, shared_out
from wsi.errors import StorageError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

MPP = 0.5
WIDTH, HEIGHT, TILE = 2048, 1536, 256
BOX = """<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F00">
<Coordinates>{}</Coordinates></Annotation></Annotations><AnnotationGroups/></ASAP_Annotations>"""


def contours(left: float, top: float, side: float) -> str:
    corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    return BOX.format(
        "".join(f'<Coordinate Order="{number}" X="{x}" Y="{y}"/>' for number, (x, y) in enumerate(corners))
    )


def write_slide(path: Path, seed: int) -> None:
    """Noise of two colours: tissue in the middle, glass around it."""
    rng = np.random.default_rng(seed)
    tissue = np.clip(rng.normal((170, 90, 150), 20, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    glass = np.full((TILE, TILE, 3), 244, np.uint8)
    tiles = [
        tissue if 1 <= row <= 4 and 1 <= column <= 6 else glass
        for row in range(HEIGHT // TILE)
        for column in range(WIDTH // TILE)
    ]
    write_pyramid(path, width=WIDTH, height=HEIGHT, mpp=MPP, tiles=tiles, tile_size=TILE)


NAMES = (
    "patient_001_node_0",
    "patient_001_node_1",
    "patient_022_node_0",
    "patient_023_node_4",
    "tumor_010",
    "Test_049",
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for seed, name in enumerate(NAMES):
        write_slide(folder / "images" / f"{name}.tif", seed)
    for name, where in (
        ("patient_001_node_0", (500, 500, 400)),
        ("patient_022_node_0", (1000, 800, 40)),
        ("tumor_010", (500, 500, 300)),
        ("Test_049", (500, 500, 300)),
    ):
        (folder / "annotations" / f"{name}.xml").write_text(contours(*where))
    rows = ["patient_001_node_1.tif,negative", "patient_023_node_4.tif,itc", "patient_001_node_0.tif,macro"]
    (folder / "stage_labels.csv").write_text("patient,stage\n" + "\n".join(rows) + "\n")
    return folder


LABELS = StageTable(labels={"patient_001_node_1": SlideLabel.NEGATIVE, "patient_023_node_4": SlideLabel.ITC})


class Listener:
    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.kept: list[str] = []
        self.said: list[str] = []

    def slide(self, name: str, outcome: str = "") -> None:
        self.drawn.append(name + outcome)

    def begin(self, slides: int) -> None:
        pass

    def stored(self, name: str, patches: int, total: int) -> None:
        self.kept.append(f"{name} {patches}/{total}")

    def say(self, text: str) -> None:
        self.said.append(text)


def run(cohort: Path, output: Path, recipe: PatchRecipe, *, workers: int = 1, **options: Any) -> dict[str, Any]:
    return sample_cohort(
        find_slides([cohort / "images"]),
        cohort / "annotations",
        LABELS,
        output,
        recipe=recipe,
        workers=workers,
        news=options.pop("news", Listener()),
        **options,
    )


RECIPE = PatchRecipe(mpp=1.0, size_px=64, tumour=12, normal=8, seed=3)


def test_only_sound_slides_are_drawn_from(cohort: Path, tmp_path: Path) -> None:
    counts = run(cohort, tmp_path / "t.parquet", RECIPE)
    assert counts["left_out"] == {
        "Test_049": "it is a duplicate of another slide",
        "patient_023_node_4": "it has no annotations and is not labelled negative",
        "tumor_010": "not all of its tumour is annotated",
    }
    table = read_patch_table(tmp_path / "t.parquet")
    assert table.counts("slide", "class") == {
        "patient_001_node_0/normal": 8,
        "patient_001_node_0/tumour": 12,
        "patient_001_node_1/normal": 8,
        "patient_022_node_0/normal": 8,
        "patient_022_node_0/tumour": 12,
    }
    assert set(zip(table["patient"], table["centre"], strict=True)) == {("patient_001", 0), ("patient_022", 1)}
    assert Path(table.files["patient_022_node_0"]) == cohort / "images" / "patient_022_node_0.tif"
    assert [left.name for left in tmp_path.iterdir()] == ["t.parquet"]


def test_classes_centres_and_slides_are_balanced(cohort: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, per_class=24, rule=LabelRule(kind="centre"))
    run(cohort, tmp_path / "t.parquet", recipe)
    table = read_patch_table(tmp_path / "t.parquet")
    assert table.counts("class") == {"normal": 24, "tumour": 24}
    # An ITC slide of centre 1 counts as much as a macro one of centre 0; two slides of a centre share its part.
    assert table.counts("centre", "class") == {f"{c}/{k}": 12 for c in (0, 1) for k in ("normal", "tumour")}
    assert table.counts("slide", "class")["patient_001_node_1/normal"] == 6


@settings(max_examples=80, deadline=None)
@given(
    total=st.integers(0, 500),
    groups=st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 4) | st.none(), min_size=1, max_size=20),
)
def test_shares_are_equal(total: int, groups: dict[str, int | None]) -> None:
    shares = shared_out(total, groups)
    assert sum(shares.values()) == total
    by_group: Counter[str] = Counter()
    for name, share in shares.items():
        by_group[str(groups[name])] += share
    assert max(by_group.values()) - min(by_group.values()) <= 1
    for group in by_group:
        own = [share for name, share in shares.items() if str(groups[name]) == group]
        assert max(own) - min(own) <= 1


def test_slides_that_give_fewer_than_asked_for_are_named(cohort: Path, tmp_path: Path) -> None:
    # 20 of 64 px along a side are a tenth of the area at most.
    counts = run(cohort, tmp_path / "t.parquet", replace(RECIPE, rule=LabelRule(kind="area", share=0.2)))
    assert counts["short"] == {"patient_022_node_0": {"tumour": [0, 12]}}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sparse", "zarr"])
def test_the_result_does_not_depend_on_the_workers(cohort: Path, tmp_path: Path, form: str) -> None:
    trees = []
    for workers in (1, 2):
        output = tmp_path / f"{workers}{'.zarr' if form == 'zarr' else ''}"
        run(cohort, output, RECIPE, workers=workers, has_contact_sheet=form == "sparse")
        files = sorted(file for file in output.rglob("*") if file.is_file() and file.name != ".lock")
        trees.append({str(file.relative_to(output)): file.read_bytes() for file in files})
    assert len(trees[0]) > 4
    assert trees[0] == trees[1]


def test_patches_of_the_store_are_those_of_the_slides(cohort: Path, tmp_path: Path) -> None:
    counts = run(cohort, tmp_path / "store", replace(RECIPE, mpp=0.8))
    assert counts["not_exact"] == []
    table, images, targets = read_pixels(tmp_path / "store")
    labels = {
        name: PatchLabels.of(read_annotations(cohort / "annotations" / f"{name}.xml"))
        for name in ("patient_001_node_0", "patient_022_node_0")
    }
    for number, name in enumerate(table["slide"].tolist()):
        frame = Frame(
            x=table["x"][number], y=table["y"][number], downsample=table["downsample"][number], shape=(64, 64), mpp=MPP
        )
        with Slide.open(cohort / "images" / f"{name}.tif") as slide:
            np.testing.assert_array_equal(images[number], slide.read_frame(frame).array)
        expected = labels[name].target(frame) if name in labels else np.zeros((64, 64))
        np.testing.assert_array_equal(targets[number], expected)
        assert table["tumour_fraction"][number] == (expected == 1).mean()


def test_training_reads_either_store(cohort: Path, tmp_path: Path) -> None:
    found = []
    for name in ("store", "store.zarr"):
        run(cohort, tmp_path / name, RECIPE)
        found.append(read_patches(tmp_path / name))
    sparse, zarr = found
    np.testing.assert_array_equal(sparse.images, zarr.images)
    np.testing.assert_array_equal(sparse.targets, zarr.targets)
    assert sparse.mpp == zarr.mpp == 1.0
    for column in zarr.table:
        np.testing.assert_array_equal(sparse.table[column], zarr.table[column])


@pytest.mark.parametrize("form", ["png", "jpeg", "webdataset", "hdf5"])
def test_exports_bring_the_table_but_are_no_store(cohort: Path, tmp_path: Path, form: str) -> None:
    if form == "hdf5":
        pytest.importorskip("h5py")
    run(cohort, tmp_path / form, replace(RECIPE, tumour=2, normal=2), form=form)
    table = read_patch_table(tmp_path / form / "patches.parquet")
    suffix = {"webdataset": "tar", "hdf5": "h5", "jpeg": "jpg"}.get(form, form)
    files = list((tmp_path / form).rglob(f"*.{suffix}"))
    assert len(files) == (3 if form in {"webdataset", "hdf5"} else len(table) == 10 and 10)
    with pytest.raises(PatchStoreError, match="export for other tools"):
        read_patches(tmp_path / form)


def test_a_format_whose_package_is_missing_is_refused_before_anything_is_drawn(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr("staging.training.sampling._drawn", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(PatchStoreError, match=r"install .sentinode\[export\]"):
        run(cohort, tmp_path / "out", RECIPE, form="hdf5")
    assert not (tmp_path / "out").exists()


def test_hard_negatives_lie_where_a_heatmap_errs(cohort: Path, tmp_path: Path) -> None:
    frame = Frame(x=0, y=0, downsample=64, shape=(HEIGHT // 64, WIDTH // 64), mpp=MPP)
    for name in ("patient_001_node_0", "patient_001_node_1", "patient_022_node_0"):
        probability = np.zeros(frame.shape, np.float32)
        probability[6:9, 20:24] = 0.9
        heatmap = Heatmap(frame=frame, array=probability, tissue=np.ones(frame.shape, bool))
        write_heatmap(tmp_path / "heatmaps" / f"{name}.zarr", heatmap, {})
    recipe = replace(RECIPE, tumour=0, normal=0, hard=5, heatmaps=tmp_path / "heatmaps")
    run(cohort, tmp_path / "t.parquet", recipe)
    table = read_patch_table(tmp_path / "t.parquet")
    assert table.counts("slide", "kind", "class") == {
        f"patient_{name}/hard/normal": 5 for name in ("001_node_0", "001_node_1", "022_node_0")
    }
    x, y = table["x"] + 64, table["y"] + 64
    assert ((x >= 20 * 64 - 2) & (x <= 24 * 64 + 2) & (y >= 6 * 64 - 2) & (y <= 9 * 64 + 2)).all()


def test_an_interrupted_call_goes_on(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store_slide
    asked: list[str] = []

    def failing(folder: Path, slide: Slide, *rest: Any, **options: Any) -> dict[str, Any]:
        asked.append(slide.name)
        if len(asked) == 2:
            raise StorageError(folder, "the disk is full")
        return whole(folder, slide, *rest, **options)

    monkeypatch.setattr("staging.training.outputs.store_slide", failing)
    output = tmp_path / "store"
    with pytest.raises(StorageError, match="full"):
        run(cohort, output, RECIPE)
    assert not (output / "patches.parquet").exists()
    run(cohort, output, RECIPE)
    assert asked == ["patient_001_node_0", "patient_001_node_1", "patient_001_node_1", "patient_022_node_0"]
    assert len(read_store(output)) == 48
    # Done is done; another recipe is refused and touches nothing.
    run(cohort, output, RECIPE)
    assert len(asked) == 4
    before = (output / "patches.parquet").read_bytes()
    with pytest.raises(ConfigurationError, match="other recipe"):
        run(cohort, output, replace(RECIPE, seed=4))
    assert (output / "patches.parquet").read_bytes() == before


def test_folders_of_others_are_not_touched(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="not empty"):
        run(cohort, tmp_path / "mine", RECIPE)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="is a file"):
        run(cohort, tmp_path / "file", RECIPE)
    with pytest.raises(ConfigurationError, match=r"ends in \.zarr"):
        run(cohort, tmp_path / "a.zarr", RECIPE, form="png")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_stored(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    news = Listener()
    with pytest.raises(StorageError, match="are free"):
        run(cohort, tmp_path / "store", RECIPE, news=news)
    assert news.said[0].startswith("3 of 6 slides left out: ")
    assert "48 patches of 3 slides, about" in news.said[1]
    assert not (tmp_path / "store" / "slides").exists()


def test_two_annotation_files_of_one_slide_are_refused(cohort: Path, tmp_path: Path) -> None:
    for name in ("a.xml", "A.geojson"):
        (tmp_path / name).write_text("x")
    with pytest.raises(CohortError, match="annotate the same slide"):
        find_sources(find_slides([cohort / "images"]), tmp_path, LABELS, RECIPE)
    (tmp_path / "none").mkdir()
    with pytest.raises(CohortError, match="annotations for none"):
        find_sources(find_slides([cohort / "images"]), tmp_path / "none", StageTable(), RECIPE)


def test_the_command_line(cohort: Path, tmp_path: Path) -> None:
    arguments = [
        *("patches", cohort / "images", cohort / "annotations", "-r", cohort / "stage_labels.csv"),
        *("-o", tmp_path / "out", "--per-class", 10, "--mpp", 1, "--size", 48, "--label", "area:0.1"),
        *("--split", "centre:1", "--workers", 1),
    ]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["splits"] == {"test/normal": 5, "test/tumour": 5, "train/normal": 5, "train/tumour": 5}
    table = read_store(tmp_path / "out")
    assert str(table.rule) == "area:0.1"
    assert (table["tumour_fraction"][table["class"] == "tumour"] >= 0.1).all()
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    for wrong in (["--label", "corner"], ["--split", "folds:1"], ["--hard", "3"], ["--model", "x"]):
        refused = CliRunner().invoke(app, [*map(str, arguments), *wrong])
        assert refused.exit_code != 0


# --- the outlines of real slides ------------------------------------------------------------------------------------


def winding_number(x: float, y: float, outline: NDArray[np.float64]) -> int:
    """How often an outline runs around a point: crossings of the ray to the right, with their direction."""
    first, second = outline, np.roll(outline, -1, axis=0)
    side = (second[:, 0] - first[:, 0]) * (y - first[:, 1]) - (x - first[:, 0]) * (second[:, 1] - first[:, 1])
    upwards = (first[:, 1] <= y) & (second[:, 1] > y) & (side > 0)
    downwards = (first[:, 1] > y) & (second[:, 1] <= y) & (side < 0)
    return int(upwards.sum() - downwards.sum())


def is_inside(x: float, y: float, annotations: tuple[Annotation, ...]) -> bool:
    outlines = [one.outline for one in annotations]
    return any(outline is not None and winding_number(x, y, outline) != 0 for outline in outlines)


@pytest.mark.parametrize("name", ["tumor_009", "tumor_085"])
@pytest.mark.parametrize("strategy", [Shares(), Shares(border=1), Shares(border=0, turns="area")])
def test_labels_agree_with_the_outlines_of_real_slides(
    real_data: Callable[[str], Path], tmp_path: Path, name: str, strategy: Shares
) -> None:
    annotations = read_annotations(real_data(f"annotations/camelyon16/{name}.xml"))
    width, height = 97_792, 221_184
    path = tmp_path / f"{name}.tif"
    write_pyramid(path, width=width, height=height, mpp=0.243, tiles=(None for _ in range(191 * 432)), levels=4)
    cells = Frame(x=0, y=0, downsample=512, shape=(432, 191), mpp=0.243)
    tissue = Mask(frame=cells, array=np.ones(cells.shape, bool))
    drawn = layers(annotations)
    with Slide.open(path) as slide:
        positions = list(
            draw_patches(
                slide,
                annotations,
                tissue,
                mpp=0.5,
                size_px=128,
                count_tumour=40,
                count_normal=20,
                seed=1,
                negative=False,
                shares=strategy,
                rule=LabelRule(kind="centre"),
            )
        )
    assert Counter(where.label for where in positions)["tumour"] >= 35
    for where in positions:
        frame = where.frame
        x, y = frame.x + 64 * frame.downsample, frame.y + 64 * frame.downsample
        inside = any(is_inside(x, y, layer.tumour) and not is_inside(x, y, layer.cut_outs) for layer in drawn)
        assert (where.label == "tumour") == inside
        assert (where.lesion is None) == (where.kind in ("normal", "background"))


@pytest.mark.parametrize("rule", ["any", "centre", "area:0.4"])
def test_classes_follow_the_rule(rule: str) -> None:
    labels = PatchLabels.of([])
    frame = Frame(x=0, y=0, downsample=1, shape=(10, 10), mpp=0.5)
    target = np.zeros((10, 10), np.uint8)
    assert labels.class_of(frame, target, LabelRule.parse(rule)) == "normal"
    target[:, :4] = 1
    assert labels.class_of(frame, target, LabelRule.parse(rule)) == ("normal" if rule == "centre" else "tumour")
    target[:, 3] = 0
    expected = {"any": "tumour", "centre": "normal", "area:0.4": "normal"}
    assert labels.class_of(frame, target, LabelRule.parse(rule)) == expected[rule]
    target[...] = 255
    assert labels.class_of(frame, target, LabelRule.parse(rule)) == ("normal" if rule == "centre" else "unknown")


def test_every_part_of_the_tumour_alike(cohort: Path, tmp_path: Path) -> None:
    """Of two lesions, one of 400 px and one of 40, the larger gets nearly all patches."""
    two = cohort.parent / "two"
    two.mkdir(exist_ok=True)
    text = (
        contours(500, 500, 400).replace("</Annotations>", "", 1).replace("<AnnotationGroups/></ASAP_Annotations>", "")
    )
    small = contours(1300, 500, 40).split("<Annotations>")[1]
    (two / "patient_001_node_0.xml").write_text(text + small)

    def lesions(strategy: Any) -> Counter[int]:
        recipe = replace(RECIPE, strategy=strategy, tumour=40, normal=0)
        sample_cohort(
            find_slides([cohort / "images" / "patient_001_node_0.tif"]),
            two,
            StageTable(),
            tmp_path / f"{strategy}.parquet",
            recipe=recipe,
            workers=1,
            news=Listener(),
        )
        table: PatchTable = read_patch_table(tmp_path / f"{strategy}.parquet")
        if strategy == "border":
            assert set(table["kind"]) == {"border"}
        return Counter(table["lesion"].tolist())

    assert lesions("lesion") == {0: 20, 1: 20}
    assert lesions("uniform")[0] >= 36
    assert lesions("border") == {0: 20, 1: 20}


class Corners(ExportFormat):
    """A form of a test: the corners of each slide's patches as text."""

    name = "corners"

    def export(self, part: SlidePart, slide: Slide) -> list[Path]:
        path = part.output.path / f"{slide.name}.txt"
        path.write_text("\n".join(map(str, part.rows["x"].tolist())))
        return [path]

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        return 8 * sum(len(part.rows) for part in parts)


def test_a_new_form_is_a_class_and_a_line(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("staging.training.outputs.FORMATS", {**FORMATS, "corners": Corners()})
    run(cohort, tmp_path / "out", RECIPE, form="corners")
    table = read_patch_table(tmp_path / "out" / "patches.parquet")
    written = {path.stem: path.read_text().split() for path in (tmp_path / "out").glob("*.txt")}
    assert written.keys() == set(table["slide"].tolist())
    for name, lines in written.items():
        assert [float(line) for line in lines] == table["x"][table["slide"] == name].tolist()
    (tmp_path / "out" / "patient_001_node_0.txt").write_text("")
    run(cohort, tmp_path / "out", RECIPE, form="corners")
    assert (tmp_path / "out" / "patient_001_node_0.txt").read_text().split() == written["patient_001_node_0"]


def test_an_unknown_form_is_refused_by_name(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no --format tfrecord \(known are sparse, table, zarr, webdataset"):
        run(cohort, tmp_path / "out", RECIPE, form="tfrecord")
    assert not (tmp_path / "out").exists()
