"""``sentinode features``: features of slide tiles from a third-party encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.notices import cohort_notices, unseen_notice
from staging.commands.options import AllowPartial, Device, OnBadTile, SlideMpp, Tolerance, Upsample, Workers
from staging.commands.outputs import Output, always, guarded
from staging.lesions.settings import COVERAGE_TOLERANCE
from wsi.outputs import FolderKind

Three = tuple[float, float, float]


@guarded
def features(
    slides: Annotated[
        list[Path], typer.Argument(help="Folders of slides (any CAMELYON layout), or slides.", show_default=False)
    ],
    *,
    output: Annotated[
        Path,
        Output(kind=always(FolderKind(record="features.json")), is_kept=True),
        typer.Option("--output", "-o", help="Directory: one Zarr folder per slide.", show_default=False),
    ],
    encoder: Annotated[
        Path, typer.Option("--encoder", "-e", help="A torch.export (.pt2) or ONNX file.", show_default=False)
    ],
    mpp: Annotated[float, typer.Option(help="um per px of the tiles.", min=0.05, max=64, show_default=False)],
    size: Annotated[int, typer.Option(help="Side of a tile in px.", min=8, max=4096, show_default=False)],
    stride: Annotated[
        int | None, typer.Option(help="Distance from tile to tile in px.", min=1, show_default="the size: no overlap")
    ] = None,
    mean: Annotated[Three, typer.Option(help="Mean of red, green and blue, for pixels from 0 to 1.")] = (
        0.485,
        0.456,
        0.406,
    ),
    std: Annotated[Three, typer.Option(help="Their standard deviations; 1 1 1 with mean 0 0 0 changes nothing.")] = (
        0.229,
        0.224,
        0.225,
    ),
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Type in which features are stored.")
    ] = "float16",
    trust_model: Annotated[
        bool,
        typer.Option(
            "--trust-model",
            help="Also load TorchScript, and .pt2 files with unknown parts: loading these can run code they contain.",
        ),
    ] = False,
    workers: Workers = None,
    batch: Annotated[int | None, typer.Option(help="Tiles per batch.", min=1, show_default="chosen")] = None,
    device: Device = "auto",
    slide_mpp: SlideMpp = None,
    on_bad_tile: OnBadTile = "raise",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    allow_partial: AllowPartial = False,
    upsample: Upsample = False,
) -> None:
    """Encode the tissue of slides tile by tile; a second call resumes where the first ended.

    The encoder receives (value / 255 - mean) / std. Exit code 0: all slides good; 3: some quarantined, because they
    cannot be read or too much of their tissue is not stored.

    Example: sentinode features CAMELYON16/training -e uni.pt2 --mpp 0.5 --size 224 -o features
    """
    from staging.cohorts.camelyon import list_slides  # noqa: PLC0415  (slow import)
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from staging.runs.encoding import EncodingPlan, encode_cohort  # noqa: PLC0415
    from wsi.cnn.encoders.encoder import check_encoder  # noqa: PLC0415  (loads torch)

    plan = EncodingPlan(
        encoder=encoder,
        mpp=mpp,
        size_px=size,
        stride_px=stride or size,
        mean=mean,
        std=std,
        precision=dtype,
        trust=trust_model,
        device=device,
        workers=workers,
        batch=batch,
        slide_mpp=slide_mpp,
        on_bad_tile=on_bad_tile,
        seen_rule=SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial),
        upsample=upsample,
    )
    check_encoder(encoder)
    listing = list_slides(slides)
    notices = cohort_notices(listing, mpp=slide_mpp)
    done = encode_cohort(listing.slides, output, plan)
    typer.echo(json.dumps({**done.to_json(), **notices}))
    unseen_notice(done.to_json())
