"""The command ``sentinode``: its subcommands, and how errors are reported."""

from __future__ import annotations

import os
import sys

import typer

from staging.commands import (
    convert,
    cross_validate,
    demo,
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
    verify,
)
from wsi.errors import OutputExistsError, OutputInUseError, OutputNameError, PathologyError, StorageError

# the codes of sysexits.h where one fits (FAULTS: 1 fatal, 2 wrong usage, 74 storage, 75 output in use)
EXIT_FATAL, EXIT_USAGE, EXIT_STORAGE, EXIT_IN_USE = 1, 2, 74, 75

app = typer.Typer(
    name="sentinode",
    help="From a directory of lymph node slides to metastasis heatmaps, slide labels, pN-stages and a kappa.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("info")(info.info)
app.command("tissue")(tissue.tissue)
app.command("heatmap")(heatmap.heatmap)
app.command("lesions")(lesions.lesions)
app.command("label")(label.label)
app.command("stage")(stage.stage)
app.command("cross-validate")(cross_validate.cross_validate)
app.command("review")(review.review)
app.add_typer(score.app, name="score")
app.add_typer(submission.app, name="submission")
app.command("phantom")(phantom.phantom)
app.command("verify")(verify.verify)
app.command("convert")(convert.convert)
app.command("mask")(mask.mask)
app.command("patches")(patches.patches)
app.command("train")(train.train)
app.command("features")(features.features)
app.add_typer(mil.app, name="mil")
app.add_typer(model.app, name="model")


@app.callback(invoke_without_command=True)
def root(
    *, version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and exit.")
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


def _end(error: PathologyError, code: int) -> None:
    sys.stderr.write(f"sentinode: error: {error}\n")
    sys.exit(code)
