"""``sentinode tissue``: where the tissue is on a slide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.notices import say, slide_notices
from staging.commands.options import SlideMpp, SlideSource
from staging.commands.outputs import Output, guarded
from wsi.errors import without_secrets
from wsi.outputs import picture

_LOSSLESS = (".png", ".tif", ".tiff")


@guarded
def tissue(
    slide: SlideSource,
    output: Annotated[
        Path,
        Output(kind=lambda path, _: picture(path, _LOSSLESS)),
        typer.Option("--output", "-o", help="The mask as PNG or TIFF (255 = tissue).", show_default=False),
    ],
    mpp: Annotated[float, typer.Option(help="um per pixel of the mask.", min=0.5, max=256)] = 16.0,
    slide_mpp: SlideMpp = None,
) -> None:
    """Write a tissue mask and print its area as JSON, and how much of it the slide stores at full resolution.

    Example: sentinode tissue patient_000_node_0.tif -o tissue.png
    """
    from wsi.coverage import stored_coverage  # noqa: PLC0415  (slow import)
    from wsi.render import save_picture  # noqa: PLC0415
    from wsi.slide import Slide  # noqa: PLC0415
    from wsi.tissue import find_tissue, tissue_area_um2  # noqa: PLC0415

    with Slide.open(slide, mpp=slide_mpp) as opened:
        notices = slide_notices(opened)
        mask = find_tissue(opened, um_per_px=mpp)
        coverage = stored_coverage(opened, mask, downsample=1.0)
    if coverage.missing_tiles:
        unstored = f"{coverage.missing_tiles} tiles under tissue are not stored at full resolution"
        notices["warnings"].append(unstored)
        say(f"{slide}: {unstored}")
    save_picture(output, mask.array.astype("uint8") * 255)
    typer.echo(
        json.dumps(
            {
                "slide": without_secrets(slide),
                "mask": str(output),
                "um_per_px": mpp,
                "mask_mm2": round(tissue_area_um2(mask) / 1e6, 4),
                "tissue_mm2": coverage.tissue_mm2,
                "fraction": round(float(mask.array.mean()), 4),
                "stored": coverage.to_json(),
                **notices,
            }
        )
    )
