"""``-r`` gives the reference to every command that takes one, also where it is an argument."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from staging.cli import app

REFERENCE = "slide,label\npatient_000_node_0.tif,negative\npatient_020_node_1.tif,macro\n"


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """A reference, and labels of which one is wrong."""
    reference, found = tmp_path / "reference.csv", tmp_path / "found.csv"
    reference.write_text(REFERENCE)
    found.write_text(REFERENCE.replace("negative", "itc"))
    return reference, found


@pytest.mark.parametrize(
    "words",
    [
        ("REFERENCE", "FOUND"),
        ("-r", "REFERENCE", "FOUND"),
        ("FOUND", "-r", "REFERENCE"),
        ("FOUND", "--reference", "REFERENCE", "--table"),
        ("--reference=REFERENCE", "--", "FOUND"),
        ("-rREFERENCE", "FOUND"),
    ],
)
def test_reference_is_given_either_way(tables: tuple[Path, Path], words: tuple[str, ...]) -> None:
    reference, found = map(str, tables)
    line = [word.replace("REFERENCE", reference).replace("FOUND", found) for word in words]
    done = CliRunner().invoke(app, ["score", "labels", *line])
    assert done.exit_code == 0, done.output
    confusion = json.loads(done.stdout)["confusion"]
    assert (confusion[0][1], confusion[1][0]) == (1, 0)  # rows are the reference


def test_reference_is_the_last_argument_of_commands_on_runs(tables: tuple[Path, Path], tmp_path: Path) -> None:
    for command in (["review"], ["tune"], ["compare"], ["mil", "train"]):
        done = CliRunner().invoke(
            app, [*command, "-r", str(tables[0]), str(tmp_path / "none"), "-o", str(tmp_path / "o")]
        )
        assert str(tmp_path / "none") in str(done.exception or done.output), (command, done.output)


@pytest.mark.parametrize(
    "words", [("REFERENCE", "-r", "REFERENCE", "FOUND"), ("-r", "REFERENCE"), ("FOUND", "-r"), ("FOUND",)]
)
def test_too_much_and_too_little_are_wrong_usage(tables: tuple[Path, Path], words: tuple[str, ...]) -> None:
    reference, found = map(str, tables)
    line = [word.replace("REFERENCE", reference).replace("FOUND", found) for word in words]
    done = CliRunner().invoke(app, ["score", "labels", *line])
    assert done.exit_code == 2, done.output


def test_half_a_line_can_be_completed() -> None:
    words = {"_SENTINODE_COMPLETE": "complete_bash", "COMP_WORDS": "sentinode score kappa -r ", "COMP_CWORD": "4"}
    done = CliRunner().invoke(app, [], prog_name="sentinode", env=words)
    assert done.exit_code == 0, done.output
    assert "needs the path" not in done.output


@pytest.mark.parametrize("command", ["kappa", "labels", "auc", "froc"])
def test_help_of_scores_names_it(command: str) -> None:
    assert "-r." in " ".join(CliRunner().invoke(app, ["score", command, "--help"]).stdout.split())


def test_score_is_told_in_a_line_unless_quiet(tables: tuple[Path, Path]) -> None:
    line = ["score", "labels", *map(str, tables)]
    told, quiet = CliRunner().invoke(app, line), CliRunner().invoke(app, [*line, "-q"])
    assert told.stderr.startswith("sentinode: accuracy 0.5000 (95 % interval")
    assert "accuracy" not in quiet.stderr
