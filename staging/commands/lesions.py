"""``sentinode lesions``: lesions and their sizes from heatmaps, masks and annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from staging.commands.options import SlideMpp

_ELSE = "the run's, else "


def lesions(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Heatmaps of run or heatmap (.zarr), masks (TIFF, PNG), annotations (.xml, .geojson).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the tables and the contours.", show_default=False)
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Lesions of a heatmap are outlined at this probability.",
            min=0.01,
            max=0.99,
            show_default=_ELSE + "0.5",
        ),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(
            help="A lesion's highest probability in a heatmap must reach this.",
            min=0,
            max=1,
            show_default=_ELSE + "0.9",
        ),
    ] = None,
    merge_gap_um: Annotated[
        float | None,
        typer.Option(help="Deposits closer than this many um are one lesion.", min=0, show_default=_ELSE + "75"),
    ] = None,
    smallest_um: Annotated[
        float | None,
        typer.Option(help="Lesions shorter than this many um count as noise.", min=0, show_default=_ELSE + "60"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="The checkpoint that made the heatmaps: its threshold and peak.", show_default=False
        ),
    ] = None,
    value: Annotated[
        int | None,
        typer.Option(help="Of a mask's tumour pixels.", min=1, max=255, show_default="255 or 1 where no other occurs"),
    ] = None,
    level: Annotated[int, typer.Option(help="Of a mask's pyramid.", min=0)] = 0,
    slide_mpp: SlideMpp = None,
    *,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Holes in heatmaps and masks count as tumour.")
    ] = False,
) -> None:
    """Find lesions, measure them in um and write two tables, and GeoJSON and ASAP XML contours per heatmap.

    lesions.csv is what label takes; lesion_features.csv has all measures. A heatmap below the run that made it takes
    that run's settings; the result tells each setting and its source.

    Example: sentinode lesions results/heatmaps -o lesions
    """
    from staging.errors import DuplicateSlideError  # noqa: PLC0415
    from staging.lesions.files import (  # noqa: PLC0415
        DRAWN,
        feature_table,
        measure_drawing,
        measure_heatmap_file,
        measure_mask_file,
    )
    from staging.lesions.finding import as_lesion  # noqa: PLC0415
    from staging.lesions.outlines import write_contours  # noqa: PLC0415  (slow import)
    from staging.lesions.settings import refuse_different, settings_of  # noqa: PLC0415
    from staging.lesions.tables import lesion_table  # noqa: PLC0415
    from wsi.store import atomic_text, json_text  # noqa: PLC0415

    files = [one for path in files for one in _within(path)]
    options = {"threshold": threshold, "peak": peak, "merge_gap_um": merge_gap_um, "smallest_um": smallest_um}
    heatmaps = [path for path in files if path.suffix.lower() == ".zarr"]
    applied = {path: settings_of(path, options=options, model=model) for path in files}
    refuse_different([applied[path] for path in heatmaps])
    found = {}
    tumour_values = {}
    for path in files:
        if path.stem in found:
            raise DuplicateSlideError(path, "has the same name as another file", mend="measure them one by one")
        settings = applied[path]
        gap, smallest = settings.merge_gap_um.value, settings.smallest_um.value
        if path in heatmaps:
            found[path.stem] = measure_heatmap_file(path, settings, with_holes_filled=fill_holes)
        elif path.suffix.lower() in DRAWN:
            found[path.stem] = measure_drawing(path, mpp=slide_mpp, merge_gap_um=gap, smallest_um=smallest)
        else:
            found[path.stem] = measure_mask_file(
                path,
                mpp=slide_mpp,
                value=value,
                level=level,
                merge_gap_um=gap,
                smallest_um=smallest,
                with_holes_filled=fill_holes,
            )
            tumour_values[path.stem] = found[path.stem].tumour_value
    features = {slide: measured.features for slide, measured in found.items()}
    decisive = {slide: [as_lesion(one) for one in each] for slide, each in features.items()}
    for slide, measured in found.items():
        if measured.masks is not None:
            write_contours(output, slide, decisive[slide], measured.masks)
    atomic_text(output / "lesions.csv", lesion_table(decisive))
    atomic_text(output / "lesion_features.csv", feature_table(features))
    record: dict[str, Any] = {
        "table": str(output / "lesions.csv"),
        "features": str(output / "lesion_features.csv"),
        "slides": len(found),
        "lesions": {slide: len(each) for slide, each in features.items()},
        "settings": applied[(heatmaps or files)[0]].to_json(of_heatmap=bool(heatmaps)) | {"fill_holes": fill_holes},
    }
    if tumour_values:
        record["tumour_value"] = tumour_values
    atomic_text(output / "lesions.json", json_text({"settings": record["settings"]}))
    typer.echo(json.dumps(record))


def _within(path: Path) -> list[Path]:
    """A path itself, or the heatmaps of a folder of heatmaps."""
    from staging.errors import CohortError  # noqa: PLC0415  (slow import)

    if not path.is_dir() or path.suffix.lower() == ".zarr":
        return [path]
    heatmaps = sorted(path.glob("*.zarr"))
    if not heatmaps:
        raise CohortError(
            path, "is a folder without heatmaps, which end in .zarr", mend="name heatmaps, masks or annotations"
        )
    return heatmaps
