"""``sentinode model``: checkpoints made from the weights of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.help_texts import Group
from staging.commands.outputs import Output, always, guarded
from wsi.outputs import weights

app = typer.Typer(cls=Group, help="Make checkpoints from the weights of other programs.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Make checkpoints from the weights of other programs."""


@app.command("import")
@guarded
def import_(
    weights: Annotated[Path, typer.Argument(help="A local .pth, .pt or .safetensors file.", show_default=False)],
    layout: Annotated[
        Literal["torchvision", "monai", "tiatoolbox"],
        typer.Option(help="Library whose names the weights use.", show_default=False),
    ],
    output: Annotated[
        Path,
        Output(kind=always(weights("a checkpoint", "sentinode checkpoint"))),
        typer.Option("--output", "-o", help="The checkpoint, model.safetensors.", show_default=False),
    ],
    mpp: Annotated[
        float | None,
        typer.Option(
            help="um per pixel of the network's input.",
            min=0.05,
            max=32,
            show_default="torchvision 0.5, monai 0.25, tiatoolbox 1.0",
        ),
    ] = None,
    stride: Annotated[
        Literal["8", "16", "32"], typer.Option(help="Pixels between cells of the heatmap; the weights stay the same.")
    ] = "32",
    tumour_output: Annotated[int, typer.Option(help="Which of the two outputs is tumour.", min=0, max=1)] = 1,
) -> None:
    """Make a ResNet-18, 34 or 50 checkpoint from public weights; no code in the file is run.

    A head for one or two classes is kept; any other (ImageNet's) is replaced by one that must be trained:
    sentinode train PATCHES --start MODEL.

    Example: sentinode model import resnet18-pcam.pth --layout tiatoolbox -o pcam.safetensors
    """
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.imports import import_weights  # noqa: PLC0415

    checkpoint = import_weights(weights, layout, mpp=mpp, stride_px=int(stride), tumour=tumour_output)
    save_checkpoint(output, checkpoint)
    if checkpoint.provenance["head"] == "untrained":
        typer.echo("the head is new: it gives 0.5 everywhere until it is trained (sentinode train --start)", err=True)
    typer.echo(
        json.dumps(
            {
                "model": str(output),
                **checkpoint.architecture.to_json(),
                "mpp": checkpoint.mpp,
                "receptive_field_px": checkpoint.receptive_field_px,
                "head": checkpoint.provenance["head"],
            }
        )
    )
