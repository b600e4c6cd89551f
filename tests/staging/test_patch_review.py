"""Patches under rough handling: inputs of another slide, outputs of others, killed calls, full disks, large patches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner

from annotations.annotation import Annotation, Role
from annotations.errors import OutsideSlideError, SamplingError
from annotations.patches.batch import PatchBatch, Shares, draw_patches
from annotations.patches.contact_sheet import contact_sheet, pick_examples, thumbnail
from annotations.patches.exports import images_of
from annotations.patches.labels import LabelRule
from annotations.patches.splits import Split
from annotations.patches.table import COLUMNS, read_patch_table
from annotations.patches.zarr_store import read_patches, write_patches
from staging.cli import app
from staging.cohorts.camelyon import StageTable, find_slides
from staging.errors import CohortError, ConfigurationError
from staging.lesions.labels import SlideLabel
from staging.training.patch_progress import PatchProgress
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe
from wsi.errors import PathologyError, ResolutionError, StorageError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.patches.reading import read_patches as read_pixels
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

pytestmark = pytest.mark.slow  # its fixtures take seconds

MPP, WIDTH, HEIGHT, TILE = 0.5, 1280, 1024, 256
NAMES = ("patient_001_node_0", "patient_002_node_0", "patient_021_node_1")
RECIPE = PatchRecipe(mpp=1.0, size_px=64, tumour=6, normal=4, seed=3)
LABELS = StageTable(labels={"PATIENT_002_node_0": SlideLabel.NEGATIVE})
FORMS = ("sparse", "png", "jpeg", "webdataset", "hdf5")


def contours(left: float, top: float, side: float) -> str:
    corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    listed = "".join(f'<Coordinate Order="{number}" X="{x}" Y="{y}"/>' for number, (x, y) in enumerate(corners))
    return (
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F00">'
        f"<Coordinates>{listed}</Coordinates></Annotation></Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides with contours and one that is labelled negative, in capitals."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        image = np.clip(rng.normal((170, 90, 150), 20, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        image[:128] = image[-128:] = 244
        tiles = [
            image[top : top + TILE, left : left + TILE]
            for top in range(0, HEIGHT, TILE)
            for left in range(0, WIDTH, TILE)
        ]
        write_pyramid(
            folder / "images" / f"{name}.tif", width=WIDTH, height=HEIGHT, mpp=MPP, tiles=tiles, tile_size=TILE
        )
    for name in (NAMES[0], NAMES[2]):
        (folder / "annotations" / f"{name}.xml").write_text(contours(400, 300, 200))
    return folder


class News:
    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.said: list[str] = []
        self.expected = 0

    def begin(self, slides: int) -> None:
        self.expected = slides

    def slide(self, name: str, outcome: str = "") -> None:
        self.drawn.append(name + outcome)

    def stored(self, name: str, patches: int, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def run(cohort: Path, output: Path, recipe: PatchRecipe = RECIPE, **options: Any) -> dict[str, Any]:
    return sample_cohort(
        find_slides([cohort / "images"]),
        options.pop("annotations", cohort / "annotations"),
        options.pop("labels", LABELS),
        output,
        recipe=recipe,
        workers=1,
        news=options.pop("news", News()),
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- inputs of another slide ----------------------------------------------------------------------------------------


def test_contours_of_another_slide_are_refused(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.xml").write_text(contours(5000, 300, 200))
    with pytest.raises(OutsideSlideError, match=rf"{NAMES[0]}\.xml.*lies outside the slide of 1280 x 1024 px"):
        run(cohort, tmp_path / "t.parquet", annotations=tmp_path)


@pytest.mark.parametrize(
    ("rows", "x", "made_from", "message"),
    [
        (16, 0, "this", None),
        (16, 0, None, None),
        (16, 0, "another", "was not made from"),
        (32, 0, None, "covers 1280 x 2048 px, not the 1280 x 1024 px of"),
        (12, 0, None, "covers 1280 x 768 px"),
        (16, 640, None, "covers 1920 x 1024 px"),
    ],
)
def test_heatmaps_of_another_slide_are_refused(
    cohort: Path, tmp_path: Path, *, rows: int, x: float, made_from: str | None, message: str | None
) -> None:
    shape = rows, 20
    frame = Frame(x=x, y=0, downsample=64, shape=shape, mpp=MPP)
    for name in NAMES:
        own = Slide(cohort / "images" / f"{name}.tif").fingerprint()
        heatmap = Heatmap(frame=frame, array=np.full(shape, 0.9, np.float32), tissue=np.ones(shape, bool))
        provenance = {} if made_from is None else {"slide": own if made_from == "this" else "0" * 64}
        write_heatmap(tmp_path / "heatmaps" / f"{name}.zarr", heatmap, provenance)
    recipe = replace(RECIPE, hard=2, heatmaps=tmp_path / "heatmaps")
    if message is None:
        run(cohort, tmp_path / "t.parquet", recipe)
        assert read_patch_table(tmp_path / "t.parquet").counts("kind")["hard"] == 6
        return
    with pytest.raises(CohortError, match=message):
        run(cohort, tmp_path / "t.parquet", recipe)


def test_labels_go_with_slides_in_any_case(cohort: Path, tmp_path: Path) -> None:
    run(cohort, tmp_path / "t.parquet")
    assert read_patch_table(tmp_path / "t.parquet").counts("slide")[NAMES[1]] == 4
    two = StageTable(labels={NAMES[1]: SlideLabel.NEGATIVE, NAMES[1].upper(): SlideLabel.MACRO})
    with pytest.raises(CohortError, match="has two labels"):
        run(cohort, tmp_path / "t.parquet", labels=two)


# --- options that would be ignored ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--hard-choice", "worst"], "--hard-choice is for --hard"),
        (["--device", "cpu"], "--device is for --model alone"),
        (["--format", "png", "--quality", "80"], "--quality is for JPEG, and png has none"),
    ],
)
def test_options_without_effect_are_refused(cohort: Path, tmp_path: Path, given: list[str], message: str) -> None:
    output = tmp_path / "out"
    folders = [str(cohort / "images"), str(cohort / "annotations")]
    done = CliRunner().invoke(app, ["patches", *folders, "-o", str(output), *given])
    assert isinstance(done.exception, ConfigurationError)
    assert message in str(done.exception)
    assert not output.exists()


def test_a_split_that_cannot_be_is_told_before_anything_is_drawn(cohort: Path, tmp_path: Path) -> None:
    news = News()
    for split, message in (
        ("folds:4", "cannot fill"),
        ("centre:4", "no patch is"),
        ("patient:0.9,0.1", "none are left"),
    ):
        with pytest.raises(SamplingError, match=message):
            run(cohort, tmp_path / "out", replace(RECIPE, split=Split.parse(split)), news=news)
    assert news.drawn == []
    assert not (tmp_path / "out").exists()


# --- outputs of others ----------------------------------------------------------------------------------------------


def test_what_others_made_is_not_replaced(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    (tmp_path / "mine.parquet").write_bytes(b"columns")
    run(cohort, tmp_path / "store")
    before = contents(tmp_path)
    for name, message in (
        ("mine.zarr", "not a patch store"),
        ("mine.parquet", "not a patch table"),
        ("store/patches.parquet", "belongs to the patches beside it"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            run(cohort, tmp_path / name)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["own.zarr", "own.parquet"])
def test_an_own_store_or_table_is_replaced(cohort: Path, tmp_path: Path, name: str) -> None:
    for seed in (3, 4):
        run(cohort, tmp_path / name, replace(RECIPE, seed=seed), has_contact_sheet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "own_contact_sheet.png"]


def test_an_output_that_came_to_nothing_may_be_begun_anew(cohort: Path, tmp_path: Path) -> None:
    lost = StageTable(labels={})
    with pytest.raises(PathologyError):
        run(cohort, tmp_path / "out", replace(RECIPE, model=tmp_path / "none", hard=1), labels=lost)
    run(cohort, tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"made with other recipe \(normal, seed\)"):
        run(cohort, tmp_path / "out", replace(RECIPE, seed=9, normal=5))


def test_the_resolution_may_be_given_after_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tiles = [np.full((TILE, TILE, 3), (170, 90, 150), np.uint8)] * 4
    write_pyramid(
        tmp_path / "images" / f"{NAMES[0]}.tif", width=2 * TILE, height=2 * TILE, mpp=None, tiles=tiles, tile_size=TILE
    )
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / f"{NAMES[0]}.xml").write_text(contours(100, 100, 100))
    with pytest.raises(ResolutionError):
        run(tmp_path, tmp_path / "out")
    run(tmp_path, tmp_path / "out", replace(RECIPE, slide_mpp=0.5))
    assert len(read_patch_table(tmp_path / "out" / "patches.parquet")) > 0


# --- killed calls and full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_what_is_missing_of_a_finished_export_is_written_again(cohort: Path, tmp_path: Path, form: str) -> None:
    recipe = replace(RECIPE, split=Split.parse("patient:0.5,0.5"))
    run(cohort, tmp_path, recipe, form=form)
    before = contents(tmp_path)
    endings = {"sparse": (".tif", ".xml"), "jpeg": (".jpg",), "webdataset": (".tar",), "hdf5": (".h5",)}
    written = [name for name in before if name.endswith(endings.get(form, (".png",)))]
    assert len(written) >= 3
    for name in written[::2]:
        (tmp_path / name).unlink()
    run(cohort, tmp_path, recipe, form=form)
    assert contents(tmp_path) == before


def test_pictures_that_a_kill_left_half_written_are_swept(cohort: Path, tmp_path: Path) -> None:
    run(cohort, tmp_path, form="png")
    before = contents(tmp_path)
    for folder in (tmp_path, tmp_path / ".parts", tmp_path / "train" / "tumour"):
        (folder / ".a.png.0a0a0a0a-17-01234567.partial").write_bytes(b"half")
    run(cohort, tmp_path, form="png")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", ["png", "sparse"])
def test_only_what_is_left_to_do_must_find_room(
    cohort: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.training.room._RESERVE_BYTES", 0)
    recipe = replace(RECIPE, tumour=20, normal=20)
    run(cohort, tmp_path / "out", recipe, form=form)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
    run(cohort, tmp_path / "out", recipe, form=form)
    with pytest.raises(StorageError, match="are free"):
        run(cohort, tmp_path / "other", recipe, form=form)


def test_hdf5_on_a_full_disk_is_one_error(cohort: Path, tmp_path: Path) -> None:
    # In a process of its own: HDF5 that cannot write its last bytes ends the process with a fault.
    run(cohort, tmp_path / "t.parquet", replace(RECIPE, tumour=0, normal=40))
    code = f"""
import resource
from pathlib import Path
import numpy as np
from annotations.patches.exports import export_hdf5
from annotations.patches.table import read_patch_table
from wsi.errors import StorageError
from wsi.slide import Slide
table = read_patch_table({str(tmp_path / "t.parquet")!r})
name = {NAMES[1]!r}
rows = table.rows(table["slide"] == name)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with Slide.open(table.files[name]) as slide:
    try:
        export_hdf5(Path({str(tmp_path / "h5")!r}), slide, rows)
    except StorageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "cannot be written: File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list((tmp_path / "h5").iterdir()) == []


# --- large patches --------------------------------------------------------------------------------------------------


def test_few_large_patches_are_read_at_a_time(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(cohort, tmp_path / "t.parquet", replace(RECIPE, tumour=0, normal=10))
    table = read_patch_table(tmp_path / "t.parquet")
    rows = table.rows(table["slide"] == NAMES[1])
    asked: list[int] = []

    def counted(slide: Slide, x: NDArray[np.float64], y: NDArray[np.float64], **options: Any) -> NDArray[np.uint8]:
        asked.append(len(x))
        return read_pixels(slide, x, y, **options)

    monkeypatch.setattr("annotations.patches.exports.read_patches", counted)
    with Slide.open(table.files[NAMES[1]]) as slide:
        whole = [image for _, image in images_of(slide, rows)]
        monkeypatch.setattr("annotations.patches.exports._BYTES_AT_ONCE", 3 * 64 * 64 * 3 + 1)
        parts = [image.copy() for _, image in images_of(slide, rows)]
    assert asked == [10, 3, 3, 3, 1]
    np.testing.assert_array_equal(whole, parts)


def test_a_store_is_written_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Chunks of 3 patches, shards of 6; a batch of many must not be joined as a whole.
    monkeypatch.setattr("annotations.patches.zarr_store._SHARD_BYTES", 8 * 16 * 16 * 3)
    monkeypatch.setattr("annotations.patches.zarr_store._CHUNK_BYTES", 3 * 16 * 16 * 3)
    images = np.random.default_rng(0).integers(0, 256, (45, 16, 16, 3), np.uint8)
    joined: list[int] = []
    concatenate = np.concatenate

    def counted(parts: Any, *rest: Any, **options: Any) -> NDArray[Any]:
        if parts[0].ndim == 4:
            joined.append(sum(len(part) for part in parts))
        return concatenate(parts, *rest, **options)

    batches = [
        PatchBatch(
            slide=f"s{start}",
            patient="p",
            centre=None,
            mpp=1.0,
            images=images[start:stop],
            targets=images[start:stop, :, :, 0] % 2,
            x=np.arange(start, stop, dtype=np.float64),
            y=np.zeros(stop - start),
            kinds=("normal",) * (stop - start),
        )
        for start, stop in ((0, 3), (3, 40), (40, 45))
    ]
    monkeypatch.setattr("annotations.patches.zarr_store.np.concatenate", counted)
    write_patches(tmp_path / "s.zarr", batches)
    monkeypatch.undo()
    assert max(joined) < 12
    found = read_patches(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.table["x"], np.arange(45))


def test_the_sheet_is_the_same_from_thumbnails(cohort: Path, tmp_path: Path) -> None:
    run(cohort, tmp_path / "t.parquet")
    table = read_patch_table(tmp_path / "t.parquet")
    examples = pick_examples(table)
    rng = np.random.default_rng(0)
    images = {title: list(rng.integers(0, 256, (len(rows), 64, 64, 3), np.uint8)) for title, rows in examples.items()}
    small = {title: [thumbnail(image) for image in some] for title, some in images.items()}
    np.testing.assert_array_equal(contact_sheet(table, examples, small), contact_sheet(table, examples, images))
    # A few pixels of tumour are not shown as none.
    least, none = (
        replace(table, columns={**table.columns, "tumour_fraction": np.full(len(table), share)})
        for share in (1e-4, 0.0)
    )
    assert (contact_sheet(least, examples, small) != contact_sheet(none, examples, small)).any()


# --- what is drawn and told -----------------------------------------------------------------------------------------


def test_patches_on_outlines_only(cohort: Path) -> None:
    vertices = np.array([(400, 300), (800, 300), (800, 700), (400, 700)], np.float64)
    drawn = [Annotation(name="a", group="g", role=Role.TUMOUR, kind="Polygon", vertices=vertices)]
    frame = Frame(x=0, y=0, downsample=32, shape=(HEIGHT // 32, WIDTH // 32), mpp=MPP)
    tissue = Mask(frame=frame, array=np.ones(frame.shape, bool))

    def kinds(shares: Shares) -> list[str]:
        positions = draw_patches(
            slide,
            drawn,
            tissue,
            mpp=1.0,
            size_px=64,
            count_tumour=10,
            count_normal=0,
            seed=0,
            negative=False,
            shares=shares,
            rule=LabelRule.parse("area:0.95"),
        )
        return [where.kind for where in positions]

    with Slide.open(cohort / "images" / f"{NAMES[0]}.tif") as slide:
        # No patch on an outline is so full of tumour: fewer patches, not others.
        assert kinds(Shares(border=1)) == []
        assert kinds(Shares(border=0.5)) == ["tumour"] * 10


def test_zarr_holds_the_whole_table_and_the_rule(cohort: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, rule=LabelRule.parse("area:0.4"))
    run(cohort, tmp_path / "t.parquet", recipe)
    run(cohort, tmp_path / "s.zarr", recipe)
    stored: Any = zarr.open_group(tmp_path / "s.zarr", mode="r")["table"]
    assert stored.attrs["rule"] == "area:0.4"
    assert set(stored.array_keys()) == set(COLUMNS)
    for name in COLUMNS:
        values = stored[name][...]
        names = stored[name].attrs.get("names")
        found = values if names is None else np.array(names)[values]
        assert found.tolist() == read_patch_table(tmp_path / "t.parquet")[name].tolist()


def test_slides_left_out_are_told_and_not_waited_for(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PatchProgress(3) as progress:
        run(cohort, tmp_path / "t.parquet", labels=StageTable(labels={}), news=progress)
    told = capsys.readouterr().err
    assert "1 of 3 slides left out: it has no annotations and is not labelled negative (1)" in told
    assert f"drawn from 2/2 {NAMES[2]} 10 patches" in told


@pytest.mark.parametrize("form", ["table", "sparse", "webdataset", "hdf5", "png"])
def test_the_size_told_is_about_right(cohort: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / ("o" + {"table": ".parquet", "zarr": ".zarr"}.get(form, ""))
    told = run(cohort, output, replace(RECIPE, tumour=40, normal=40), form=form)["bytes"]
    files = [file for file in (output, *output.rglob("*")) if file.is_file() and ".parts" not in file.parts]
    size = sum(file.stat().st_size for file in files)
    assert 0.5 < told / size < 2
