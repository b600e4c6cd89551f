"""``sentinode train``: a checkpoint from labelled patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import Device


def train(
    patches: Annotated[list[Path], typer.Argument(help="What sentinode patches wrote; several are joined.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The checkpoint, model.safetensors.", show_default=False)
    ],
    epochs: Annotated[int, typer.Option(help="Passes over the patches.", min=1)] = 12,
    batch: Annotated[int, typer.Option(help="Patches per step.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Train the network on patches and keep the epoch that is best on held-out patients.

    Example: sentinode train patches.zarr -o model.safetensors --epochs 12
    """
    from annotations.patch_store import join_patches, read_patches  # noqa: PLC0415  (slow import)
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.training import train as fit  # noqa: PLC0415

    found = join_patches([read_patches(path) for path in patches])
    result = fit(
        found.images,
        found.targets,
        mpp=found.mpp,
        groups=found.table["patient"],
        epochs=epochs,
        batch=batch,
        seed=seed,
        device=device,
        on_epoch=lambda epoch: typer.echo(str(epoch), err=True),
    )
    save_checkpoint(output, result.checkpoint)
    typer.echo(json.dumps({"model": str(output), "patches": len(found.images), "mpp": found.mpp}))
