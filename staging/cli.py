"""The command ``sentinode``: its subcommands, and how errors are reported."""

from __future__ import annotations

import errno
import os
import sys

import typer

from staging.commands import (
    check,
    compare,
    convert,
    cross_validate,
    demo,
    doctor,
    encoders,
    features,
    heatmap,
    info,
    label,
    lesions,
    mask,
    mil,
    model,
    patches,
    phantom,
    review,
    run,
    score,
    stage,
    submission,
    tissue,
    train,
    tune,
    verify,
)
from staging.commands.help_texts import Group
from staging.commands.reference_option import TakesReference
from wsi.errors import OutputExistsError, OutputInUseError, OutputNameError, PathologyError, StorageError

# the codes of sysexits.h where one fits (FAULTS: 1 fatal, 2 wrong usage, 74 storage, 75 output in use)
EXIT_FATAL, EXIT_USAGE, EXIT_STORAGE, EXIT_IN_USE = 1, 2, 74, 75

app = typer.Typer(
    cls=Group,
    name="sentinode",
    help="From a directory of lymph node slides to metastasis heatmaps, slide labels, pN-stages and a kappa.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
RUNNING, SCORING, SLIDES, ANNOTATIONS, TRAINING = (
    "Running: slides to stages",
    "Scoring",
    "Slides",
    "Annotations",
    "Training",
)
app.command("run", rich_help_panel=RUNNING)(run.run)
app.command("heatmap", rich_help_panel=RUNNING)(heatmap.heatmap)
app.command("lesions", rich_help_panel=RUNNING)(lesions.lesions)
app.command("label", rich_help_panel=RUNNING)(label.label)
app.command("stage", rich_help_panel=RUNNING)(stage.stage)
app.command("verify", rich_help_panel=RUNNING)(verify.verify)
app.command("demo", rich_help_panel=RUNNING)(demo.demo)
app.command("doctor", rich_help_panel=RUNNING)(doctor.doctor)
app.add_typer(score.app, name="score", rich_help_panel=SCORING)
app.add_typer(submission.app, name="submission", rich_help_panel=SCORING)
app.command("review", cls=TakesReference, rich_help_panel=SCORING)(review.review)
app.command("compare", cls=TakesReference, rich_help_panel=SCORING)(compare.compare)
app.command("tune", cls=TakesReference, rich_help_panel=SCORING)(tune.tune)
app.command("cross-validate", rich_help_panel=SCORING)(cross_validate.cross_validate)
app.command("info", rich_help_panel=SLIDES)(info.info)
app.command("check", rich_help_panel=SLIDES)(check.check)
app.command("tissue", rich_help_panel=SLIDES)(tissue.tissue)
app.command("convert", rich_help_panel=SLIDES)(convert.convert)
app.command("phantom", rich_help_panel=SLIDES)(phantom.phantom)
app.command("mask", rich_help_panel=ANNOTATIONS)(mask.mask)
app.command("patches", rich_help_panel=TRAINING)(patches.patches)
app.command("train", rich_help_panel=TRAINING)(train.train)
app.command("features", rich_help_panel=TRAINING)(features.features)
app.command("encoders", rich_help_panel=TRAINING)(encoders.encoders)
app.add_typer(mil.app, name="mil", rich_help_panel=TRAINING)
app.add_typer(model.app, name="model", rich_help_panel=TRAINING)


@app.callback(invoke_without_command=True)
def root(
    *, version: bool = typer.Option(False, "--version", metavar="", is_eager=True, help="Print the version and exit.")
) -> None:
    """From a directory of lymph node slides to metastasis heatmaps, slide labels, pN-stages and a kappa."""
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415  (slow import)

        typer.echo(f"sentinode {installed('sentinode')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    try:
        app()
    except StorageError as error:
        _end(error, EXIT_STORAGE)
    except OutputInUseError as error:
        _end(error, EXIT_IN_USE)
    except PathologyError as error:
        from staging.errors import ConfigurationError  # noqa: PLC0415  (keeps --help quick)

        _end(
            error,
            EXIT_USAGE if isinstance(error, ConfigurationError | OutputExistsError | OutputNameError) else EXIT_FATAL,
        )
    except BrokenPipeError:
        # the reader of stdout has exited (head, less): not an error; silence the interpreter's own flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FATAL)
    except OSError as error:
        # of stdout: whatever else is written ends in a StorageError
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"sentinode: error: the result cannot be printed: {error.strerror} (free the disk)\n")
        sys.exit(EXIT_STORAGE)


def _end(error: PathologyError, code: int) -> None:
    sys.stderr.write(f"sentinode: error: {error}\n")
    sys.exit(code)
