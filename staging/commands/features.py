"""``sentinode features``: the tiles of slides as features of an encoder made elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.options import Device, OnBadTile, SlideMpp, Workers

EXIT_QUARANTINED = 3
_FORMAT = 1

Three = tuple[float, float, float]


def features(
    slides: Annotated[
        list[Path], typer.Argument(help="Folders of slides (any CAMELYON layout), or slides.", show_default=False)
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory: one Zarr folder per slide.", show_default=False)
    ],
    encoder: Annotated[
        Path, typer.Option("--encoder", "-e", help="A torch.export (.pt2) or ONNX file.", show_default=False)
    ],
    mpp: Annotated[float, typer.Option(help="um per px of the tiles.", min=0.05, max=64, show_default=False)],
    size: Annotated[int, typer.Option(help="Side of a tile in px.", min=8, max=4096, show_default=False)],
    stride: Annotated[
        int | None, typer.Option(help="From tile to tile in px.", min=1, show_default="the size: no overlap")
    ] = None,
    mean: Annotated[Three, typer.Option(help="Of red, green, blue, pixels 0 to 1.")] = (0.485, 0.456, 0.406),
    std: Annotated[Three, typer.Option(help="Likewise; 1 1 1 with mean 0 0 0 changes nothing.")] = (
        0.229,
        0.224,
        0.225,
    ),
    precision: Annotated[Literal["float16", "float32"], typer.Option(help="How features are stored.")] = "float16",
    trust_model: Annotated[
        bool,
        typer.Option(
            "--trust-model",
            help="Also load TorchScript, and .pt2 files with unknown parts: loading them can run code they hold.",
        ),
    ] = False,
    workers: Workers = None,
    batch: Annotated[int | None, typer.Option(help="Tiles encoded at a time.", min=1, show_default="chosen")] = None,
    device: Device = "auto",
    slide_mpp: SlideMpp = None,
    on_bad_tile: OnBadTile = "raise",
) -> None:
    """Encode the tissue of slides tile by tile; a second call goes on where the first ended.

    Pixels are given to the encoder as (value / 255 - mean) / std. Exit code 0: all slides good; 3: some quarantined.

    Example: sentinode features CAMELYON16/training -e uni.pt2 --mpp 0.5 --size 224 -o features
    """
    from staging.cohorts.camelyon import find_slides  # noqa: PLC0415  (slow import)
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from staging.runs.encoding import (  # noqa: PLC0415
        MASK,
        FeatureTask,
        LoadedEncoder,
        check_settings,
        encode_slides,
    )
    from wsi.cnn.encoders.encoder import load_encoder  # noqa: PLC0415  (loads torch)
    from wsi.cnn.encoders.features import TileGeometry  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    found = find_slides(slides)
    if min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise ConfigurationError(
            None, f"pixels cannot be brought to mean {mean} and std {std}", mend="give another --mean or --std"
        )
    try:
        geometry = TileGeometry(mpp=mpp, size_px=size, stride_px=stride or size)
    except ValueError as error:
        raise ConfigurationError(None, str(error), mend="give another --stride") from error
    probed = load_encoder(encoder, size_px=size, mean=mean, std=std, device=device, trust=trust_model)
    settings = {
        "format": _FORMAT,
        "encoder": probed.to_json(),
        "tiles": geometry.to_json(),
        "precision": precision,
        "mask": MASK,
        "slide_mpp": slide_mpp,
        "on_bad_tile": on_bad_tile,
    }
    on_gpu = probed.device.type == "cuda"
    processes = workers or (1 if on_gpu else usable_cores())
    loaded = LoadedEncoder(
        path=encoder, digest=probed.digest, size_px=size, mean=mean, std=std, device=device, trust=trust_model
    )
    tasks = [
        FeatureTask(
            path=slide.path,
            name=slide.name,
            output=output / f"{slide.name}.zarr",
            encoder=loaded,
            mpp=mpp,
            stride_px=geometry.stride_px,
            precision=precision,
            batch=batch,
            threads=usable_cores() if on_gpu or len(found) == 1 else 1,
            slide_mpp=slide_mpp,
            on_bad_tile=on_bad_tile,
        )
        for slide in found
    ]
    check_settings(output, settings)
    done, failures = encode_slides(tasks, output, settings, processes=processes)
    typer.echo(
        json.dumps(
            {
                "features": str(output),
                "slides": len(done),
                "made_before": sum(one.was_there for one in done),
                "tiles": sum(one.tiles for one in done),
                "width": probed.width,
                "encoder": {"kind": probed.kind, **probed.to_json()},
                "bad_tiles": {one.name: one.bad_tiles for one in done if one.bad_tiles},
                "quarantined": {name: f"{step}: {reason}" for name, _, step, reason in failures},
            }
        )
    )
    if failures:
        raise typer.Exit(EXIT_QUARANTINED)
