"""What every command says once on stderr and in its JSON: slides in doubt, and what was passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from wsi.errors import plain, without_secrets

if TYPE_CHECKING:
    from staging.cohorts.camelyon import SlideListing
    from wsi.slide import Slide


def say(text: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"sentinode: {plain(without_secrets(text))}", err=True)


def slide_notices(slide: Slide) -> dict[str, Any]:
    """Say what is doubtful about one slide, and return it for the command's JSON."""
    for warning in slide.warnings:
        say(f"{slide.path}: {warning}")
    return {"warnings": list(slide.warnings)}


def skipped_notice(listing: SlideListing) -> None:
    """Say what was passed over in folders."""
    from staging.cohorts.skipped import skipped_text  # noqa: PLC0415  (slow import)

    if listing.skipped:
        say(skipped_text(listing.skipped))


def cohort_notices(*listings: SlideListing, mpp: float | None = None) -> dict[str, Any]:
    """Say what was passed over and which slides are in doubt, and return both for the command's JSON.

    Args:
        listings: what list_slides found.
        mpp: um per level-0 px of every slide, overriding its file.
    """
    from staging.cohorts.skipped import skipped_json  # noqa: PLC0415  (slow import)
    from staging.cohorts.slide_warnings import find_warnings, warning_lines  # noqa: PLC0415

    for listing in listings:
        skipped_notice(listing)
    warnings = find_warnings([slide for listing in listings for slide in listing.slides], mpp=mpp)
    for line in warning_lines(warnings):
        say(line)
    skipped = [one for listing in listings for one in listing.skipped]
    return {"warnings": warnings, "skipped": skipped_json(skipped)}
