"""What a second re-run of the inputs found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from annotations.patches.zarr_store import read_patches
from staging.cli import app
from staging.errors import CohortError
from staging.phantom import generate_cohort
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import OutputExistsError, OutputInUseError, SlideNotFoundError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap
from wsi.slide import Slide
from wsi.store import identity, json_text, provenance_of, read_sealed, sealed

NAMES = [f"patient_000_node_{node}" for node in range(5)]


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    """A cohort, a model and a run on it."""
    folder = tmp_path_factory.mktemp("finished")
    generate_cohort(folder / "cohort", patients=1, centres=(0,), seed=7, mpp=8.0)
    save_checkpoint(folder / "m.safetensors", make_checkpoint(mpp=8.0))
    done = called("run", folder / "cohort" / "images", "-o", folder / "out", "-m", folder / "m.safetensors")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "all")
    return tmp_path / "all"


def again(folder: Path, *more: object) -> Result:
    return called("run", folder / "cohort" / "images", "-o", folder / "out", "-m", folder / "m.safetensors", *more)


@pytest.mark.parametrize("command", ["submission write lesions {} -o {}/new", "review {} {}/stages.csv -o {}/new"])
def test_a_record_of_another_name_leads_nowhere(folder: Path, command: str) -> None:
    record = folder / "out" / "slides" / f"{NAMES[0]}.json"
    forged = read_sealed(record)
    forged["analysis"]["slide"] = "../../evil"
    record.write_text(json_text(sealed(forged)))
    shutil.copytree(folder / "out" / "heatmaps" / f"{NAMES[0]}.zarr", folder / "evil.zarr")
    (folder / "evil.csv").write_text("keep")
    done = called(*command.replace("{}/new", str(folder / "new")).format(folder / "out", folder / "out").split())
    assert isinstance(done.exception, CohortError)
    assert (folder / "evil.csv").read_text() == "keep"
    assert not list(folder.rglob("evil.png"))
    assert called("verify", folder / "out").exit_code == 1


def test_a_slide_that_a_run_lost_is_noticed(folder: Path) -> None:
    (folder / "out" / "slides" / f"{NAMES[3]}.json").unlink()
    found = json.loads(called("verify", folder / "out").stdout)
    assert found["broken"] == {NAMES[3]: ["has no record"]}
    shutil.rmtree(folder / "out" / "heatmaps" / f"{NAMES[3]}.zarr")
    assert called("verify", folder / "out").exit_code == 1
    for command in ("submission write slides {} -o {}/new.csv", "review {} {}/stages.csv -o {}/new"):
        words = command.replace("{}/new", str(folder / "new")).format(folder / "out", folder / "out").split()
        done = called(*words)
        assert isinstance(done.exception, CohortError), words
        assert f"{NAMES[3]} has no record" in str(done.exception)
    assert again(folder).exit_code == 0
    assert called("verify", folder / "out").exit_code == 0


def test_tables_that_changed_are_said_to_be_made_again(folder: Path) -> None:
    (folder / "out" / "labels.csv").unlink()
    done = again(folder)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["remade"] == {"tables": ["labels.csv is missing"]}


def test_another_file_of_the_same_name_is_said(folder: Path) -> None:
    images = folder / "cohort" / "images"
    shutil.copy(images / f"{NAMES[1]}.tif", images / f"{NAMES[0]}.tif")
    remade = json.loads(again(folder).stdout)["remade"]
    assert remade == {NAMES[0]: [f"slides/{NAMES[0]}.json is of another file of this name"]}


def test_a_link_in_a_runs_folder_ends_it_and_blames_no_slide(folder: Path) -> None:
    overlay = folder / "out" / "overlays" / f"{NAMES[0]}.png"
    overlay.unlink()
    (folder / "target").write_text("keep")
    overlay.symlink_to(folder / "target")
    assert isinstance(again(folder).exception, OutputExistsError)
    assert (folder / "target").read_text() == "keep"


def test_a_writer_that_was_stopped_before_it_published_is_discarded(tmp_path: Path) -> None:
    frame = Frame(x=0, y=0, downsample=8, shape=(4, 5), mpp=0.5)
    heatmap = Heatmap(frame=frame, array=np.zeros((4, 5), np.float32), tissue=np.ones((4, 5), bool))
    target = tmp_path / "h.zarr"
    begun = identity(target)  # then it is stopped, and another publishes
    write_heatmap(target, heatmap, {"model": "other"})
    with pytest.raises(OutputInUseError, match="in the meantime"):
        write_heatmap(target, heatmap, {"model": "mine"}, since=begun)
    assert provenance_of(target) == {"model": "other"}
    write_heatmap(target, heatmap, {"model": "mine"}, since=identity(target))
    assert provenance_of(target) == {"model": "mine"}


def test_a_heatmap_that_rotted_is_said_to_be_made_again(folder: Path) -> None:
    command = ("heatmap", folder / "cohort" / "images" / f"{NAMES[0]}.tif", "-m", folder / "m.safetensors")
    assert called(*command, "-o", folder / "h.zarr").exit_code == 0
    chunk = folder / "h.zarr" / "probability" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    done = called(*command, "-o", folder / "h.zarr")
    assert (done.exit_code, "made again" in done.stderr) == (0, True)


def rewritten(source: Path, path: Path, change: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    """A copy of a slide with other pixels: ``change`` is given the number of each level and its pixels."""
    with Slide.open(source) as slide, tifffile.TiffWriter(path) as file:
        for number, level in enumerate(slide.levels):
            pixels = change(number, slide.read_frame(slide.frame_of(level)).array.copy())
            file.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                extrasamples=["unassalpha"] if pixels.shape[2] == 4 else None,
                subfiletype=1 if number else 0,
                resolution=(1e4 / ((slide.mpp or 0) * level.downsample),) * 2,
                resolutionunit="CENTIMETER",
            )


def with_opacity(source: Path, path: Path, *, shown: Callable[[int, int], slice], everywhere: bool = False) -> None:
    """A copy of a slide with opacity: only some rows are shown, of coarser levels all unless it is so everywhere."""

    def veiled(number: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        opacity = np.full((*pixels.shape[:2], 1), 0 if number == 0 or everywhere else 255, np.uint8)
        opacity[shown(number, pixels.shape[0])] = 255
        return np.concatenate([pixels, opacity], axis=2)

    rewritten(source, path, veiled)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_what_opacity_hides_is_not_called_negative(folder: Path, part: float, *, everywhere: bool) -> None:
    images = folder / f"seen{part}{everywhere}" / "images"
    images.mkdir(parents=True)
    for name in NAMES:
        source = folder / "cohort" / "images" / f"{name}.tif"
        with_opacity(
            source, images / f"{name}.tif", shown=lambda _, rows: slice(0, int(rows * part)), everywhere=everywhere
        )
    run = ("run", images, "-o", folder / f"hidden{part}{everywhere}", "-m", folder / "m.safetensors")
    done = called(*run)
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert (found["slides"], sorted(found["quarantined"]), found["stages"]) == (0, NAMES, {})
    assert all("of tissue were looked at" in reason for reason in found["quarantined"].values())
    assert "has opacity" in json.dumps(found)
    allowed = json.loads(called(*run, "--allow-partial", "--overwrite").stdout)
    assert (allowed["at_least"], len(allowed["partial"])) == (["patient_000"], 5)
    told = json.loads(called("tissue", images / f"{NAMES[0]}.tif", "-o", folder / "t.png").stdout)
    assert told["stored"]["share"] <= part + 0.45


def with_blanks(source: Path, path: Path, *, fill: int, shown: float) -> None:
    """A copy of a slide whose level 0 has one colour below its first rows, and whose other levels are whole."""

    def blanked(number: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if number == 0:
            pixels[int(pixels.shape[0] * shown) :] = fill
        return pixels

    rewritten(source, path, blanked)


@pytest.mark.parametrize(("fill", "part"), [(255, 0.0), (255, 0.5), (250, 0.5), (128, 0.0), (0, 0.5)])
def test_a_blank_level_under_an_intact_overview_is_not_called_negative(folder: Path, fill: int, part: float) -> None:
    images = folder / f"blank{fill}{part}" / "images"
    images.mkdir(parents=True)
    for name in NAMES[:2]:
        source = folder / "cohort" / "images" / f"{name}.tif"
        with_blanks(source, images / f"{name}.tif", fill=fill, shown=part)
    run = ("run", images, "-o", folder / f"blanks{fill}{part}", "-m", folder / "m.safetensors")
    done = called(*run)
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert (found["slides"], sorted(found["quarantined"])) == (0, NAMES[:2])
    known = ("of tissue were looked at", "its levels do not show the same")  # the latter where glass became dark
    assert all(any(one in reason for one in known) for reason in found["quarantined"].values())
    if fill < 200:
        return
    stored = json.loads(called("tissue", images / f"{NAMES[0]}.tif", "-o", folder / "t.png").stdout)["stored"]
    assert abs(stored["share"] - part) < 0.3
    if part == 0:
        assert stored["share"] < 0.1


@pytest.mark.parametrize("blank", [(1, 2, 3, 4), (1, 2)])
def test_an_overview_that_lost_the_tissue_is_refused(folder: Path, blank: tuple[int, ...]) -> None:
    images = folder / f"lost{len(blank)}" / "images"
    images.mkdir(parents=True)

    def emptied(number: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if number in blank:  # a corner of the tissue is left: else the slide has none
            kept = pixels[pixels.shape[0] // 2 :, pixels.shape[1] // 2 :][: pixels.shape[0] // 8].copy()
            pixels[...] = 243
            pixels[: kept.shape[0], : kept.shape[1]] = kept
        return pixels

    rewritten(folder / "cohort" / "images" / f"{NAMES[0]}.tif", images / f"{NAMES[0]}.tif", emptied)
    done = called("run", images, "-o", folder / f"lost{len(blank)}out", "-m", folder / "m.safetensors")
    assert done.exit_code == 3
    assert "its levels do not show the same" in json.dumps(json.loads(done.stdout)["quarantined"])


def without_tiles(source: Path, path: Path, share: float) -> None:
    """A copy of a slide that stores only the first rows of tiles of level 0."""
    shutil.copy(source, path)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offsets, counts = page.tags["TileOffsets"], page.tags["TileByteCounts"]
        tables = [(tag.valueoffset, tag.count, {4: 4, 16: 8}[int(tag.dtype)]) for tag in (offsets, counts)]
    data = bytearray(path.read_bytes())
    for at, count, size in tables:
        kept = int(count * share) * size
        data[at + kept : at + count * size] = bytes(count * size - kept)
    path.write_bytes(data)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_no_patch_is_drawn_where_nothing_is_stored(folder: Path, share: float) -> None:
    images = folder / f"unstored{share}" / "images"
    images.mkdir(parents=True)
    cohort = folder / "cohort"
    [annotated, *_] = sorted(path.stem for path in (cohort / "annotations").glob("*.xml"))
    whole = next(name for name in NAMES if name != annotated)
    shutil.copy(cohort / "images" / f"{whole}.tif", images)
    without_tiles(cohort / "images" / f"{annotated}.tif", images / f"{annotated}.tif", share)
    output = folder / f"unstored{share}.zarr"
    command = ("patches", images, cohort / "annotations", "-r", cohort / "stage_labels.csv", "-o", output)
    done = called(*command, "--mpp", 8, "--size", 32, "--tumour", 12, "--normal", 12, "--workers", 1)
    if not share:
        assert f"{annotated}.tif: gives no patches: 0.00 of " in str(done.exception)
        return
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    assert "gives patches of what is seen only: " in json.dumps(json.loads(done.stdout)["warnings"])
    drawn = read_patches(output).images
    assert len(drawn) >= 12
    assert ((drawn == 255).all(axis=3).mean(axis=(1, 2)) > 0.9).sum() == 0


def test_no_patch_is_drawn_where_opacity_hides_everything(folder: Path) -> None:
    images = folder / "half" / "images"
    images.mkdir(parents=True)
    for name in NAMES:
        source = folder / "cohort" / "images" / f"{name}.tif"
        with_opacity(source, images / f"{name}.tif", shown=lambda _, rows: slice(0, rows // 2), everywhere=True)
    labels = folder / "half" / "labels.csv"
    labels.write_text("slide,label\n" + "".join(f"{name},negative\n" for name in NAMES))
    (folder / "half" / "drawn").mkdir()
    command = ("patches", images, folder / "half" / "drawn", "-r", labels, "-o", folder / "half" / "p.zarr")
    done = called(*command, "--mpp", 8, "--size", 32, "--tumour", 0, "--normal", 20, "--workers", 1)
    assert done.exit_code == 0, done.output
    images_of = read_patches(folder / "half" / "p.zarr").images
    assert len(images_of) > 20
    white = (images_of == 255).all(axis=3).mean(axis=(1, 2))
    assert (white > 0.95).sum() <= 1  # at the rim of what is shown


def test_what_is_black_is_said_not_to_be_known(folder: Path) -> None:
    with Slide.open(folder / "cohort" / "images" / f"{NAMES[0]}.tif") as slide:
        pixels = slide.read_frame(slide.frame).array.copy()
        um = slide.mpp or 0
    pixels[:, : pixels.shape[1] // 4] = 0
    path = folder / "black.tif"
    scale: dict[str, Any] = {"resolution": (1e4 / um,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), **scale)
    done = called("heatmap", path, "-m", folder / "m.safetensors", "-o", folder / "black.zarr")
    assert "is exactly black on 25% of its area: what was there is not known" in done.stderr


def test_opacity_that_hides_nothing_changes_nothing(folder: Path) -> None:
    source, copy = folder / "cohort" / "images" / f"{NAMES[0]}.tif", folder / f"{NAMES[0]}.tif"
    with_opacity(source, copy, shown=lambda _, rows: slice(0, rows))
    facts = [
        json.loads(called("heatmap", path, "-m", folder / "m.safetensors", "-o", folder / f"{number}.zarr").stdout)
        for number, path in enumerate((source, copy))
    ]
    assert facts[1]["coverage"] == pytest.approx(facts[0]["coverage"], rel=1e-4)
    assert facts[1]["coverage"]["share"] == 1.0


def test_what_begins_like_a_url_but_is_none() -> None:
    done = called("info", "http://u:secret@[::1/x.tif?sig=SIG")
    assert done.exit_code == 1
    assert "is not a URL" in done.stderr
    assert "SIG" not in done.stderr + done.stdout
    with pytest.raises(SlideNotFoundError):
        Slide.open("http://[::1/x.tif")
