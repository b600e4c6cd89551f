from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_training import EVERYTHING, METHODS, fit
from two_processes import started_twice

from wsi.cnn.checkpoint import Checkpoint, load_checkpoint
from wsi.cnn.method import Method
from wsi.cnn.resuming import Progress, load_progress, save_progress
from wsi.cnn.training import Epoch
from wsi.errors import CheckpointError

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import small_training, wsi.cnn.training as training
from wsi.cnn.resuming import Progress
write, count = training.save_progress, 0
def save_progress(*arguments):
    global count
    write(*arguments)
    count += 1
    if count == {writings}:
        os.kill(os.getpid(), signal.SIGKILL)
training.save_progress = save_progress
small_training.fit(method=small_training.METHODS[{name!r}], resume=Progress(Path({path!r}), every=1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "writings"), [("plain", 2), ("plain", 3), ("everything", 5), ("fp16", 4)])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, name: str, writings: int) -> None:
    path = tmp_path / "progress"
    code = KILLED.format(tests=str(Path(__file__).parents[1]), writings=writings, name=name, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = path.read_bytes()
    told: list[Epoch] = []
    undisturbed = fit(method=METHODS[name])
    resumed = fit(method=METHODS[name], resume=Progress(path), on_epoch=told.append, workers=1)
    assert resumed.checkpoint.digest == undisturbed.checkpoint.digest
    assert resumed.history == undisturbed.history == tuple(told)
    assert resumed.best == undisturbed.best
    np.testing.assert_array_equal(resumed.margins, undisturbed.margins)
    assert path.read_bytes() != left


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(resume=Progress(tmp_path / "progress"))
    before = (tmp_path / "progress").read_bytes()
    again = fit(resume=Progress(tmp_path / "progress"))
    assert again.checkpoint.digest == first.checkpoint.digest
    assert (tmp_path / "progress").read_bytes() == before


@pytest.mark.slow
def test_how_often_is_written_has_no_influence(tmp_path: Path) -> None:
    often = fit(resume=Progress(tmp_path / "often", every=1), method=EVERYTHING)
    assert often.checkpoint.digest == fit(method=EVERYTHING).checkpoint.digest


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"seed": 1}, "held_out, seed"), ({"epochs": 4}, "epochs"), ({"method": Method(average=0.5)}, "method")],
)
def test_progress_of_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    fit(resume=Progress(tmp_path / "progress"))
    with pytest.raises(CheckpointError, match=f"other settings: {names}") as caught:
        fit(**{"resume": Progress(tmp_path / "progress")} | changes)
    assert str(tmp_path / "progress") in str(caught.value)


def test_damaged_progress_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    fit(resume=Progress(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable state of a training"):
        fit(resume=Progress(path))
    path.write_bytes(b"\x80\x04 pickle")
    with pytest.raises(CheckpointError, match="not a readable state of a training"):
        fit(resume=Progress(path))
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a readable state of a training"):
        fit(resume=Progress(path))


def test_progress_without_its_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    fit(resume=Progress(path))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if "running_mean" not in name}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="not the state of this training"):
        fit(resume=Progress(path))


def test_progress_comes_back(tmp_path: Path) -> None:
    assert load_progress(tmp_path / "p", {}) is None
    save_progress(tmp_path / "p", {"a": torch.arange(3)}, {"run": {"x": 1.5}, "rng": {"state": 2**127 + 1}})
    found = load_progress(tmp_path / "p", {"x": 1.5})
    assert found is not None
    assert torch.equal(found[0]["a"], torch.arange(3))
    assert found[1]["rng"]["state"] == 2**127 + 1


TOGETHER = """
import sys
sys.path.insert(0, {tests!r})
import os, small_training
from pathlib import Path
from wsi.cnn.resuming import Progress
from wsi.cnn.checkpoint import save_checkpoint
result = small_training.fit(method=small_training.EVERYTHING, batch=20, resume=Progress(Path({path!r}) / "progress"))
save_checkpoint(Path({path!r}) / ("rank" + os.environ["RANK"]), result.checkpoint)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    code = TOGETHER.format(tests=str(Path(__file__).parents[1]), path=str(tmp_path))
    ended = started_twice([sys.executable, "-c", code])
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    first, second = (load_checkpoint(tmp_path / name) for name in ("rank0", "rank1"))
    assert first.digest == second.digest
    alone = fit(method=EVERYTHING, batch=20).checkpoint
    _assert_close(first, alone)
    assert (tmp_path / "progress").is_file()


def _assert_close(first: Checkpoint, second: Checkpoint) -> None:
    ours, theirs = first.network.weights(), second.network.weights()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.02, atol=2e-3)
