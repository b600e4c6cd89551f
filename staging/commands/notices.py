"""What every command says once on stderr about slides in doubt, and puts into its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from wsi.errors import plain, without_secrets

if TYPE_CHECKING:
    from staging.cohorts.camelyon import SlideFile
    from wsi.slide import Slide


def say(text: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"sentinode: {plain(without_secrets(text))}", err=True)


def slide_notices(slide: Slide) -> dict[str, Any]:
    """Say what is doubtful about one slide, and return it for the command's JSON."""
    for warning in slide.warnings:
        say(f"{slide.path}: {warning}")
    return {"warnings": list(slide.warnings)}


def cohort_notices(slides: Sequence[SlideFile], *, mpp: float | None = None) -> dict[str, Any]:
    """Say before the work which slides are in doubt, and return it for the command's JSON.

    Args:
        slides: what find_cohort found.
        mpp: um per level-0 px of every slide, overriding its file.
    """
    from staging.cohorts.slide_warnings import find_warnings, warning_lines  # noqa: PLC0415  (slow import)

    warnings = find_warnings(slides, mpp=mpp)
    for line in warning_lines(warnings):
        say(line)
    return {"warnings": warnings}
