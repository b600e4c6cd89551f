"""``sentinode doctor``: the facts are the machine's, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from staging import machine
from staging.cli import app
from staging.errors import ConfigurationError
from wsi.cores import usable_cores


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words)])


def test_the_facts_are_those_of_the_machine(tmp_path: Path) -> None:
    done = call(tmp_path, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["cores"] == {"usable": usable_cores(), "machine": os.cpu_count()}
    assert found["system"]["torch"] == torch.__version__
    assert found["disk"]["folder"] == str(tmp_path.resolve())
    assert found["disk"]["size_gb"] == pytest.approx(shutil.disk_usage(tmp_path).total / 1e9, abs=0.1)
    assert found["packages"]["simplejpeg"]
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert {"jpeg_megapixels_per_s", "write_mb_per_s", "read_mb_per_s", "network_cpu_megapixels_per_s"} <= set(
        found["speeds"]
    )
    assert all(value > 0 for value in found["speeds"].values())
    assert not list(tmp_path.iterdir())


def test_the_text_says_the_same_and_quick_times_nothing(tmp_path: Path) -> None:
    quick, text = json.loads(call(tmp_path, "--quick", "--json").stdout), call(tmp_path, "--quick").stdout
    assert "speeds" not in quick
    assert "megapixels" not in text
    for one in (*quick["notes"], *quick["uses"].values(), f"cores: {usable_cores()} usable"):
        assert one in text
    assert "megapixels/s" in call(tmp_path).stdout


def test_what_is_missing_is_named_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "obstore" else installed(name))
    monkeypatch.setattr("wsi.readers.turbo.find_turbo", lambda: None)
    monkeypatch.setattr("os.cpu_count", lambda: usable_cores() + 6)
    found = machine.examine(tmp_path)
    notes = " | ".join(found["notes"])
    assert "obstore is not installed, so no slides behind s3://" in notes
    assert "pip install 'sentinode[cloud]'" in notes
    assert "no libjpeg-turbo 3" in notes
    assert f"may use {usable_cores()} of the machine's {usable_cores() + 6} cores" in notes
    assert found["uses"]["parts of JPEG tiles"] == "whole tiles, cut"
    assert "part_of_jpeg_megapixels_per_s" not in found["speeds"]


def test_no_folder_is_wrong_usage(tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path(__file__)):
        error = call(path).exception
        assert isinstance(error, ConfigurationError)
        assert "is no folder" in str(error)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no file system here that refuses files of anyone")
def test_a_file_system_that_cannot_be_written_is_named() -> None:
    assert "/proc" in str(call("/proc").exception)
    assert call("/proc", "--quick").exit_code == 0
