"""What an attacker found: files of others replaced, secrets printed, stray files that broke a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoint import fresh
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.camelyon import find_slides
from staging.errors import ConfigurationError
from staging.lesions.outlines import write_outlines
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import OutputExistsError, PathologyError, StorageError
from wsi.lock import OutputLock
from wsi.outputs import HEATMAP_TIFF, HEATMAP_TIFF8, MASK_TIFF, SLIDE_TIFF, check_output, picture, refuse_twins
from wsi.render import save_picture
from wsi.writing.pyramid import write_pyramid

NAMES = ("patient_000_node_0", "patient_000_node_1")


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    image = np.full((256, 256, 3), 243, np.uint8)
    image[60:200, 60:200] = (200, 120, 170)
    (tmp_path / "slides").mkdir()
    for name in NAMES:
        write_pyramid(tmp_path / "slides" / f"{name}.tif", width=256, height=256, mpp=2.0, tile_size=256, tiles=[image])
    save_checkpoint(tmp_path / "m.safetensors", fresh())
    return tmp_path / "slides"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def call(*more: object) -> Result:
        return called("run", "-m", tmp_path / "m.safetensors", "--device", "cpu", "--workers", 1, "--nodes", 2, *more)

    return call


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", ["precious", "[]", '{"host": "a"}', '{"host": "a", "pid": 1, "mine": 2}'])
def test_a_lock_of_others_is_never_emptied(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(OutputExistsError, match="is not a lock of sentinode"), OutputLock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == content


def test_a_slide_that_is_also_called_lock_is_never_emptied(slides: Path, tmp_path: Path) -> None:
    slide = slides / f"{NAMES[0]}.tif"
    before = slide.read_bytes()
    (tmp_path / "out").mkdir()
    os.link(slide, tmp_path / "out" / ".lock")
    with pytest.raises(OutputExistsError), OutputLock(tmp_path / "out"):
        pass
    assert slide.read_bytes() == before


def test_a_lock_that_a_killed_call_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"host": "' + os.uname().nodename + '", "pid": 1}')
    with OutputLock(tmp_path) as lock:
        lock.check()


def test_a_run_json_of_others_is_no_run(slides: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    other = tmp_path / "other"
    for name in ("run.json", "labels.csv", "slides/alice.json", "overlays/alice.png", "lesions/alice.xml"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text('{"lr": 0.1}')
    before = tree(other)
    result = run(slides, "-o", other, "--overwrite")
    assert isinstance(result.exception, ConfigurationError)
    assert "settings of something else" in str(result.exception)
    assert tree(other) == before


@pytest.mark.parametrize("part", ["heatmaps", "overlays", "lesions", "slides"])
def test_a_folder_of_a_run_that_is_a_link_is_refused(
    slides: Path, tmp_path: Path, run: Callable[..., Result], part: str
) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / f"{NAMES[0]}.png").write_text("mine")
    assert run(slides / f"{NAMES[0]}.tif", "-o", tmp_path / "out").exit_code == 3
    shutil.rmtree(tmp_path / "out" / part)
    (tmp_path / "out" / part).symlink_to(tmp_path / "up")
    assert isinstance(run(slides, "-o", tmp_path / "out").exception, OutputExistsError)
    assert tree(tmp_path / "up") == {f"{NAMES[0]}.png": b"mine"}


def test_a_slide_a_mask_a_heatmap_and_a_picture_are_four_kinds(slides: Path, tmp_path: Path) -> None:
    slide, mask, drawn = slides / f"{NAMES[0]}.tif", tmp_path / "mask.tif", tmp_path / "drawn.tif"
    (tmp_path / "a.xml").write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="metastases"><Coordinates>'
        '<Coordinate Order="0" X="60" Y="60"/><Coordinate Order="1" X="90" Y="60"/>'
        '<Coordinate Order="2" X="90" Y="90"/></Coordinates></Annotation></Annotations><AnnotationGroups>'
        '<Group Name="metastases" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>'
    )
    assert called("mask", tmp_path / "a.xml", "--slide", slide, "-o", mask).exit_code == 0
    save_picture(drawn, np.zeros((20, 30, 3), np.uint8))
    heat, heat8 = tmp_path / "heat.tif", tmp_path / "heat8.tif"
    made = called(
        *("heatmap", slide, "-m", tmp_path / "m.safetensors", "-o", tmp_path / "h.zarr", "--tiff", heat),
        *("--tiff8", heat8, "--device", "cpu"),
    )
    assert made.exit_code == 0, made.output
    kinds = {slide: SLIDE_TIFF, mask: MASK_TIFF, heat: HEATMAP_TIFF, heat8: HEATMAP_TIFF8}
    kinds[drawn] = picture(drawn)
    for path in kinds:
        for other, kind in kinds.items():
            if other == path:
                check_output(path, kind, overwrite=True)
            else:
                with pytest.raises(OutputExistsError):
                    check_output(path, kind, overwrite=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".pdf", ".tif"])
def test_only_our_own_pictures_are_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_picture(path, np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    check_output(path, picture(path), overwrite=True)
    path.write_bytes(path.read_bytes().replace(b"sentinode", b"Photoshop").replace(b"\0s\0e\0n\0t", b"\0P\0h\0o\0t"))
    with pytest.raises(OutputExistsError):
        check_output(path, picture(path), overwrite=True)


def test_what_lies_in_a_folder_of_inputs_is_an_input(slides: Path) -> None:
    with pytest.raises(OutputExistsError, match="is inside the input"):
        check_output(slides / f"{NAMES[1]}.tif", SLIDE_TIFF, inputs=[slides], overwrite=True)
    check_output(slides / "new.tif", SLIDE_TIFF, inputs=[slides], overwrite=True)


def test_no_output_lies_inside_another(tmp_path: Path) -> None:
    for outputs in ([tmp_path / "h.zarr", tmp_path / "h.zarr" / "o.png"], [tmp_path / "a" / "b", tmp_path / "a"]):
        with pytest.raises(OutputExistsError, match="one inside the other"):
            refuse_twins(outputs)


def test_stray_files_of_a_mac_break_nothing(slides: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    out = tmp_path / "out"
    assert run(slides, "-o", out).exit_code == 0
    for name in (f"slides/._{NAMES[0]}.json", f"heatmaps/._{NAMES[0]}.zarr", "slides/.DS_Store"):
        (out / name).touch()
    assert run(slides, "-o", out).exit_code == 0
    assert called("verify", out).exit_code == 0
    assert called("submission", "write", "slides", out, "-o", tmp_path / "s.csv").exit_code == 0
    assert called("lesions", out / "heatmaps", "-o", tmp_path / "lesions").exit_code == 0


@pytest.mark.parametrize("url", ["https://user:SECRET@127.0.0.1:1/x.tif?sig=SECRET", "s3://AKIA:SECRET@bucket/x.tif"])
def test_a_secret_is_not_printed_where_a_file_was_expected(tmp_path: Path, url: str) -> None:
    for command in (
        ("run", url, "-o", tmp_path / "o", "-m", tmp_path / "m.safetensors"),
        ("stage", url, "-o", tmp_path / "s.csv"),
        ("verify", url),
        ("label", url, "-o", tmp_path / "l.csv"),
    ):
        result = called(*command)
        assert isinstance(result.exception, PathologyError), command
        assert "SECRET" not in str(result.exception) + result.output


def test_a_fifo_among_dicom_files_ends_nothing(slides: Path) -> None:
    os.mkfifo(slides / "f.dcm")
    assert [slide.name for slide in find_slides(slides)] == ["f", *NAMES]


@pytest.mark.parametrize("name", ["labels.csv", "stages.csv", "report.html", "run.json"])
def test_a_changed_table_is_noticed_and_made_again(
    slides: Path, tmp_path: Path, run: Callable[..., Result], name: str
) -> None:
    out = tmp_path / "out"
    assert run(slides, "-o", out).exit_code == 0
    assert called("verify", out).exit_code == 0
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole.replace(b"negative", b"macro") + b" ")
    result = called("verify", out)
    assert (result.exit_code, list(json.loads(result.stdout)["broken"])) == (1, ["tables"])
    assert f"{name} has another size" in result.stderr
    assert run(slides, "-o", out).exit_code == 0
    assert called("verify", out).exit_code == 0
    assert (out / name).read_bytes() == whole


def test_features_of_a_slide_with_too_long_a_name_are_its_own_fault(slides: Path, tmp_path: Path) -> None:
    (slides / f"{NAMES[0]}.tif").rename(slides / f"{'d' * 236}.tif")
    encoder = tmp_path / "encoder.pt2"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
    torch.export.save(program, encoder)
    result = called(
        *("features", slides, "-e", encoder, "--mpp", 2, "--size", 32, "-o", tmp_path / "f"),
        *("--device", "cpu", "--workers", 1),
    )
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)
    assert (found["slides"], list(found["quarantined"])) == (1, ["d" * 236])


def test_what_is_removed_while_it_is_written_ends_with_a_fault_of_the_storage(
    slides: Path, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(slides, "-o", out).exit_code == 0

    def removing(folder: Path, name: str, *rest: Any) -> None:
        write_outlines(folder, name, *rest)
        if name == NAMES[1]:
            shutil.rmtree(folder)

    for module in ("staging.lesions.measurements", "staging.runs.slide_task"):
        monkeypatch.setattr(f"{module}.write_outlines", removing)
    lesions = called("lesions", out / "heatmaps", "-o", tmp_path / "lesions")
    assert isinstance(lesions.exception, StorageError), lesions.output
    again = run(slides, "-o", tmp_path / "again")
    assert isinstance(again.exception, StorageError), again.output
    assert "was removed" in str(lesions.exception)


def test_dropped_slides_are_named(
    slides: Path, tmp_path: Path, run: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert run(slides, "-o", out).exit_code == 0
    assert run(slides / f"{NAMES[0]}.tif", "-o", out, "--threshold", "0.3", "--overwrite").exit_code == 3
    assert f"dropped are {NAMES[1]}" in caplog.text
    assert json.loads((out / "run.json").read_text())["threshold"] == 0.3
