from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsi.inputs import open_regular, read_bytes, read_json, read_text


def test_regular_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    with open_regular(path) as file:
        assert file.read(3) == b"\xef\xbb\xbf"
    assert read_bytes(path, most=6) == b"\xef\xbb\xbf[1]"
    assert (read_text(path), read_json(path)) == ("[1]", [1])
    (tmp_path / "link").symlink_to(path)
    assert read_json(tmp_path / "link") == [1]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_more_than_may_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_bytes(tmp_path / "a", most=10)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # a hole: no room is taken
    with pytest.raises(OSError, match="more than"):
        read_bytes(tmp_path / "huge", most=1000)


def test_deep_json_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deep"):
        read_json(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("stage", "FIFO", "-o", "out.csv"),
        ("score", "kappa", "FIFO", "FIFO"),
        ("mask", "FIFO", "--slide", "FIFO", "-o", "out.tif"),
        ("convert", "FIFO", "out.geojson"),
        ("run", "FIFO", "-o", "out", "-m", "FIFO"),
        ("label", "FIFO", "-o", "out.csv"),
    ],
)
def test_no_command_waits_for_a_fifo(arguments: tuple[str, ...], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-m", "staging", *(one.replace("FIFO", str(tmp_path / "fifo")) for one in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
