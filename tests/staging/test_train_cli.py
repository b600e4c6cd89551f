from __future__ import annotations

import csv
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from two_processes import started_twice
from typer.testing import CliRunner

from annotations.patches.batch import HARD_CHOICE, PatchBatch, draw_patches
from annotations.patches.table import read_patch_table, write_patch_table
from annotations.patches.zarr_store import read_patches, write_patches
from staging.cli import app
from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.commands.cross_validate import cross_validate
from staging.commands.patches import patches as patches_command
from staging.commands.train import train as train_command
from staging.errors import ConfigurationError
from staging.lesions.labels import SlideLabel
from staging.lesions.settings import SMALLEST_UM, peak_of
from staging.phantom import generate_cohort
from staging.training.labelled_cohort import WeightedSlide
from staging.training.mining import MiningPlan
from staging.training.peak import calibrate_peak
from staging.training.plan import TrainingPlan
from staging.training.recipe import CohortRecipe
from staging.training.sources import PatchRecipe
from staging.training.training_progress import TrainingProgress
from wsi.cnn.architectures import NETWORKS
from wsi.cnn.augmentation import LIGHT
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.method import Method
from wsi.cnn.resuming import Progress
from wsi.cnn.training import Epoch, train
from wsi.errors import CheckpointError, OutputExistsError, PathologyError
from wsi.patches.feeding import HeldPatches

pytestmark = pytest.mark.slow  # its fixtures take seconds


def sentinode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "staging", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(kind: type[PathologyError], *arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert type(done.exception) is kind, done.output
    return str(done.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients' slides, and patches of them."""
    folder = tmp_path_factory.mktemp("train")
    generate_cohort(folder, patients=3, centres=(2,), seed=3, mpp=8.0)
    drawing = (
        *("patches", folder / "images", "-a", folder / "annotations", "-r", folder / "stage_labels.csv"),
        *("--mpp", "8", "--size", "112", "--tumour", "6", "--normal", "6", "--workers", "1", "--no-contact-sheet"),
    )
    done = sentinode(*drawing, "-o", folder / "patches.zarr")
    assert done.returncode == 0, done.stderr
    table = folder / "patches.parquet"
    assert CliRunner().invoke(app, [*map(str, (*drawing, "-o", table))]).exit_code == 0
    return folder


def test_training_writes_a_checkpoint_a_log_and_pictures(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    options = ("--epochs", "2", "--augment", "full", "--schedule", "cosine", "--average", "0.9", "--held-out", "0.5")
    done = sentinode("train", folder / "patches.zarr", "-o", model, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    checkpoint = load_checkpoint(model)
    assert told["temperature"] == checkpoint.temperature
    assert len(told["held_out"]) == 1
    assert checkpoint.provenance["method"]["schedule"] == "cosine"
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "model.csv").open())] == ["1", "2"]
    for name in ("model.learning.png", "model.calibration.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.calibration.png",
        "model.csv",
        "model.held_out.csv",
        "model.learning.png",
        "model.safetensors",
    ]
    rows = list(csv.DictReader((tmp_path / "model.held_out.csv").open()))
    assert [row["slide"] for row in rows] == list(told["held_out_slides"])
    assert {row["slide"].rpartition("_node_")[0] for row in rows} == set(told["held_out"])
    assert {row["centre"] for row in rows} == set(told["held_out_centres"])
    whole = next(iter(told["held_out_centres"].values()))
    assert whole["auc"] == pytest.approx(told["held_out_auc"])
    assert whole["cells"] == sum(int(row["cells"]) for row in rows)
    assert f"the held-out patients have {len(rows)} slides" in done.stderr


@pytest.mark.parametrize("source", ["patches.zarr", "patches.parquet"])
def test_a_dry_run_foretells_training(folder: Path, tmp_path: Path, source: str) -> None:
    command = ["train", folder / source, "-o", tmp_path / "model.safetensors", "--device", "cpu", "--epochs", 2]
    command += ["--held-out", 0.5, "--seed", 3, "--batch", 8]

    def called(*more: object) -> dict[str, Any]:
        done = CliRunner().invoke(app, [str(one) for one in (*command, *more)], catch_exceptions=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    foretold = called("--dry-run")
    assert list(tmp_path.iterdir()) == []
    assert (foretold["rounds"], foretold["patients"]) == (1, 3)
    assert foretold["seconds"] > 0
    real = called()
    for name in ("patches", "held_out", "left_out", "streamed", "mpp"):
        assert foretold[name] == real[name]
    assert load_checkpoint(tmp_path / "model.safetensors").provenance["images"] == foretold["patches"]
    checkpoint = (tmp_path / "model.safetensors").stat().st_size
    assert checkpoint < foretold["bytes"] < 12 * checkpoint  # with the file to resume from


def test_a_dry_run_refuses_what_training_would(folder: Path, tmp_path: Path) -> None:
    command = ("train", folder / "patches.zarr", "-o", tmp_path / "m.safetensors", "--dry-run")
    assert "one cell of the network sees" in refused(ConfigurationError, *command, "--network", "resnet34")
    assert "no fold 3" in refused(ConfigurationError, *command, "--fold", "3")
    assert list(tmp_path.iterdir()) == []


def test_rounds_add_false_positives_of_patients_that_are_trained_on(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    cohort = ("--slides", folder / "images", "-a", folder / "annotations", "-r", folder / "stage_labels.csv")
    done = sentinode(
        "train",
        folder / "patches.zarr",
        "-o",
        model,
        *("--device", "cpu", "--epochs", "1", "--rounds", "1", "--hard", "4", "--workers", "1", "--held-out", "0.5"),
        *cohort,
    )
    assert done.returncode == 0, done.stderr
    told, first = json.loads(done.stdout), load_checkpoint(tmp_path / "model.round1.safetensors")
    assert len(first.provenance["held_out"]) == 1
    mined = read_patch_table(tmp_path / "model.round1.parquet")
    patches = read_patches(folder / "patches.zarr")
    assert told["patches"] == len(patches.images) + len(mined)
    assert not set(mined["patient"].tolist()) & set(first.provenance["held_out"])
    assert (mined["tumour_fraction"] == 0).all()
    assert load_checkpoint(model).provenance["images"] == told["patches"]
    assert not list(tmp_path.glob("*.progress"))


def test_the_peak_is_learnt_where_the_slides_are_given(folder: Path, tmp_path: Path) -> None:
    """Without any round, and never from slides of patients who are kept for the test."""
    table, model = tmp_path / "split.parquet", tmp_path / "model.safetensors"
    patches = read_patch_table(folder / "patches.parquet")
    kept = {"patient_040": "train", "patient_041": "validation", "patient_042": "test"}
    write_patch_table(table, patches.with_split(np.array([kept[name] for name in patches["patient"].tolist()])))
    cohort = ("--slides", folder / "images", "-a", folder / "annotations", "-r", folder / "stage_labels.csv")
    command = ("train", table, "-o", model, "--device", "cpu", "--epochs", "1")
    plain = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    without = load_checkpoint(model)
    assert "peak" not in json.loads(plain.stdout)
    assert "peak" not in without.provenance
    again = (*command, *cohort, "--workers", "1", "--overwrite")
    told = CliRunner().invoke(app, [*map(str, again)], catch_exceptions=False)
    found = load_checkpoint(model)
    reference = read_stage_table(folder / "stage_labels.csv")
    trained_on = [slide for slide in find_slides([folder / "images"]) if slide.patient != "patient_042"]
    negative = [slide for slide in trained_on if reference.labels[slide.name] is SlideLabel.NEGATIVE]
    positive = [slide for slide in trained_on if reference.labels[slide.name] is not SlideLabel.NEGATIVE]
    assert {slide.patient for slide in negative} == {"patient_040", "patient_041"}
    judged = [WeightedSlide(slide=one, label=reference.labels[one.name], weight=1.0) for one in (*negative, *positive)]
    learnt = calibrate_peak(judged, model, smallest_um=SMALLEST_UM)
    peak = learnt.value
    assert (learnt.negatives, learnt.positives) == (len(negative), len(positive))
    assert json.loads(told.stdout)["peak"] == found.provenance["peak"] == peak_of(found.provenance) == peak
    assert f"a lesion must reach {peak:.4f}: {learnt.alarms} of {len(negative)} negative slides" in told.stderr
    for name, weights in without.network.weights().items():
        np.testing.assert_array_equal(weights, found.network.weights()[name])
    assert {**without.provenance, "peak": peak} == found.provenance


def test_without_a_negative_slide_no_peak_is_learnt(folder: Path, tmp_path: Path) -> None:
    model, reference = tmp_path / "model.safetensors", tmp_path / "labels.csv"
    reference.write_text((folder / "stage_labels.csv").read_text().replace("negative", "itc"))
    cohort = ("--slides", folder / "images", "-a", folder / "annotations", "-r", reference)
    command = ("train", folder / "patches.zarr", "-o", model, "--device", "cpu", "--epochs", "1", *cohort)
    done = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert "no slide of these patients is labelled negative: the peak is not learnt" in done.stderr
    assert "peak" not in load_checkpoint(model).provenance


def test_a_killed_call_leaves_no_checkpoint_without_its_peak(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.safetensors"
    cohort = ("--slides", folder / "images", "-a", folder / "annotations", "-r", folder / "stage_labels.csv")
    command = [*map(str, ("train", folder / "patches.zarr", "-o", model, "--device", "cpu", "--epochs", "1", *cohort))]

    def killed(*_: Any, **__: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("staging.training.rounds.calibrate_peak", killed)
        CliRunner().invoke(app, command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.csv", "model.progress"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "peak" in load_checkpoint(model).provenance
    assert not (tmp_path / "model.progress").exists()


def test_slides_of_strangers_are_not_searched(folder: Path, tmp_path: Path) -> None:
    strangers = tmp_path / "strangers"
    generate_cohort(strangers, patients=1, centres=(0,), seed=9, mpp=8.0)
    line = refused(
        ConfigurationError,
        *("train", folder / "patches.zarr", "-o", tmp_path / "m.safetensors", "--device", "cpu", "--epochs", "1"),
        *("--rounds", "1", "--slides", strangers / "images", "-a", strangers / "annotations"),
        *("-r", strangers / "stage_labels.csv"),
    )
    assert "is not of a patient in the training set" in line


def test_several_processes_share_the_rounds(folder: Path, tmp_path: Path) -> None:
    """What torchrun starts: the first process looks for mistakes, the other waits, both train on them."""
    arguments = [
        *("train", folder / "patches.zarr", "-o", tmp_path / "model.safetensors", "--held-out", "0.5"),
        *("--device", "cpu", "--epochs", "1", "--rounds", "1", "--hard", "4", "--workers", "1"),
        *("--slides", folder / "images", "-a", folder / "annotations", "-r", folder / "stage_labels.csv"),
    ]
    first, second = started_twice([sys.executable, "-m", "staging", *arguments])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert second.stdout == ""
    assert json.loads(first.stdout)["patches"] > len(read_patches(folder / "patches.zarr").images)
    assert "round 2 of 2" in first.stderr
    assert not list(tmp_path.glob("*.progress"))


def test_a_killed_call_goes_on_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    command = ("train", folder / "patches.zarr", "-o", model, "--device", "cpu")
    whole = CliRunner().invoke(app, [*map(str, command), "--epochs", "2"])
    assert whole.exit_code == 0, whole.output
    assert re.search(r"epoch 1/2: .*, about 0:00:\d\d left\n(.*\n)*epoch 2/2: [^,]*(, held-out [^,]*)*\n", whole.stderr)
    undisturbed = model.read_bytes()
    model.unlink()
    store = read_patches(folder / "patches.zarr")
    with pytest.raises(KeyboardInterrupt):
        train(
            HeldPatches(store.images, store.targets, mpp=store.mpp, patients=store.patients),
            Method(epochs=2, temperature=True),
            device="cpu",
            resume=Progress(tmp_path / "model.progress"),
            on_epoch=interrupt,
        )
    assert "other settings: epochs" in refused(CheckpointError, *command, "--epochs", "3")
    done = CliRunner().invoke(app, [*map(str, command), "--epochs", "2"])
    assert done.exit_code == 0, done.output
    assert re.search(r"epoch 1/2: .* \(by an earlier call\)\n", done.stderr)
    assert model.read_bytes() == undisturbed
    assert "is a checkpoint" in refused(OutputExistsError, *command, "--epochs", "2")
    assert model.read_bytes() == undisturbed


def interrupt(_: Epoch) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_trained_is_wrong_usage(folder: Path, tmp_path: Path) -> None:
    patches, model = folder / "patches.zarr", tmp_path / "m"
    assert "give --slides, --annotations" in refused(ConfigurationError, "train", patches, "-o", model, "--rounds", "1")
    line = refused(ConfigurationError, "train", patches, "-o", model, "-r", folder / "stage_labels.csv")
    assert "give --slides, --annotations and --reference" in line
    line = refused(ConfigurationError, "train", patches, "-o", model, "--network", "resnet18")
    assert "112 px are smaller than the 436 px" in line
    assert "--size 448" in line
    assert "--average is a decay below 1" in refused(
        ConfigurationError, "train", patches, "-o", model, "--average", "1"
    )
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, Checkpoint(network=NETWORKS["small"].build().eval(), mpp=0.5))
    assert "takes 0.5 um/px, but the patches have 8.0" in refused(
        ConfigurationError, "train", patches, "-o", model, "--start", start
    )
    (tmp_path / "m.progress").write_bytes(b"something else")
    assert "m.progress: is not a readable state of a training" in refused(
        CheckpointError, "train", patches, "-o", model, "--epochs", "1"
    )
    assert not model.exists()


def test_tensorboard_that_is_missing_is_said_before_patches_are_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr("staging.training.rounds._Rounds.go", lambda _: pytest.fail("began"))
    line = refused(
        PathologyError, "train", folder / "patches.zarr", "-o", tmp_path / "m", "--tensorboard", tmp_path / "board"
    )
    assert "TensorBoard is not installed" in line


def test_patches_of_one_class_are_wrong_usage(tmp_path: Path) -> None:
    count, side = 4, 112
    batch = PatchBatch(
        slide="a",
        patient="a",
        centre=None,
        mpp=8.0,
        images=np.full((count, side, side, 3), 200, np.uint8),
        targets=np.zeros((count, side, side), np.uint8),
        x=np.zeros(count),
        y=np.zeros(count),
        kinds=("normal",) * count,
    )
    write_patches(tmp_path / "p.zarr", [batch])
    line = refused(ConfigurationError, "train", tmp_path / "p.zarr", "-o", tmp_path / "m")
    assert line.startswith(str(tmp_path / "p.zarr"))
    assert "hold no tumour cell" in line


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


def test_the_librarys_defaults_are_the_command_lines() -> None:
    asked, method, mining = defaults_of(train_command), Method(), MiningPlan()
    for name in ("epochs", "batch", "seed", "learning_rate", "schedule", "average", "patience", "temperature"):
        assert asked[name] == getattr(method, name), name
    assert (asked["precision"], asked["compiled"], asked["augment"]) == (method.precision, False, "light")
    assert (method.compiler, method.augmentation) == (None, LIGHT)
    assert asked["hard"] == mining.hard == CohortRecipe().hard
    library = defaults_of(train)
    assert NETWORKS[asked["network"]] == library["network"]
    assert (asked["held_out"], asked["device"]) == (library["judges"], library["device"])
    plan = {field.name: field.default for field in fields(TrainingPlan)}
    for name in ("network", "start", "fold", "on_bad_tile", "smallest_um", "slide_mpp", "device", "workers"):
        assert asked[name] == plan[name], name
    recipe, validated = CohortRecipe(), defaults_of(cross_validate)
    for name in ("mpp", "epochs", "first_epochs", "seed", "smallest_um", "slide_mpp", "device"):
        assert validated[name] == getattr(recipe, name), name
    assert validated["size"] == recipe.size_px
    assert defaults_of(draw_patches)["hard_choice"] == HARD_CHOICE
    assert {field.name: field.default for field in fields(PatchRecipe)}["hard_choice"] == HARD_CHOICE
    (option,) = (one for one in inspect.get_annotations(patches_command, eval_str=True)["hard_choice"].__metadata__)
    assert option.show_default == HARD_CHOICE


def test_progress_is_told_in_lines_where_nobody_watches(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.bars.TELL_EVERY_S", 0.05)
    told, deadline = "", time.monotonic() + 20
    with TrainingProgress() as progress:
        progress.step(16, 3200)
        progress.step(1616, 3200)
        while "left" not in told and time.monotonic() < deadline:
            time.sleep(0.05)
            told += capfd.readouterr().err
        progress.step(3200, 3200)
        progress.say("epoch [1]/2")
    assert re.search(r"patches of this pass: 1,616 of 3,200, [\d,]+ patches/s, about 0:00:\d\d left", told)
    assert "epoch [1]/2" in capfd.readouterr().err
