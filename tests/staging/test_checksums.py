"""``sentinode check``: every damaged, unfinished or missing download is named, and nothing is read twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from staging import checksums
from staging.checksums import check_folder, read_sums
from staging.cli import app
from staging.errors import ConfigurationError, TableError
from wsi.errors import OutputExistsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty files in folders, and their list in the organisers' form."""
    root = tmp_path / "data"
    lines = []
    for number in range(30):
        path = root / f"training/center_{number % 3}/patient_{number:03d}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000 + number))
        lines.append(f"{hashlib.md5(path.read_bytes()).hexdigest()} *{path.relative_to(root)}")  # noqa: S324
    (root / "checksums.md5").write_text("\n".join(lines) + "\n")
    return root


def call(folder: Path, *options: object) -> Result:
    words = (folder, "--md5", folder / "checksums.md5", *options)
    return CliRunner().invoke(app, ["check", *map(str, words)])


def test_whole_downloads_are_good(folder: Path) -> None:
    done = call(folder)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "good": 30,
        "checked_before": 0,
        "broken": {},
        "missing": [],
        "unlisted": 1,
    }


def test_what_is_damaged_unfinished_or_missing_is_named(folder: Path) -> None:
    damaged, cut, gone = (folder / f"training/center_{n % 3}/patient_{n:03d}.zip" for n in (4, 7, 11))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    cut.write_bytes(cut.read_bytes()[:500])
    gone.unlink()
    done = call(folder)
    record = json.loads(done.stdout)
    assert done.exit_code == 1
    assert sorted(record["broken"]) == sorted(path.relative_to(folder).as_posix() for path in (damaged, cut))
    assert record["missing"] == [gone.relative_to(folder).as_posix()]
    assert "patient_004.zip: its sum is " in done.stderr
    assert "1 of 30 listed files are not there: training/center_2/patient_011.zip" in done.stderr
    damaged.unlink()
    cut.unlink()
    assert call(folder).exit_code == 1
    assert call(folder, "--allow-missing").exit_code == 0


def test_a_killed_call_goes_on_and_what_changed_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, sums = tmp_path / "checked.csv", read_sums(folder / "checksums.md5")
    read: list[str] = []
    whole: Callable[..., Any] = checksums._sum

    def counted(root: Path, name: str) -> Any:
        read.append(name)
        if len(read) == 25:
            raise KeyboardInterrupt
        return whole(root, name)

    monkeypatch.setattr(checksums, "_sum", counted)
    with pytest.raises(KeyboardInterrupt):
        check_folder(folder, sums, record=record, workers=1)
    read.clear()

    def noted(root: Path, name: str) -> Any:
        read.append(name)
        return whole(root, name)

    monkeypatch.setattr(checksums, "_sum", noted)
    second = check_folder(folder, sums, record=record, workers=1)
    assert (second.good, second.known) == (30, 20)
    assert len(read) == 10
    read.clear()
    changed = next(iter(sums))
    (folder / changed).write_bytes(b"other")
    third = check_folder(folder, sums, record=record, workers=2)
    assert (third.good, third.known, list(third.broken), read) == (29, 29, [changed], [changed])
    read.clear()
    other = {**sums, list(sums)[1]: "0" * 32}  # a new edition of the list
    assert list(check_folder(folder, other, record=record).broken) == [changed, list(sums)[1]]


def test_one_record_serves_several_lists(folder: Path, tmp_path: Path) -> None:
    record, sums = tmp_path / "checked.csv", read_sums(folder / "checksums.md5")
    first, second = dict(list(sums.items())[:12]), dict(list(sums.items())[12:])
    assert check_folder(folder, first, record=record).good == 12
    assert check_folder(folder, second, record=record).good == 18
    again = check_folder(folder, first, record=record)
    assert (again.good, again.known) == (12, 12)


def test_the_record_of_another_program_stays(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("slide,label\na,itc\n")
    done = call(folder, "--record", other)
    assert isinstance(done.exception, TableError | OutputExistsError)
    assert other.read_text() == "slide,label\na,itc\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lists no file"),
        ("abc  file\n", "line 1.*is no MD5 sum and a file"),
        (f"{'0' * 32} *../out.zip\n", "line 1.*leads out of the folder"),
        (f"{'0' * 32} */etc/passwd\n", "leads out of the folder"),
        (f"{'0' * 32} *a\n{'1' * 32} *a\n", "line 2.*listed twice differently"),
    ],
)
def test_odd_lists_are_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "checksums.md5").write_text(text)
    with pytest.raises(TableError, match=reason):
        read_sums(folder / "checksums.md5")


def test_no_list_and_no_folder_are_named(folder: Path, tmp_path: Path) -> None:
    assert isinstance(call(tmp_path / "none").exception, ConfigurationError)
    (folder / "checksums.md5").unlink()
    assert "checksums.md5: cannot be read: No such file" in str(call(folder).exception)


@pytest.mark.skipif(shutil.which("md5sum") is None, reason="md5sum is not installed")
def test_lists_of_md5sum_itself(tmp_path: Path) -> None:
    names = ["plain", "with space", "back\\slash", "new\nline", "ümlaut"]
    for name in names:
        (tmp_path / name).write_text(name)
    for option in ("--text", "--binary"):
        done = subprocess.run(["md5sum", option, *names], cwd=tmp_path, capture_output=True, check=True)
        (tmp_path / "sums").write_bytes(done.stdout)
        sums = read_sums(tmp_path / "sums")
        assert sorted(sums) == sorted(names)
        found = check_folder(tmp_path, sums, record=tmp_path / "checked.csv")
        assert (found.good, found.broken, found.unlisted) == (5, {}, 2)  # the list itself and the record


def test_the_organisers_list(real_data: Callable[[str], Path]) -> None:
    sums = read_sums(real_data("tables/camelyon17_checksums.md5"))
    assert len(sums) == 206
    assert sums["training/center_0/patient_000.zip"]
    assert sums["README.md"] == "c2e3cce8efbbd3b3102ac85bc25a09c9"
