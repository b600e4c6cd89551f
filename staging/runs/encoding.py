"""Slides to features of their tiles: each made once, a bad slide set aside, the rest going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from staging.errors import ConfigurationError
from staging.lesions.tables import csv_text
from staging.runs.bars import CohortProgress
from staging.runs.cluster import each
from staging.runs.config import differences
from staging.runs.slide_fault import step
from wsi.errors import ArtefactError, CheckpointError, StorageError
from wsi.inputs import read_json
from wsi.lock import OutputLock
from wsi.slide import Slide
from wsi.store import atomic_text, json_text, provenance_of, sweep
from wsi.tissue import find_tissue

MASK = "find_tissue at 16 um/px"
"""Which tiles are encoded."""

_SETTINGS = "features.json"

Three = tuple[float, float, float]


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


def encode_slides(
    tasks: Sequence[FeatureTask], output: Path, settings: dict[str, Any], *, processes: int
) -> tuple[list[FeatureResult], list[tuple[str, str, str, str]]]:
    """What was made, and (slide, path, step, reason) of what could not be."""
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
            step = getattr(outcome, "where", None) or "worker"
            reason = getattr(outcome, "reason", None) or str(outcome) or type(outcome).__name__
            failures.append((task.name, str(task.path), step, reason))
            progress.slide(task.name, f"quarantined at {step}: {reason}")
        failures.sort()
        atomic_text(output / "quarantine.csv", csv_text(("slide", "path", "step", "reason"), failures))
    return sorted(done, key=lambda one: one.name), failures


def encode_slide(task: FeatureTask, on_tiles: Callable[[str, int, int], None]) -> FeatureResult:
    """Make the features of a slide unless they are there.

    Raises:
        SlideFaultError: the slide is at fault; ``where`` is the step.
        StorageError: the output side is at fault.
        CheckpointError: the encoder is at fault.
    """
    from wsi.cnn.encoders.features import (  # noqa: PLC0415  (loads torch)
        TileGeometry,
        features_provenance,
        read_features,
        write_features,
    )

    encoder = _encoder(task.encoder)
    geometry = TileGeometry(mpp=task.mpp, size_px=encoder.size_px, stride_px=task.stride_px)
    with step("open", slide=task.name, path=task.path):
        slide = Slide.open(task.path, mpp=task.slide_mpp, on_bad_tile=task.on_bad_tile)
    with slide:
        with step("open", slide=task.name, path=task.path):
            made_from = features_provenance(
                slide.fingerprint(), encoder, geometry, mask=MASK, precision=task.precision
            ) | {"slide_mpp": task.slide_mpp, "on_bad_tile": task.on_bad_tile}
        if provenance_of(task.output) == made_from:
            with suppress(ArtefactError):  # what is damaged is made again
                tiles = len(read_features(task.output))
                return FeatureResult(name=task.name, tiles=tiles, was_there=True, bad_tiles=_read_bad(task))
        with step("tissue", slide=task.name, path=task.path):
            tissue = find_tissue(slide)
        with step("features", slide=task.name, path=task.path):
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
        _bad_path(task).unlink(missing_ok=True)
        if slide.bad_tiles:
            atomic_text(_bad_path(task), json_text([asdict(tile) for tile in slide.bad_tiles]))
        return FeatureResult(name=task.name, tiles=count, was_there=False, bad_tiles=len(slide.bad_tiles))


def _bad_path(task: FeatureTask) -> Path:
    """Where the tiles of a slide are listed that were read as white, if any were."""
    return task.output.with_suffix(".bad_tiles.json")


def _read_bad(task: FeatureTask) -> int:
    path = _bad_path(task)
    return len(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0


@lru_cache(maxsize=1)
def _encoder(wanted: LoadedEncoder) -> Any:  # noqa: ANN401  (an Encoder, imported late)
    from wsi.cnn.encoders.encoder import load_encoder  # noqa: PLC0415  (loads torch)

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


def check_settings(output: Path, settings: dict[str, Any], *, record: str = _SETTINGS) -> None:
    """Refuse a directory of other settings before anything is touched; record is the file that tells its settings."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigurationError(output, "is a file", mend="name a directory")
    path = output / record
    if not path.exists():
        strangers = [entry.name for entry in output.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise ConfigurationError(output, f"holds {strangers[0]} but no {record}", mend="name an empty directory")
        return
    try:
        theirs = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(path, f"cannot be read: {error}", mend="choose another output") from error
    if not isinstance(theirs, dict):
        raise ConfigurationError(path, "holds no settings", mend="choose another output")
    # as JSON reads it, so that tuples and lists are alike
    found = differences(json.loads(json.dumps(settings)), theirs)
    if found:
        raise ConfigurationError(
            output,
            f"was made with other settings: {'; '.join(found)}",
            mend="choose another output, or the same settings; nothing was touched",
        )
