"""What every command says once on stderr and in its JSON: slides in doubt, not seen as a whole, or passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from staging.errors import listed
from wsi.errors import plain, shortened, without_secrets

if TYPE_CHECKING:
    from staging.cohorts.camelyon import SlideListing
    from wsi.readers.resolution import Mpp
    from wsi.slide import Slide

EXIT_FATAL, EXIT_QUARANTINED = 1, 3


def say(text: str) -> None:
    """Print one line on stderr; of what is longer than any list of names, the beginning."""
    typer.echo(f"sentinode: {plain(without_secrets(shortened(text)))}", err=True)


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


def cohort_notices(listing: SlideListing, *, mpp: Mpp | None = None, annotations: Path | None = None) -> dict[str, Any]:
    """Say what was passed over and which slides are in doubt, and return both for the command's JSON.

    Args:
        listing: what list_slides found.
        mpp: um per level-0 px of slides that state none, or for all.
        annotations: the folder of the slides' annotations.
    """
    from annotations.files.formats import SUFFIXES  # noqa: PLC0415  (slow import)
    from staging.cohorts.names import slide_key  # noqa: PLC0415
    from staging.cohorts.skipped import skipped_files, skipped_json, skipped_text  # noqa: PLC0415
    from staging.cohorts.slide_warnings import find_warnings  # noqa: PLC0415

    skipped_notice(listing)
    names = {slide_key(slide.name) for slide in listing.slides}
    others = [] if annotations is None else skipped_files(annotations, suffixes=SUFFIXES, names=names)
    if others:
        say(f"of the annotations {skipped_text(others)}")
    warnings = find_warnings(listing.slides, mpp=mpp)
    warnings_notice(warnings)
    return {"warnings": warnings, "skipped": skipped_json([*listing.skipped, *others])}


def warnings_notice(warnings: Mapping[str, Sequence[str]]) -> None:
    """Say what is doubtful about slides or odd about their annotations, by slide name."""
    from staging.cohorts.slide_warnings import warning_lines  # noqa: PLC0415  (slow import)

    for line in warning_lines(warnings):
        say(line)


def heatmaps_notice(paths: Iterable[Path]) -> dict[str, Any]:
    """Say what was passed over in folders of heatmaps, and return it for the command's JSON."""
    from staging.lesions.seen import heatmaps_folder  # noqa: PLC0415  (slow import)

    folders = [heatmaps_folder(path) for path in paths if path.suffix.lower() != ".zarr"]
    return files_notice("heatmaps", folders, {".zarr"})


def files_notice(kind: str, folders: Iterable[Path], suffixes: Collection[str]) -> dict[str, Any]:
    """Say what in folders has none of the suffixes of a kind of file, and return it for the command's JSON."""
    from staging.cohorts.skipped import skipped_files, skipped_json, skipped_text  # noqa: PLC0415  (slow import)

    skipped = [one for folder in folders for one in skipped_files(folder, suffixes=suffixes)]
    if skipped:
        say(f"of the {kind} {skipped_text(skipped)}")
    return {"skipped": skipped_json(skipped)}


def left_out_notice(left_out: Mapping[str, str], *, faults: Mapping[str, str], model: Path | None) -> None:
    """Say which labelled heatmaps say nothing about unseen patients.

    Args:
        left_out: slides that are not used, and why.
        faults: those among them that are told one by one.
        model: the checkpoint that made the heatmaps, if it is known.
    """
    if model is None:
        say("without --model it is not known whether the network saw these patients: if so, the result says nothing")
    for reason in sorted(set(left_out.values()) - set(faults.values())):
        say(f"left out: {sum(one == reason for one in left_out.values())} slides, because {reason}")


def foretold_notice(foretold: Mapping[str, Any], *, what: str) -> None:
    """Say what a rehearsal's JSON says of the time and the room that the work would take.

    Args:
        foretold: with ``seconds`` and ``bytes``, None where nothing could be measured.
        what: the work, as in "3 slides to analyse".
    """
    if foretold["seconds"] is None:
        say(f"{what}: none could be sampled, so time and room are not known")
        return
    time, megabytes = timedelta(seconds=round(foretold["seconds"])), foretold["bytes"] / 1e6
    say(f"{what}: would take about {time} (h:mm:ss) and {megabytes:,.3g} MB; nothing was written")


def unseen_notice(record: Mapping[str, Any]) -> None:
    """Say what a command's JSON says of slides that were not seen as a whole.

    Raises:
        typer.Exit: with 3, if slides were set aside.
    """
    for name, reason in record["quarantined"].items():
        say(f"{name}: left out: {reason}")
    for kind, meaning in (("partial", "seen only in part"), ("unknown", "do not say how much of the tissue was seen")):
        if record[kind]:
            say(f"{meaning}: {listed(record[kind])}")
    if record["quarantined"]:
        raise typer.Exit(EXIT_QUARANTINED)
