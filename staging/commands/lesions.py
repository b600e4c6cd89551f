"""``sentinode lesions``: lesions and their sizes from heatmaps, masks and annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from annotations.measures import MERGE_GAP_UM
from staging.commands.notices import heatmaps_notice, unseen_notice, warnings_notice
from staging.commands.options import AllowEmpty, AllowPartial, Overwrite, SlideMpp, Tolerance
from staging.commands.outputs import Output, guarded
from staging.lesions.labels import ITC_MAX_UM
from staging.lesions.settings import COVERAGE_TOLERANCE, PEAK, SMALLEST_UM, THRESHOLD
from wsi.outputs import OutputKind

_ELSE = "the run's, else"


def _kind(_: Path, given: Mapping[str, Any]) -> OutputKind:
    from staging.lesions.measured_folder import MeasuredFolder  # noqa: PLC0415  (slow import)
    from staging.lesions.measurements import heatmaps_among  # noqa: PLC0415

    return MeasuredFolder(slides=heatmaps_among(given["files"]))


def _was_interrupted(path: Path, _: Mapping[str, Any]) -> bool:
    from staging.lesions.measured_folder import is_unfinished  # noqa: PLC0415  (slow import)

    return is_unfinished(path)


@guarded
def lesions(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Heatmaps from run or heatmap (.zarr), masks (TIFF, PNG) or annotations (XML, GeoJSON, HALO).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=_kind, resumes=_was_interrupted),
        typer.Option("--output", "-o", help="Directory for the tables and the outlines.", show_default=False),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Probability at which lesions of a heatmap are outlined.",
            min=0.01,
            max=0.99,
            show_default=f"{_ELSE} {THRESHOLD:g}",
        ),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(
            help="Probability that a lesion's highest cell must reach.",
            min=0,
            max=1,
            show_default=f"{_ELSE} {PEAK:g}",
        ),
    ] = None,
    merge_gap_um: Annotated[
        float | None,
        typer.Option(
            help="Deposits closer than this many um are one lesion.", min=0, show_default=f"{_ELSE} {MERGE_GAP_UM:g}"
        ),
    ] = None,
    smallest_um: Annotated[
        float | None,
        typer.Option(
            help="Lesions shorter than this many um count as noise.",
            min=0,
            max=ITC_MAX_UM,
            show_default=f"{_ELSE} {SMALLEST_UM:g}",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="The checkpoint that made the heatmaps: its threshold and peak.", show_default=False
        ),
    ] = None,
    tumour_value: Annotated[
        int | None,
        typer.Option(
            help="Value of tumour pixels in a mask.", min=1, max=255, show_default="255 or 1 if it is the only one"
        ),
    ] = None,
    level: Annotated[int, typer.Option(help="Pyramid level of a mask.", min=0)] = 0,
    slide_mpp: SlideMpp = None,
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_empty: AllowEmpty = False,
    allow_partial: AllowPartial = False,
    overwrite: Overwrite = False,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Count holes in heatmaps and masks as tumour.")
    ] = False,
) -> None:
    """Find lesions and measure them in um; write two tables, and GeoJSON and ASAP XML outlines per heatmap.

    lesions.csv is the input of label; lesion_features.csv has all measurements. A heatmap inside the output of a run
    takes that run's settings; the printed JSON gives each setting and its source. Exit code 3: heatmaps were left out,
    because too much of the tissue went unseen.

    Example: sentinode lesions results/heatmaps -o lesions
    """
    from staging.lesions.measured_folder import (  # noqa: PLC0415  (slow import)
        LESION_TABLE,
        SHAPE_TABLE,
        MeasuredFolder,
        is_unfinished,
    )
    from staging.lesions.measurements import heatmaps_among, measure_files, write_measurements  # noqa: PLC0415
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from wsi.lock import OutputLock  # noqa: PLC0415

    skipped = heatmaps_notice(files)
    measured = measure_files(
        files,
        options={"threshold": threshold, "peak": peak, "merge_gap_um": merge_gap_um, "smallest_um": smallest_um},
        model=model,
        value=tumour_value,
        level=level,
        mpp=slide_mpp,
        with_holes_filled=fill_holes,
        seen_rule=SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial),
        allows_empty=allow_empty,
    )
    warnings_notice(measured.to_json()["warnings"])
    with OutputLock(output):
        # another call may have ended here in the meantime
        MeasuredFolder(slides=heatmaps_among(files)).refuse_others(output, overwrite=overwrite or is_unfinished(output))
        write_measurements(output, measured)
    tables = {"table": str(output / LESION_TABLE), "features": str(output / SHAPE_TABLE)}
    typer.echo(json.dumps(tables | measured.to_json() | skipped))
    unseen_notice(measured.to_json())
