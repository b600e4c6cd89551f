"""Faults of training: what diverges, what is too large, who holds the output, and what processes tell each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_training import FP16, TINY, fit, patches
from two_processes import started_twice
from typer.testing import CliRunner

from annotations.patches.batch import PatchBatch
from annotations.patches.zarr_store import read_patches, write_patches
from staging import cli
from staging.errors import ConfigurationError
from staging.training.plan import TrainingPlan, network_of
from staging.training.rounds import _alone
from wsi.charts import Curve, curve_chart
from wsi.cnn import learner as learning
from wsi.cnn.architectures import NETWORKS
from wsi.cnn.checkpoint import Checkpoint, save_checkpoint
from wsi.cnn.curves import learning_picture
from wsi.cnn.learner import DivergedError, Learner
from wsi.cnn.method import Method
from wsi.cnn.network import Architecture
from wsi.cnn.ranks import Ranks
from wsi.cnn.resuming import Progress
from wsi.cnn.training_data import TrainingData
from wsi.errors import OutputExistsError, OutputInUseError, PathologyError
from wsi.lock import OutputLock
from wsi.patches.feeding import HeldPatches

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of four patients, of whom two have tumour."""
    path = tmp_path_factory.mktemp("store") / "patches.zarr"
    images, targets = patches(32, 112)
    batches = [
        PatchBatch(
            slide=f"slide_{number}",
            patient=f"patient_{number}",
            centre=None,
            mpp=8.0,
            images=images[number::4],
            targets=targets[number::4],
            x=np.arange(8.0) * 1000,
            y=np.zeros(8),
            kinds=("lesion" if number % 2 else "normal",) * 8,
        )
        for number in range(4)
    ]
    write_patches(path, batches)
    return path


@pytest.mark.parametrize("method", [Method(), Method(average=0.9), FP16])
@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_what_diverges_is_an_error_and_leaves_no_progress(tmp_path: Path, method: Method, rate: float) -> None:
    with pytest.raises(DivergedError, match=r"training has diverged: .* lower learning rate"):
        fit(learning_rate=rate, method=method, judges=0, resume=Progress(tmp_path / "progress", every=1))
    assert not list(tmp_path.iterdir())
    fit(resume=Progress(tmp_path / "progress"))


def test_a_pass_whose_judgement_is_not_finite_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, odd, whole = 0, 1, Learner.margins

    def margins(self: Learner, chosen: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        found = whole(self, chosen)
        return np.full_like(found, np.nan) if calls <= odd else found

    monkeypatch.setattr(Learner, "margins", margins)
    result = fit()
    assert result.history[0].judges_loss == np.inf
    assert result.history[0].judges_auc is None
    assert result.best > 0
    assert learning_picture(result).std() > 1
    calls, odd = 0, 99
    with pytest.raises(DivergedError, match="the network's output is not finite"):
        fit(resume=Progress(tmp_path / "progress"))
    assert not list(tmp_path.iterdir())


def test_the_picture_tells_held_out_patients_of_one_class_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def noted(curves: Sequence[Curve], *, notes: Sequence[str], **axes: Any) -> NDArray[np.uint8]:
        told.extend(notes)
        return curve_chart(curves, notes=notes, **axes)

    monkeypatch.setattr("wsi.cnn.curves.curve_chart", noted)
    learning_picture(fit(judges=["0"]))
    assert "held-out patients show one class only" in told
    assert "nothing was held out" not in told
    told.clear()
    learning_picture(fit(judges=0))
    assert "nothing was held out" in told


def test_one_batch_that_runs_over_in_fp16_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    once = iter([True])

    def gradients(self: Learner, *arguments: Any, **named: Any) -> Any:
        loss, found = whole(self, *arguments, **named)
        return (
            (float("inf"), tuple(torch.full_like(one, torch.inf) for one in found))
            if next(once, False)
            else (
                loss,
                found,
            )
        )

    whole = Learner._gradients
    monkeypatch.setattr(Learner, "_gradients", gradients)
    result = fit(method=FP16)
    assert all(np.isfinite(weight).all() for weight in result.checkpoint.network.weights().values())


def test_cudnn_computes_with_equal_bits_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def flags() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32

    def forward(self: Learner, network: Any, images: torch.Tensor) -> torch.Tensor:
        seen.add((network.training, *flags()))
        return whole(self, network, images)

    seen: set[tuple[bool, ...]] = set()
    before, whole = flags(), Learner._forward
    monkeypatch.setattr(Learner, "_forward", forward)
    fit()
    assert seen == {(True, True, True, False, False), (False, True, True, False, False)}
    assert flags() == before


@pytest.mark.parametrize("name", ["_gradients", "_forward"])
def test_too_little_memory_of_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Learner, name, refuse)
    with pytest.raises(PathologyError, match=r"memory is too small for a batch .*fewer patches per step"):
        fit()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_gpus_without_bf16_compute_in_fp32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert learning._autocast(Method(), torch.device("cuda")) == expected
    assert learning._autocast(Method(precision="bf16"), torch.device("cuda")) == torch.bfloat16
    assert learning._autocast(Method(), torch.device("cpu")) == torch.float32


class Together:
    """Two processes of which this is one; notes the memory layout of what is added."""

    rank, world, is_first = 1, 2, False

    def __init__(self) -> None:
        self.strides: list[tuple[int, ...]] = []

    def add(self, values: torch.Tensor) -> torch.Tensor:
        self.strides.append(values.stride())
        return values


@pytest.mark.parametrize("batch", [16, 8])
def test_gradients_are_added_in_one_layout_also_by_who_has_none(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    images, targets = patches()
    source = HeldPatches(images, targets, mpp=2.0)
    data = TrainingData.split(source, judges=0, architecture=TINY, rng=np.random.default_rng(0))
    network, ranks = TINY.build(mean=(0, 0, 0), std=(1, 1, 1), seed=0), Together()
    whole = Learner._gradients

    def gradients(self: Learner, *arguments: Any, **named: Any) -> Any:
        loss, found = whole(self, *arguments, **named)
        return loss, tuple(one.contiguous() for one in found)

    monkeypatch.setattr(Learner, "_gradients", gradients)
    with ThreadPoolExecutor(1) as pool:
        learner = Learner(
            network,
            data,
            method=Method(learning_rate=1e-3),
            device=torch.device("cpu"),
            pool=pool,
            ranks=ranks,  # type: ignore[arg-type]
            steps=3,
        )
        chosen = np.arange(batch)
        learner.step(chosen, images[chosen[learner.owners(batch) == 1]], 0)
    expected = [parameter.stride() for parameter in network.parameters()]
    assert any(len(one) == 4 and one[1] == 1 for one in expected)
    assert ranks.strides[: len(expected)] == expected


def test_a_second_call_on_one_output_is_refused(store: Path, tmp_path: Path) -> None:
    model, command = tmp_path / "m.safetensors", ["train", str(store), "--device", "cpu", "--epochs", "1", "-o"]
    with _alone(model):
        for same in (model, tmp_path / "m"):
            done = CliRunner().invoke(cli.app, [*command, str(same)])
            assert type(done.exception) is OutputInUseError, done.output
            assert str(done.exception).startswith(f"{same}: is in use by process {os.getpid()}")
        assert not model.exists()
        assert CliRunner().invoke(cli.app, [*command, str(tmp_path / "other.safetensors")]).exit_code == 0
    assert CliRunner().invoke(cli.app, [*command, str(model)]).exit_code == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_others_in_the_place_of_the_lock_is_kept(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".m.training"
    (folder / "sub").mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    command = ["train", str(store), "--device", "cpu", "--epochs", "1", "-o", str(tmp_path / "m.safetensors")]
    done = CliRunner().invoke(cli.app, command)
    assert type(done.exception) is OutputExistsError
    assert "holds sub, which is not of sentinode train" in str(done.exception)
    assert sorted(one.name for one in folder.iterdir()) == ["sub", "thesis.txt"]
    folder.rename(tmp_path / "other")
    folder.symlink_to(tmp_path / "other")
    assert type(CliRunner().invoke(cli.app, command).exception) is OutputExistsError
    assert sorted(one.name for one in (tmp_path / "other").iterdir()) == ["sub", "thesis.txt"]
    folder.unlink()
    folder.mkdir()
    (folder / ".lock").write_bytes(b"")  # of a killed call
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert not folder.exists()


def test_what_would_end_a_training_is_told_at_once(store: Path, tmp_path: Path) -> None:
    command = ["train", str(store), "--device", "cpu", "--epochs", "1", "-o"]
    for arguments, reason in (
        ([str(tmp_path)], "is a folder"),
        ([str(tmp_path / "m"), str(store.parent / "." / store.name)], "is given twice"),
        (
            [str(tmp_path / "m"), str(store.parent.parent / store.parent.name / "x" / ".." / store.name)],
            "is given twice",
        ),
    ):
        done = CliRunner().invoke(cli.app, [*command, *arguments])
        assert type(done.exception) in (ConfigurationError, OutputExistsError)
        assert reason in str(done.exception)
    assert not list(tmp_path.iterdir())


class BugError(ValueError):
    """A fault of the program, not of the patches."""


@pytest.mark.parametrize("bug", [ValueError("shapes (3,) and (4,) do not fit"), BugError("odd")])
def test_other_faults_are_not_taken_for_the_patches(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: ValueError
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise bug

    command = ["train", str(store), "-o", str(tmp_path / "m"), "--device", "cpu", "--epochs", "1"]
    for step in ("wsi.cnn.training_data._class_weights", "wsi.cnn.learner.Learner.step"):
        with monkeypatch.context() as patched:
            patched.setattr(step, fail)
            assert CliRunner().invoke(cli.app, command).exception is bug


def test_a_start_of_three_classes_is_at_fault_itself(store: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    three = Architecture(TINY.layers, classes=3).build().eval()
    save_checkpoint(start, Checkpoint(network=three, mpp=8.0, class_names=("normal", "tumour", "other")))
    done = CliRunner().invoke(cli.app, ["train", str(store), "-o", str(tmp_path / "m"), "--start", str(start)])
    assert type(done.exception) is ConfigurationError
    assert str(done.exception).startswith(f"{start}: has 3 classes")


def test_it_is_told_that_nobody_could_be_held_out(store: Path, tmp_path: Path) -> None:
    whole = read_patches(store)
    one = whole.patients == "patient_1"
    images, targets = np.concatenate([whole.images[one]] * 2), np.concatenate([whole.targets[one]] * 2)
    targets[: one.sum()] = 0
    batch = PatchBatch(
        slide="alone",
        patient="alone",
        centre=None,
        mpp=8.0,
        images=images,
        targets=targets,
        x=1000.0 * np.arange(float(len(images))),
        y=np.zeros(len(images)),
        kinds=("normal",) * len(images),
    )
    write_patches(tmp_path / "one.zarr", [batch])
    command = ["train", str(tmp_path / "one.zarr"), "-o", str(tmp_path / "m"), "--device", "cpu", "--epochs", "1"]
    assert "no patient could be held out" in CliRunner().invoke(cli.app, command).stderr
    for again in ([*command, "--held-out", "0"], ["train", str(store), *command[2:]]):
        done = CliRunner().invoke(cli.app, [*again, "--overwrite"])
        assert (done.exit_code, "no patient could be held out" in done.stderr) == (0, False)


@pytest.mark.parametrize(("network", "expected"), [("small", 4e-3), ("resnet18", 1e-3)])
def test_a_start_has_the_learning_rate_of_itsnetwork_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: str, expected: float
) -> None:
    """Not that of ``--network``, which a start is given in place of."""
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, Checkpoint(network=NETWORKS[network].build().eval(), mpp=8.0))
    plans: list[TrainingPlan] = []

    def keep(plan: TrainingPlan, **_: Any) -> dict[str, Any]:
        plans.append(plan)
        return {}

    monkeypatch.setattr("staging.training.rounds.run_training", keep)
    command = ["train", "p", "-o", str(tmp_path / "m"), "--start", str(start)]
    for options in ([], ["--learning-rate", "0.5"]):
        assert CliRunner().invoke(cli.app, [*command, *options]).exit_code == 0
    found: Any = SimpleNamespace(patches=SimpleNamespace(size_px=448, mpp=8.0))
    for plan, rate in zip(plans, (expected, 0.5), strict=True):
        begun = network_of(plan, found)
        assert isinstance(begun, Checkpoint)
        assert plan.method.learning_rate_of(begun.architecture) == rate


def test_a_lock_that_was_taken_away_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, enter = tmp_path / "m.safetensors", OutputLock.__enter__

    def late(self: OutputLock) -> OutputLock:
        entered = enter(self)
        (tmp_path / ".m.training" / ".lock").unlink()  # as who held it does, between our opening and locking it
        return entered

    monkeypatch.setattr(OutputLock, "__enter__", late)
    with pytest.raises(OutputInUseError, match="until now"), _alone(model):
        pass


def test_what_a_killed_call_left_half_written_is_swept(tmp_path: Path) -> None:
    end = "0a0a0a0a-12-01234567.partial"
    half = tuple(f".{name}.{end}" for name in ("m.progress", "m.safetensors", "m.round2.learning.png", "m"))
    kept = (f".m.other.progress.{end}", f".mm.progress.{end}", "m.progress", ".m.progress.partial")
    for name in (*half, *kept):
        (tmp_path / name).write_bytes(b"")
    with _alone(tmp_path / "m.safetensors"):
        assert {path.name for path in tmp_path.iterdir()} == {*kept, ".m.training"}
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "staging", "train", str(store), "-o", str(tmp_path / "file" / "m.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == cli.EXIT_STORAGE
    assert done.stderr.startswith("sentinode: error: ")
    assert len(done.stderr.splitlines()) == 1


def test_processes_hear_that_the_first_cannot_go_on(store: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    with _alone(model):
        ended = started_twice([sys.executable, "-m", "staging", "train", store, "-o", model, "--device", "cpu"])
    told = [process.stderr for process in ended]
    assert [process.returncode for process in ended] == [cli.EXIT_IN_USE, cli.EXIT_FATAL], told
    assert "is in use by process" in told[0]
    assert "the first process failed" in told[1]
    assert "Traceback" not in "".join(told)


def test_the_end_of_another_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "[/src/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:9132. This is typical. Check\nme"
        )

    monkeypatch.setattr(torch.distributed, "all_reduce", ended)
    monkeypatch.setattr(torch.distributed, "broadcast", ended)
    reason = r"has ended: Connection closed by peer \[127.0.0.1\]:9132 \(see its error\)$"
    with pytest.raises(PathologyError, match=reason):
        Ranks(rank=1, world=2).add(torch.zeros(1))
    with pytest.raises(PathologyError, match=reason):
        Ranks(rank=1, world=2).first_alone(pytest.fail)


def test_one_process_alone_raises_what_it_raised() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Ranks().first_alone(fail)
