"""``sentinode features``: the tiles of slides as features of an encoder made elsewhere."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from staging.commands.options import Device, OnBadTile, SlideMpp, Workers

log = logging.getLogger(__name__)

EXIT_QUARANTINED = 3
_FORMAT = 1
_MASK = "find_tissue at 16 um/px"
_SETTINGS = "features.json"

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
    from staging.camelyon import find_slides  # noqa: PLC0415  (slow import)
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from wsi.cnn.encoder import load_encoder  # noqa: PLC0415  (loads torch)
    from wsi.cnn.features import TileGeometry  # noqa: PLC0415
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
        "mask": _MASK,
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
    _check_settings(output, settings)
    done, failures = _encode_all(tasks, output, settings, processes=processes)
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
                "quarantined": {name: f"{stage}: {reason}" for name, _, stage, reason in failures},
            }
        )
    )
    if failures:
        raise typer.Exit(EXIT_QUARANTINED)


def _encode_all(
    tasks: Sequence[FeatureTask], output: Path, settings: dict[str, Any], *, processes: int
) -> tuple[list[FeatureResult], list[tuple[str, str, str, str]]]:
    """What was made, and (slide, path, stage, reason) of what could not be."""
    from staging.cluster import each  # noqa: PLC0415  (slow import)
    from staging.progress import CohortProgress  # noqa: PLC0415
    from staging.tables import csv_text  # noqa: PLC0415
    from wsi.errors import CheckpointError, StorageError  # noqa: PLC0415
    from wsi.lock import OutputLock  # noqa: PLC0415
    from wsi.store import atomic_text, json_text, sweep  # noqa: PLC0415

    done: list[FeatureResult] = []
    failures: list[tuple[str, str, str, str]] = []
    with OutputLock(output), CohortProgress(len(tasks), verb="slides encoded") as progress:
        sweep(output)
        atomic_text(output / _SETTINGS, json_text(settings))
        for task, outcome in each(encode_slide, tasks, workers=processes, on_tiles=progress.tiles):
            if isinstance(outcome, StorageError | CheckpointError | ConnectionError):
                raise outcome
            if isinstance(outcome, FeatureResult):
                done.append(outcome)
                progress.slide(task.name, f"{outcome.tiles} tiles")
                continue
            stage = getattr(outcome, "place", None) or "worker"
            reason = getattr(outcome, "reason", None) or str(outcome) or type(outcome).__name__
            failures.append((task.name, str(task.path), stage, reason))
            progress.slide(task.name, f"quarantined at {stage}: {reason}")
        failures.sort()
        atomic_text(output / "quarantine.csv", csv_text(("slide", "path", "stage", "reason"), failures))
    return sorted(done, key=lambda one: one.name), failures


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEncoder:
    """What a worker needs to load the encoder once for all its slides; digest is that of the file at the start."""

    path: Path
    digest: str
    size_px: int
    mean: Three
    std: Three
    device: str
    trust: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTask:
    """What a worker needs to know of one slide; output is the Zarr folder."""

    path: Path
    name: str
    output: Path
    encoder: LoadedEncoder
    mpp: float
    stride_px: int
    precision: Literal["float16", "float32"]
    batch: int | None
    threads: int
    slide_mpp: float | None
    on_bad_tile: Literal["raise", "white"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureResult:
    """How many tiles of a slide were encoded, whether by an earlier call, and how many read as white."""

    name: str
    tiles: int
    was_there: bool
    bad_tiles: int


def encode_slide(task: FeatureTask, on_tiles: Callable[[str, int, int], None]) -> FeatureResult:
    """Make the features of a slide unless they are there.

    Raises:
        SlideFaultError: the slide is at fault; its place is the stage.
        StorageError: the output side is at fault.
        CheckpointError: the encoder is at fault.
    """
    from wsi.cnn.features import (  # noqa: PLC0415  (loads torch)
        TileGeometry,
        features_provenance,
        read_features,
        write_features,
    )
    from wsi.errors import ArtefactError  # noqa: PLC0415
    from wsi.slide import Slide  # noqa: PLC0415
    from wsi.store import provenance_of  # noqa: PLC0415
    from wsi.tissue import find_tissue  # noqa: PLC0415

    encoder = _encoder(task.encoder)
    geometry = TileGeometry(mpp=task.mpp, size_px=encoder.size_px, stride_px=task.stride_px)
    with _stage(task, "open"):
        slide = Slide.open(task.path, mpp=task.slide_mpp, on_bad_tile=task.on_bad_tile)
    with slide:
        with _stage(task, "open"):
            made_from = features_provenance(
                slide.fingerprint(), encoder, geometry, mask=_MASK, precision=task.precision
            ) | {"slide_mpp": task.slide_mpp, "on_bad_tile": task.on_bad_tile}
        if provenance_of(task.output) == made_from:
            with suppress(ArtefactError):  # what is damaged is made again
                return FeatureResult(name=task.name, tiles=len(read_features(task.output)), was_there=True, bad_tiles=0)
        with _stage(task, "tissue"):
            tissue = find_tissue(slide)
        with _stage(task, "features"):
            count = write_features(
                task.output,
                slide,
                encoder,
                tissue=tissue,
                geometry=geometry,
                provenance=made_from,
                precision=task.precision,
                batch=task.batch,
                workers=task.threads,
                on_tiles=lambda done, total: on_tiles(task.name, done, total),
            )
        return FeatureResult(name=task.name, tiles=count, was_there=False, bad_tiles=len(slide.bad_tiles))


@lru_cache(maxsize=1)
def _encoder(wanted: LoadedEncoder) -> Any:  # noqa: ANN401  (an Encoder, imported late)
    from wsi.cnn.encoder import load_encoder  # noqa: PLC0415  (loads torch)
    from wsi.errors import CheckpointError  # noqa: PLC0415

    encoder = load_encoder(
        wanted.path,
        size_px=wanted.size_px,
        mean=wanted.mean,
        std=wanted.std,
        device=wanted.device,
        trust=wanted.trust,
    )
    if encoder.digest != wanted.digest:
        raise CheckpointError(wanted.path, "changed while the slides were encoded", mend="start again")
    return encoder


@contextmanager
def _stage(task: FeatureTask, stage: str) -> Iterator[None]:
    """Say at which stage a slide failed; failures of the output side and of the encoder pass unchanged."""
    from staging.analysis import SlideFaultError  # noqa: PLC0415  (slow import)
    from wsi.errors import CheckpointError, PathologyError, StorageError  # noqa: PLC0415

    try:
        yield
    except (StorageError, CheckpointError):
        raise
    except Exception as error:
        log.debug("%s failed at %s", task.name, stage, exc_info=True)
        reason = str(error) if isinstance(error, PathologyError) else f"unexpected {type(error).__name__}: {error}"
        raise SlideFaultError(task.path, reason, place=stage) from error


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    """Refuse a directory of other settings before anything is touched."""
    from staging.config import differences  # noqa: PLC0415  (slow import)
    from staging.errors import ConfigurationError  # noqa: PLC0415

    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigurationError(output, "is a file", mend="name a directory")
    path = output / _SETTINGS
    if not path.exists():
        strangers = [entry.name for entry in output.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise ConfigurationError(output, f"holds {strangers[0]} but no {_SETTINGS}", mend="name an empty directory")
        return
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(path, f"cannot be read: {error}", mend="choose another output") from error
    # as JSON reads it, so that tuples and lists are alike
    found = differences(json.loads(json.dumps(settings)), theirs)
    if found:
        raise ConfigurationError(
            output,
            f"was made with other settings: {'; '.join(found)}",
            mend="choose another output, or the same settings; nothing was touched",
        )
