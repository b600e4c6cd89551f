"""``sentinode features``: features of slide tiles from a third-party encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from staging.commands.notices import cohort_notices, say, unseen_notice
from staging.commands.options import AllowPartial, Device, OnBadTile, SlideMpp, Tolerance, Upsample, Workers
from staging.commands.outputs import Output, always, guarded
from staging.errors import ConfigurationError
from staging.lesions.settings import COVERAGE_TOLERANCE
from wsi.outputs import FolderKind

if TYPE_CHECKING:
    from staging.runs.encoding import EncodingPlan
    from wsi.cnn.encoders.description import Description

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
        str,
        typer.Option(
            "--encoder",
            "-e",
            help="NAME=WEIGHTS of a public encoder (sentinode encoders lists the names), a TOML file that describes "
            "weights, or a torch.export (.pt2) or ONNX file.",
            metavar="NAME=PATH|PATH",
            show_default=False,
        ),
    ],
    mpp: Annotated[
        float | None,
        typer.Option(help="um per px of the tiles.", min=0.05, max=64, show_default="the described encoder's"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of a tile in px.", min=8, max=4096, show_default="the described encoder's"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Distance from tile to tile in px.", min=1, show_default="the size: no overlap")
    ] = None,
    mean: Annotated[
        Three | None,
        typer.Option(
            help="Mean of red, green and blue, for pixels from 0 to 1.", show_default="the encoder's, else ImageNet's"
        ),
    ] = None,
    std: Annotated[
        Three | None,
        typer.Option(
            help="Their standard deviations; 1 1 1 with mean 0 0 0 changes nothing.",
            show_default="the encoder's, else ImageNet's",
        ),
    ] = None,
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

    Example: sentinode features CAMELYON16/training -e uni2-h=model.safetensors -o features

    An own one: sentinode features CAMELYON16/training -e own.pt2 --mpp 0.5 --size 224 -o features
    """
    from staging.cohorts.camelyon import list_slides  # noqa: PLC0415  (slow import)
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from staging.runs.encoding import EncodingPlan, encode_cohort  # noqa: PLC0415
    from wsi.cnn.encoders.description import find_encoder  # noqa: PLC0415
    from wsi.cnn.encoders.encoder import (  # noqa: PLC0415  (loads torch)
        IMAGENET_MEAN,
        IMAGENET_STD,
        check_encoder,
    )

    path, described = find_encoder(encoder)
    mpp, size = _of_tiles(encoder, described, mpp, size)
    plan = EncodingPlan(
        encoder=path,
        description=described,
        mpp=mpp,
        size_px=size,
        stride_px=stride or size,
        mean=mean or (IMAGENET_MEAN if described is None else described.mean),
        std=std or (IMAGENET_STD if described is None else described.std),
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
    check_encoder(path, described)
    if described is not None:
        _tell(described, plan)
    listing = list_slides(slides)
    notices = cohort_notices(listing, mpp=slide_mpp)
    done = encode_cohort(listing.slides, output, plan)
    typer.echo(json.dumps({**done.to_json(), **notices}))
    unseen_notice(done.to_json())


def _of_tiles(encoder: str, described: Description | None, mpp: float | None, size: int | None) -> tuple[float, int]:
    """The resolution and the side of tiles, as given or as described.

    Raises:
        ConfigurationError: neither says them.
    """
    if described is not None:
        return mpp or described.mpp, size or described.size_px
    if mpp is None or size is None:
        what = "--mpp" if mpp is None else "--size"
        mend = "give both; of a public encoder's weights say whose they are, as in uni2-h=model.safetensors"
        raise ConfigurationError(Path(encoder), f"does not say what tiles it takes, and {what} is missing", mend=mend)
    return mpp, size


def _tell(described: Description, plan: EncodingPlan) -> None:
    """Say whose an encoder is, and where its tiles are made otherwise than it expects."""
    title = described.title or described.name
    if described.licence:
        use = {"yes": "", "no": ", no commercial use", "unknown": ""}[described.commercial]
        say(f"{title}: licence {described.licence}{use}; {described.source} has its terms")
    for what, given, expected in (
        ("um per px", plan.mpp, described.mpp),
        ("px per side", plan.size_px, described.size_px),
        ("as the mean", plan.mean, described.mean),
        ("as the standard deviation", plan.std, described.std),
    ):
        if given != expected:
            say(f"{title} expects {expected} {what}, and gets {given}")
