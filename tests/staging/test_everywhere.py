"""What every command has: help of one style, -v, -q, --config; and the time left where there are no bars."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from staging import bars
from staging.bars import Bars, CohortProgress
from staging.cli import app
from staging.errors import ConfigurationError
from wsi.writing.pyramid import write_pyramid

TWO_MEANINGS = {"--stride": "three values in model import"}


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, one in getattr(command, "commands", {}).items():
            walk(one, (*words, name))
        if not hasattr(command, "commands"):
            found[" ".join(words)] = command

    walk(typer.main.get_command(app), ())
    return found


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    image = np.full((256, 256, 3), 244, np.uint8)
    image[60:200, 60:200] = (200, 120, 170)
    write_pyramid(tmp_path / "s.tif", width=256, height=256, mpp=8.0, tile_size=256, levels=1, tiles=[image])
    return tmp_path / "s.tif"


@pytest.mark.parametrize("command", commands())
def test_help_shows_each_placeholder_once_and_none_for_flags(command: str) -> None:
    told = called(*command.split(), "-h")
    assert told.exit_code == 0
    assert "<" not in re.sub(r"<=x<=|<=x<|<x", "", told.stdout), "a type of typer's"
    assert {"--verbose", "--quiet", "--config"} <= set(re.findall(r"--[a-z]+", told.stdout))
    assert called(*command.split(), "--help").stdout == told.stdout


def test_an_option_means_one_thing() -> None:
    """Its placeholder and short form are the same wherever it is."""
    forms = defaultdict(set)
    for command in commands().values():
        for one in command.params:
            if one.param_type_name == "option" and one.opts[0] not in {*TWO_MEANINGS, "--output"}:
                forms[one.opts[0]].add((one.metavar, *one.opts[1:]))
    assert [name for name, found in forms.items() if len(found) > 1] == []


def test_options_come_from_a_file_and_what_is_typed_goes_first(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text('[tissue]\nmpp = 32\noutput = "out.png"\n[mil.train]\nseed = 1\n')
    told = json.loads(called("tissue", slide, "--config", tmp_path / "o.toml", "-o", tmp_path / "a.png").stdout)
    assert told["um_per_px"] == 32.0
    told = json.loads(
        called("tissue", slide, "--mpp", 64, "--config", tmp_path / "o.toml", "-o", tmp_path / "b.png").stdout
    )
    assert told["um_per_px"] == 64.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tissue]\nmppp = 32", "no option --mppp"),
        ("[tissue]\nconfig = 'o.toml'", "no option --config"),
        ("[tissue]\nmpp = 'x'", "o.toml, [tissue] mpp: is 'x'"),
        ("[tissue]\nmpp = 1e9", "o.toml, [tissue] mpp: is '1000000000.0'"),
        ("[tissue]\noutput = 3", "o.toml, [tissue] output: is '3': Input is not a valid path"),
        ('["mil.train"]\nseed = 1', "write [mil.train] without quotes"),
        ("tissue = 3", "is not a table"),
        ("[tisue]\nmpp = 32", "no command tisue"),
        ("[mil.trian]\nseed = 1", "no command mil.trian"),
        ("mpp = 32", "no command mpp"),
        ("mil = 3", "is not a table"),
        ("[tissue", "no TOML file"),
        ("a=" + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[tissue]\nmpp = true", "is true, but the option takes a value"),
        (None, "no TOML file"),
    ],
)
def test_a_file_of_options_that_is_wrong(slide: Path, tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "o.toml").write_text(text)
    done = called("tissue", slide, "--config", tmp_path / "o.toml", "-o", tmp_path / "a.png")
    assert isinstance(done.exception, ConfigurationError)
    assert reason in str(done.exception)
    assert not (tmp_path / "a.png").exists()


def test_quiet_shows_no_progress(slide: Path, tmp_path: Path) -> None:
    loud, quiet = (called("convert", slide, tmp_path / f"{n}.tif", *more) for n, more in enumerate([(), ("-q",)]))
    assert "slides converted 1/1" in loud.stderr
    assert (quiet.exit_code, quiet.stderr, bool(quiet.stdout)) == (0, "", True)
    assert "slides converted" in called("convert", slide, tmp_path / "3.tif").stderr  # it holds for one call


def test_verbose_shows_the_log_in_lines_that_no_name_forges(slide: Path, tmp_path: Path) -> None:
    log = logging.getLogger("staging.test")
    called("tissue", slide, "-o", tmp_path / "a.png")
    assert not log.isEnabledFor(logging.DEBUG)
    called("tissue", slide, "-o", tmp_path / "b.png", "-v")
    assert log.isEnabledFor(logging.DEBUG)
    code = """
import logging, staging.commands.everywhere as e
e.speak(verbose=True, quiet=False)
try: raise ValueError("a\\x1bb")
except ValueError: logging.getLogger("wsi.x").debug("1\\n2\\x1b[2J https://u:p@h/a?sig=1", exc_info=True)
e.speak(verbose=False, quiet=False)
logging.getLogger("wsi.x").debug("not said")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.splitlines()[0] == r"sentinode: 1\n2\x1b[2J https://h/a"
    assert "Traceback" in said
    assert "\x1b" not in said
    assert "not said" not in said


def test_the_time_left_is_told_where_there_are_no_bars(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "TELL_EVERY_S", 0.05)
    with CohortProgress(4, verb="slides") as progress:
        progress.tiles("a", 50, 100)
        deadline = time.monotonic() + 20
        while "tiles: 50 of 400" not in (told := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert re.search(r"tiles: 50 of 400, about 0:00:\d\d left", told)
    capfd.readouterr()
    with Bars(is_silent=True):
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_a_resolution_fills_in_or_overrides_and_is_said(slide: Path, tmp_path: Path) -> None:
    def area(*more: object) -> tuple[float, str]:
        done = called("tissue", slide, "-o", tmp_path / "t.png", "--overwrite", *more)
        return json.loads(done.stdout)["tissue_mm2"], done.stderr

    stated, silent = area()
    filled, told = area("--slide-mpp", 16)
    assert (filled, silent) == (stated, "")
    assert "states 8 um per px, which are used; the given 16 are not (--override-mpp would)" in told
    overridden, told = area("--override-mpp", 16)
    assert overridden == pytest.approx(4 * stated, rel=0.1)
    assert "states 8 um per px; the given 16 are used instead" in told
    both = called("tissue", slide, "-o", tmp_path / "u.png", "--slide-mpp", 8, "--override-mpp", 8)
    assert isinstance(both.exception, ConfigurationError)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("label lesions.csv -o a.csv --folds 3", "--folds has no effect without --train"),
        ("label lesions.csv -o a.csv --nucleus-um 9", "--nucleus-um has no effect without --cells"),
        ("label h --apply m.json -o a.csv --smallest-um 9", "--smallest-um has no effect with --train or --apply"),
        ("label lesions.csv -o a.csv --override-mpp 9", "--slide-mpp has no effect without --cells"),
        ("train p -o a.safetensors --hard 3", "--hard has no effect without --rounds"),
        ("train p -o a.safetensors --patience 3 --held-out 0", "--patience has no effect with --held-out 0"),
        ("train p -o a.safetensors --start m --network resnet18", "--network has no effect with --start"),
        ("review r t -o out --slide-mpp 1", "--slide-mpp has no effect without --slides"),
        ("submission write stages r -o a.csv --radius-um 9", "--radius-um has no effect for other tasks than lesions"),
        ("score kappa a b --permutations 200", "--permutations has no effect without --against"),
    ],
)
def test_an_option_without_effect_is_refused(
    command: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = called(*command.split())
    assert isinstance(done.exception, ConfigurationError), done.output
    assert reason in str(done.exception)
