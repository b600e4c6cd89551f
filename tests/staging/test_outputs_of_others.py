"""No command ever changes, replaces or deletes what it did not make; what it made, only with --overwrite."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from staging.cli import app
from staging.commands.outputs import Output
from staging.errors import ConfigurationError
from staging.lesions.labels import SlideLabel
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import OutputExistsError, OutputNameError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.outputs import FileKind, begins, what_is
from wsi.raster import Heatmap
from wsi.writing.pyramid import write_pyramid

LABELS = "patient,stage\npatient_000.zip,pN0\n" + "".join(
    f"patient_000_node_{node}.tif,negative\n" for node in range(5)
)
LESIONS = "slide,lesion,class,longest_diameter_um,area_um2,x,y,probability\ns,1,itc,100.0,50,10.0,10.0,0.9\n"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    """What the commands read: a slide, its annotations, a heatmap, a model and tables."""
    folder = tmp_path_factory.mktemp("inputs")
    image = np.full((256, 256, 3), 244, np.uint8)
    image[60:200, 60:200] = np.random.default_rng(0).integers(120, 190, (140, 140, 3))
    slide = folder / "slides" / "s.tif"
    slide.parent.mkdir()
    write_pyramid(slide, width=256, height=256, mpp=8.0, tile_size=256, levels=1, tiles=[image])
    corners = np.array([(80.0, 80.0), (150.0, 80.0), (150.0, 150.0), (80.0, 150.0)])
    drawn = Annotation(name="a", group="metastases", role=Role.TUMOUR, kind="Polygon", vertices=corners)
    write_asap(folder / "drawn" / "s.xml", [drawn])
    cells = np.zeros((32, 32), np.float32)
    cells[10:14, 10:14] = 0.99
    frame = Frame(x=0.0, y=0.0, downsample=8.0, shape=(32, 32), mpp=8.0)
    heatmap = Heatmap(frame=frame, array=cells, tissue=np.ones((32, 32), bool))
    write_heatmap(folder / "heatmaps" / "s.zarr", heatmap, {"slide": "s"})
    save_checkpoint(folder / "m.safetensors", make_checkpoint(mpp=8.0))
    (folder / "labels.csv").write_text(LABELS)
    (folder / "lesions.csv").write_text(LESIONS)
    (folder / "truth.csv").write_text("slide,label\n" + "".join(f"t{n},{label.value}\n" for n, label in kinds()))
    (folder / "guess.csv").write_text("".join(f"t{n},0.{n + 1}\n" for n, _ in kinds()))
    (folder / "encoder.pt2").write_text("none")
    return folder


def kinds() -> list[tuple[int, SlideLabel]]:
    return list(enumerate(SlideLabel))


@pytest.fixture
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the inputs, which is the working directory."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(command: str, *, caught: bool = True) -> Result:
    return CliRunner().invoke(app, command.split(), catch_exceptions=caught)


def tree(folder: Path) -> dict[str, object]:
    """Everything below a folder: the bytes of files, where links lead, and the kind of anything else."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> object:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else stat.S_IFMT(path.lstat().st_mode)


FILES = [
    ("tissue slides/s.tif -o {}", ".png"),
    ("tissue slides/s.tif -o {}", ".tif"),
    ("heatmap slides/s.tif -m m.safetensors -o {}", ".zarr"),
    ("heatmap slides/s.tif -m m.safetensors -o new.zarr --overlay {}", ".jpg"),
    ("heatmap slides/s.tif -m m.safetensors -o new.zarr --tiff {}", ".tif"),
    ("heatmap slides/s.tif -m m.safetensors -o new.zarr --tiff8 {}", ".tif"),
    ("label lesions.csv -o {}", ".csv"),
    ("label --train heatmaps labels.csv -o {}", ".json"),
    ("stage labels.csv -o {}", ".csv"),
    ("convert slides/s.tif {}", ".tif"),
    ("convert drawn/s.xml {}", ".geojson"),
    ("convert drawn/s.xml {}", ".xml"),
    ("mask drawn/s.xml --slide slides/s.tif -o {}", ".tif"),
    ("patches slides drawn -r labels.csv --mpp 8 --size 32 -o {}", ".parquet"),
    ("patches slides drawn -r labels.csv --mpp 8 --size 32 -o {}", ".zarr"),
    ("train new.parquet -o {}", ".safetensors"),
    ("mil train heatmaps labels.csv -o {}", ".safetensors"),
    ("model import m.safetensors --layout monai -o {}", ".safetensors"),
    ("submission write stages heatmaps -o {}", ".csv"),
    ("submission write slides heatmaps -o {}", ".csv"),
    ("score kappa labels.csv labels.csv --picture {}", ".pdf"),
    ("score labels labels.csv labels.csv --picture {}", ".png"),
    ("score auc truth.csv guess.csv --picture {}", ".tiff"),
    ("score froc drawn heatmaps --picture {}", ".jpeg"),
]
FOLDERS = [
    "lesions heatmaps -o {}",
    "run slides -m m.safetensors -o {}",
    "features slides -e encoder.pt2 --mpp 8 --size 32 -o {}",
    "mil apply m.safetensors heatmaps -o {}",
    "mask drawn/s.xml --slides slides -o {}",
    "patches slides drawn -r labels.csv --mpp 8 --size 32 -o {}",
    "submission write lesions heatmaps -o {}",
    "review heatmaps labels.csv -o {}",
    "cross-validate slides -a drawn -r labels.csv -o {}",
    "phantom {}",
    "demo -o {}",
]


def made_by_others(folder: Path, suffix: str) -> Iterator[Path]:
    """Everything that can be in the way of a file with this suffix; a command waits for none of it."""
    for name in ("text", "empty", "target"):
        (folder / f"{name}{suffix}").write_text("" if name == "empty" else "mine\n")
    (folder / f"link{suffix}").symlink_to(folder / f"target{suffix}")
    (folder / f"dangling{suffix}").symlink_to(folder / "nowhere")
    os.mkfifo(folder / f"fifo{suffix}")
    (folder / f"folder{suffix}").mkdir()
    (folder / f"folder{suffix}" / "text.txt").write_text("mine\n")
    (folder / f"bare{suffix}").mkdir()
    yield from (folder / f"{name}{suffix}" for name in ("text", "link", "dangling", "fifo", "folder", "bare"))


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
@pytest.mark.parametrize(("command", "suffix"), FILES)
def test_nothing_in_the_way_of_a_file_is_touched(command: str, suffix: str, overwrite: str, folder: Path) -> None:
    targets = list(made_by_others(folder, suffix))
    before = tree(folder)
    for target in targets:
        done = call(command.format(target) + overwrite)
        assert isinstance(done.exception, OutputExistsError | OutputNameError), (target, done.exception, done.output)
        assert tree(folder) == before


@pytest.mark.parametrize(("command", "suffix"), FILES)
def test_nothing_is_reached_through_a_folder_to_come(command: str, suffix: str, folder: Path) -> None:
    """``new/../a`` is a, as soon as ``new`` is made for it."""
    (folder / f"text{suffix}").write_text("mine\n")
    before = tree(folder)
    for name in (f"text{suffix}", "slides/s.tif", "labels.csv"):
        done = call(command.format(f"new/../{name}"))
        assert isinstance(done.exception, OutputExistsError | OutputNameError | ConfigurationError), done.output
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["https://host/new{}", "s3:/bucket/new{}", "a" * 212 + "{}", "b" * 256 + "/new{}"])
@pytest.mark.parametrize(("command", "suffix"), [*FILES, *((one, "") for one in FOLDERS)])
def test_what_no_file_can_be_called_is_refused_before_the_work(
    command: str, suffix: str, name: str, folder: Path
) -> None:
    before = tree(folder)
    target = name.format(suffix or "_results")
    done = call(command.format(target))
    assert isinstance(done.exception, OutputNameError), (done.exception, done.output)
    assert tree(folder) == before


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
@pytest.mark.parametrize("command", FOLDERS)
def test_nothing_in_a_folder_of_others_is_touched(command: str, overwrite: str, folder: Path) -> None:
    others = folder / "others"
    others.mkdir()
    list(made_by_others(others, ".csv"))
    for name in ("s.geojson", "s.xml", "s_mask.tif", "review.html", "lesions.csv", "quarantine.csv", "truth.json"):
        (others / name).write_text("mine\n")
    for name in (".old.old", ".mine.work", ".mine.partial", ".lock", "pictures", "images"):
        (others / name).mkdir()
        (others / name / "patient_000_node_0.tif").write_text("mine\n")
    before = tree(others)
    has_flag = "overwrite" in call(" ".join(word for word in command.split() if word.isalpha()) + " --help").output
    done = call(command.format(others) + (overwrite if has_flag else ""))
    assert done.exit_code not in (0, 3)
    assert tree(others) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_is_not_written_over_a_file_or_an_input(command: str, folder: Path) -> None:
    (folder / "file").write_text("mine\n")
    os.mkfifo(folder / "fifo")
    (folder / "heatmaps" / "DONE.json").write_text("{}")
    before = tree(folder)
    used = [name for name in ("slides", "drawn", "heatmaps") if name in command.split()]
    for target in ["file", "fifo", *used, *(f"./x/../{name}" for name in used), *(["."] if used else [])]:
        (folder / "x").mkdir(exist_ok=True)
        done = call(command.format(target))
        assert isinstance(done.exception, OutputExistsError), (target, done.exception, done.output)
        (folder / "x").rmdir()
        assert tree(folder) == before


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("tissue slides/s.tif -o {}", "slides/s.tif"),
        ("convert slides/s.tif {}", "slides/s.tif"),
        ("heatmap slides/s.tif -m m.safetensors -o new.zarr --tiff {}", "slides/s.tif"),
        ("stage labels.csv -o {}", "labels.csv"),
        ("stage lesions.csv --sites labels.csv -o {}", "labels.csv"),
        ("label lesions.csv --heatmaps heatmaps -o {}", "lesions.csv"),
        ("train a.parquet --start m.safetensors -o {}", "m.safetensors"),
        ("mask drawn/s.xml --slide slides/s.tif -o {}", "slides/s.tif"),
        ("submission write stages results -o {}", "results/stages.csv"),
        ("convert drawn/s.xml {}", "drawn/s.xml"),
    ],
)
def test_an_input_is_never_an_output_by_any_name(command: str, source: str, folder: Path) -> None:
    (folder / "results").mkdir()
    for name in ("run.json", "stages.csv"):
        (folder / "results" / name).write_text(LABELS)
    suffix = Path(source).suffix
    (folder / f"hard{suffix}").hardlink_to(folder / source)
    (folder / f"soft{suffix}").symlink_to(folder / source)
    before = tree(folder)
    names = [source, f"./slides/../{source}", str(folder / source), f"soft{suffix}"]
    for name in names if "results" in source else [*names, f"hard{suffix}"]:
        done = call(command.format(name) + " --overwrite")
        assert isinstance(done.exception, OutputExistsError), (name, done.exception, done.output)
        assert tree(folder) == before


@pytest.mark.parametrize(
    ("command", "others"),
    [
        ("label lesions.csv -o new.csv", "new.rule.json"),
        ("label --train heatmaps labels.csv -o new.json", "new.png"),
        ("mil train heatmaps labels.csv -o new.safetensors", "new.unseen.csv"),
        ("train a.parquet -o labels.safetensors", "labels.csv"),
        ("train a.parquet -o new.safetensors", "new.learning.png"),
        ("train a.parquet -o new.safetensors --rounds 2", "new.round2.parquet"),
        ("patches slides drawn -r labels.csv --mpp 8 --size 32 -o new.parquet", "new_contact_sheet.png"),
    ],
)
def test_what_is_written_beside_an_output_obeys_the_same_rule(command: str, others: str, folder: Path) -> None:
    if not (folder / others).exists():
        (folder / others).write_text("mine\n")
    before = tree(folder)
    for overwrite in ("", " --overwrite"):
        assert isinstance(call(command + overwrite).exception, OutputExistsError)
        assert tree(folder) == before


@pytest.mark.parametrize(
    "command",
    [
        "tissue slides/s.tif -o new.jpg",
        "tissue slides/s.tif -o new.csv",
        "heatmap slides/s.tif -m m.safetensors -o new.png",
        "heatmap slides/s.tif -m m.safetensors -o new.zarr --overlay new.svg",
        "heatmap slides/s.tif -m m.safetensors -o new.zarr --tiff new.png",
        "label lesions.csv -o new.json",
        "label --train heatmaps labels.csv -o new.csv",
        "stage labels.csv -o new.json",
        "convert drawn/s.xml new.csv",
        "train a.parquet -o new.csv",
        "convert slides/s.tif new.png",
        "run slides -m m.safetensors -o new.csv",
        "lesions heatmaps -o new.csv",
        "score kappa labels.csv labels.csv --picture new.svg",
        "score kappa labels.csv labels.csv --picture new",
        "submission write stages heatmaps -o new.zip",
    ],
)
def test_a_suffix_is_obeyed_or_refused_before_the_work(command: str, folder: Path) -> None:
    before = tree(folder)
    assert isinstance(call(command).exception, OutputNameError)
    assert tree(folder) == before


PATCHES = "patches slides drawn -r labels.csv --mpp 8 --size 32 --tumour 2 --normal 2 --workers 1"
QUICK = [
    ("tissue slides/s.tif -o new.png", "new.png"),
    ("tissue slides/s.tif -o new.tif", "new.tif"),
    ("label lesions.csv -o new.csv", "new.csv"),
    ("stage labels.csv -o new.csv", "new.csv"),
    ("convert slides/s.tif new.tif", "new.tif"),
    ("convert slides/s.tif new.tif --tissue-only", "new.tif"),
    ("convert drawn/s.xml new.geojson", "new.geojson"),
    ("convert drawn/s.xml new.imagescope.xml", "new.imagescope.xml"),
    ("convert drawn/s.xml new.xml", "new.xml"),
    ("mask drawn/s.xml --slide slides/s.tif -o new.tif", "new.tif"),
    ("mask drawn/s.xml --slides slides -o masks --workers 1", "masks/s_mask.tif"),
    ("lesions heatmaps -o new", "new/s.geojson"),
    (f"{PATCHES} -o new.parquet", "new.parquet"),
    (f"{PATCHES} -o new.zarr", "new.zarr/DONE.json"),
    ("score kappa labels.csv labels.csv --resamples 0 --picture new.png", "new.png"),
    ("score labels labels.csv labels.csv --picture new.pdf", "new.pdf"),
    ("score auc truth.csv guess.csv --resamples 0 --picture new.jpg", "new.jpg"),
    ("score auc truth.csv guess.csv --resamples 0 --picture new.tif", "new.tif"),
]


@pytest.mark.parametrize(("command", "made"), QUICK)
def test_its_own_output_is_replaced_only_if_asked(command: str, made: str, folder: Path) -> None:
    assert call(command, caught=False).exit_code == 0
    before = tree(folder)
    assert "--overwrite" in str(call(command).exception)
    assert tree(folder) == before
    (folder / made).touch()
    identity = (folder / made).stat().st_ino
    done = call(f"{command} --overwrite", caught=False)
    assert done.exit_code == 0
    assert (folder / made).stat().st_ino != identity
    assert tree(folder) == before  # the same inputs give the same bytes


@pytest.mark.parametrize("flag", ["--overlay new.png", "--overlay new.pdf", "--tiff new.tif", "--tiff8 new.tif"])
def test_a_heatmap_of_the_same_slide_and_model_is_kept(
    flag: str, folder: Path, make_checkpoint: Callable[..., Any]
) -> None:
    command = "heatmap slides/s.tif -m m.safetensors -o new.zarr --device cpu"
    assert call(command, caught=False).exit_code == 0
    before, record = tree(folder / "new.zarr"), (folder / "new.zarr" / "DONE.json").stat().st_mtime_ns
    again = call(f"{command} {flag}", caught=False)
    assert again.exit_code == 0
    assert "exists already" in again.stderr
    assert (folder / flag.split()[1]).stat().st_size > 500
    assert (folder / "new.zarr" / "DONE.json").stat().st_mtime_ns == record
    save_checkpoint(folder / "m.safetensors", make_checkpoint(mpp=8.0, seed=1))
    assert "--overwrite" in str(call(command).exception)
    assert tree(folder / "new.zarr") == before
    assert call(f"{command} --overwrite", caught=False).exit_code == 0
    assert tree(folder / "new.zarr") != before


def test_a_damaged_heatmap_of_the_same_slide_is_made_again(folder: Path) -> None:
    command = "heatmap slides/s.tif -m m.safetensors -o new.zarr --device cpu"
    assert call(command, caught=False).exit_code == 0
    before = tree(folder / "new.zarr")
    next((folder / "new.zarr" / "probability").rglob("c/*/*")).unlink()
    assert call(command, caught=False).exit_code == 0
    assert tree(folder / "new.zarr") == before


def test_lesions_leaves_only_outlines_that_its_table_lists(folder: Path) -> None:
    shutil.copytree(folder / "heatmaps" / "s.zarr", folder / "second" / "t.zarr")
    assert call("lesions heatmaps -o new", caught=False).exit_code == 0
    (folder / "new" / "mine.xml").write_text("mine")
    assert call("lesions second -o new --overwrite", caught=False).exit_code == 0
    assert sorted(path.name for path in (folder / "new").glob("[!.]*")) == sorted(
        ["lesion_features.csv", "lesions.csv", "lesions.json", "mine.xml", "t.geojson", "t.xml"]
    )


def test_lesions_replaces_no_outlines_that_someone_drew(folder: Path) -> None:
    assert call("lesions heatmaps -o new", caught=False).exit_code == 0
    shutil.copytree(folder / "heatmaps" / "s.zarr", folder / "second" / "t.zarr")
    shutil.copy(folder / "drawn" / "s.xml", folder / "new" / "t.xml")
    before = tree(folder)
    assert isinstance(call("lesions second -o new --overwrite").exception, OutputExistsError)
    assert tree(folder) == before


def test_a_record_of_lesions_names_only_files_of_its_folder(folder: Path) -> None:
    assert call("lesions heatmaps -o new", caught=False).exit_code == 0
    (folder / "new" / "lesions.json").write_text('{"settings": {}, "outlines": ["../labels.csv", "/etc/hosts", ".."]}')
    for name in ("s.xml", "s.geojson"):
        (folder / "new" / name).unlink()
    assert call("lesions heatmaps -o new --overwrite", caught=False).exit_code == 0
    assert (folder / "labels.csv").read_text() == LABELS


def test_two_outputs_of_one_name_are_refused(folder: Path) -> None:
    command = "heatmap slides/s.tif -m m.safetensors -o new.zarr --overlay a.tif --tiff ./a.tif"
    assert isinstance(call(command).exception, OutputExistsError)
    assert not (folder / "new.zarr").exists()


@pytest.mark.parametrize("target", ["results/new.csv", "results/stages.csv", "results/lesions/new.csv"])
def test_what_a_run_made_is_replaced_by_no_other_command(target: str, folder: Path) -> None:
    """A new file may lie beside it, if the run is not what is read."""
    for name in ("run.json", "stages.csv", "lesions/new.csv"):
        (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "results" / name).write_text(LABELS)
    before = tree(folder)
    done = call(f"stage labels.csv -o {target} --overwrite")
    assert (done.exit_code == 0) == (target not in before)
    assert {name: content for name, content in tree(folder).items() if name in before} == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("target", ["heatmaps/s.zarr/x.csv", "heatmaps/s.zarr/deep/x.csv"])
def test_nothing_is_written_into_an_artefact(target: str) -> None:
    assert isinstance(call(f"stage labels.csv -o {target}").exception, OutputExistsError)


def test_home_is_expanded_in_every_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir("/")
    assert call("tissue ~/slides/s.tif --output=~/t.png", caught=False).exit_code == 0
    assert call("mask ~/drawn/*.xml --slides ~/slides -o ~/masks --workers 1", caught=False).exit_code == 0
    assert call("lesions ~/heatmaps -o ~/new", caught=False).exit_code == 0
    assert call("info ~/slides/s.tif", caught=False).exit_code == 0
    assert {"t.png", "masks", "new"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("target", [".", ".."])
@pytest.mark.parametrize("command", ["lesions {}/heatmaps -o {}", "mask {}/drawn/s.xml --slide {}/slides/s.tif -o {}"])
def test_a_folder_named_by_dots_works(
    command: str, target: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path_factory.mktemp("out")
    (out / "sub").mkdir()
    monkeypatch.chdir(out if target == "." else out / "sub")
    words = command.replace("-o {}", f"-o {target}").format(folder, folder).split()
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert {path.name for path in out.iterdir()} - {"sub"}


@pytest.mark.parametrize("target", [".", "..", "/"])
@pytest.mark.parametrize("command", [command for command, _ in FILES if command.split()[0] not in ("mask", "patches")])
def test_a_file_named_by_dots_is_refused(command: str, target: str, folder: Path) -> None:
    before = tree(folder)
    assert isinstance(call(command.format(target)).exception, OutputExistsError | OutputNameError)
    assert tree(folder) == before


def test_every_command_checks_its_outputs() -> None:
    without = set()
    groups = {"": app} | {f"{one.name} ": one.typer_instance for one in app.registered_groups}
    for group, commands in groups.items():
        assert commands is not None
        for command in commands.registered_commands:
            assert command.callback is not None
            name = f"{group}{command.name or command.callback.__name__}"
            hints = get_type_hints(command.callback, include_extras=True)
            marked = [one for one, hint in hints.items() if any(isinstance(mark, Output) for mark in get_args(hint))]
            assert hasattr(command.callback, "__signature__"), f"{name} is not guarded"
            named = {"output", "target", "overlay", "tiff", "tiff8", "picture"}.intersection(hints)
            assert name == "verify" or not named.difference(marked), name
            without |= set() if marked else {name}
    assert without == {"info", "verify", "submission check", "doctor", "encoders"}


def test_an_empty_file_is_replaced_if_asked(tmp_path: Path) -> None:
    kind = FileKind(name="a thing", suffixes=(".x",), is_one=begins(b"thing"))
    path = tmp_path / "a.x"
    path.touch()
    kind.refuse_others(path, overwrite=True)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        kind.refuse_others(path, overwrite=False)
    path.write_bytes(b"other")
    with pytest.raises(OutputExistsError, match=r"a file of another kind, not a thing, and is never replaced"):
        kind.refuse_others(path, overwrite=True)
    assert what_is(tmp_path) == "a folder"
