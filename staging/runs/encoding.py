"""Encode slides as features of their tiles: each slide once; a bad slide is set aside and the rest go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from staging.bars import CohortProgress
from staging.cohorts.camelyon import SlideFile
from staging.errors import ConfigurationError
from staging.lesions.seen import Seen, SeenRule, seen_json
from staging.runs.cluster import each
from staging.runs.config import refuse_other_settings
from staging.runs.slide_fault import Failure, SlideFaultError, quarantine_table, step
from wsi.cores import usable_cores
from wsi.coverage import Coverage, stored_coverage
from wsi.errors import ArtefactError, CheckpointError, StorageError, plain
from wsi.inputs import read_json
from wsi.lock import OutputLock
from wsi.readers.base import OnBadTile
from wsi.readers.resolution import Mpp, mpp_json
from wsi.slide import Slide
from wsi.store import atomic_text, check_kept, json_text, name_fault, provenance_of, sweep
from wsi.tissue import find_tissue

if TYPE_CHECKING:
    from wsi.cnn.encoders.description import Description
    from wsi.cnn.encoders.encoder import Encoder

MASK = "find_tissue at 16 um/px"
"""How the tiles to encode are chosen."""

RECORD = "features.json"
"""File with the settings in the output."""

_FORMAT = 1

Three = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan:
    """How slides are encoded.

    Attributes:
        encoder: a torch.export or ONNX file; with a description its weights.
        mpp: um per px of the tiles.
        size_px: side of a tile.
        stride_px: distance from tile to tile.
        mean, std: of red, green and blue; the encoder receives (value / 255 - mean) / std.
        precision: the type in which features are stored.
        trust: also load files that can run code they contain.
        device: where the encoder runs.
        workers: number of processes; None for one on a GPU, else one per core.
        batch: tiles per batch; None chooses.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        on_bad_tile: whether a tile that cannot be decoded fails its slide, or is read as white and reported.
        seen_rule: which slides are quarantined because too much of their tissue cannot be read.
        upsample: encode slides coarser than the tiles, too.
        description: of the encoder, where its file holds weights alone.
    """

    encoder: Path
    mpp: float
    size_px: int
    stride_px: int
    mean: Three = (0.485, 0.456, 0.406)
    std: Three = (0.229, 0.224, 0.225)
    precision: Literal["float16", "float32"] = "float16"
    trust: bool = False
    device: str = "auto"
    workers: int | None = None
    batch: int | None = None
    slide_mpp: Mpp | None = None
    on_bad_tile: OnBadTile = "raise"
    seen_rule: SeenRule = field(default_factory=SeenRule)
    upsample: bool = False
    description: Description | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCohort:
    """The encoded slides.

    Attributes:
        output: the directory of the features.
        results: of the finished slides, by name.
        failures: the others, by name.
        encoder: its kind and what identifies it.
        width: features per tile.
    """

    output: Path
    results: tuple[FeatureResult, ...]
    failures: tuple[Failure, ...]
    encoder: Mapping[str, Any]
    width: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {
            "features": str(self.output),
            "slides": len(self.results),
            "made_before": sum(one.was_there for one in self.results),
            "tiles": sum(one.tiles for one in self.results),
            "width": self.width,
            "encoder": dict(self.encoder),
            "bad_tiles": {one.name: one.bad_tiles for one in self.results if one.bad_tiles},
            **seen_json({one.name: one.seen for one in self.results}, {one.slide: str(one) for one in self.failures}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderChoice:
    """What it takes to load an encoder, here or in a worker; as in EncodingPlan."""

    path: Path
    size_px: int
    mean: Three
    std: Three
    device: str
    trust: bool
    description: Description | None

    def load(self) -> Encoder:
        """Load it.

        Raises:
            CheckpointError: it cannot be used.
        """
        from wsi.cnn.encoders.encoder import load_encoder  # noqa: PLC0415  (loads torch)

        return load_encoder(
            self.path,
            size_px=self.size_px,
            mean=self.mean,
            std=self.std,
            device=self.device,
            trust=self.trust,
            description=self.description,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTask:
    """What a worker needs to know about one slide.

    ``output`` is the Zarr folder, ``digest`` that of the encoder's file at the start.
    """

    path: Path
    name: str
    output: Path
    encoder: EncoderChoice
    digest: str
    mpp: float
    stride_px: int
    precision: Literal["float16", "float32"]
    batch: int | None
    threads: int
    slide_mpp: Mpp | None
    on_bad_tile: OnBadTile
    seen_rule: SeenRule
    upsample: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureResult:
    """The features of a slide.

    Attributes:
        name: the slide's id.
        tiles: number of tiles encoded.
        was_there: whether an earlier call made them.
        bad_tiles: number of tiles read as white.
        seen: how much of the tissue they show.
    """

    name: str
    tiles: int
    was_there: bool
    bad_tiles: int
    seen: Seen


def encode_cohort(slides: Sequence[SlideFile], output: Path, plan: EncodingPlan) -> EncodedCohort:
    """Make the missing features of every slide.

    Args:
        slides: what find_slides found.
        output: a directory with one Zarr folder per slide, all made with one plan.
        plan: how slides are encoded.

    Raises:
        ConfigurationError: mean, std or stride is invalid, or the directory was made with other settings.
        CheckpointError: the encoder cannot be used.
        OutputInUseError: another call is using the directory.
        StorageError: the output cannot be written; a second call resumes.
    """
    from wsi.cnn.encoders.features import TileGeometry  # noqa: PLC0415

    mean, std = plan.mean, plan.std
    if min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise ConfigurationError(
            None, f"pixels cannot be normalised by mean {mean} and std {std}", mend="give another --mean or --std"
        )
    try:
        geometry = TileGeometry(mpp=plan.mpp, size_px=plan.size_px, stride_px=plan.stride_px)
    except ValueError as error:
        raise ConfigurationError(None, str(error), mend="give another --stride") from error
    choice = EncoderChoice(
        path=plan.encoder,
        size_px=plan.size_px,
        mean=mean,
        std=std,
        device=plan.device,
        trust=plan.trust,
        description=plan.description,
    )
    encoder = choice.load()
    settings = {
        "format": _FORMAT,
        "encoder": encoder.to_json(),
        "tiles": geometry.to_json(),
        "precision": plan.precision,
        "mask": MASK,
        "slide_mpp": mpp_json(plan.slide_mpp),
        "on_bad_tile": plan.on_bad_tile,
    }
    refuse_other_settings(output, settings, record=RECORD)
    on_gpu = encoder.device.type == "cuda"
    tasks = [
        FeatureTask(
            path=slide.path,
            name=slide.name,
            output=output / f"{slide.name}.zarr",
            encoder=choice,
            digest=encoder.digest,
            mpp=plan.mpp,
            stride_px=plan.stride_px,
            precision=plan.precision,
            batch=plan.batch,
            threads=usable_cores() if on_gpu or len(slides) == 1 else 1,
            slide_mpp=plan.slide_mpp,
            on_bad_tile=plan.on_bad_tile,
            seen_rule=plan.seen_rule,
            upsample=plan.upsample,
        )
        for slide in slides
    ]
    processes = plan.workers or (1 if on_gpu else usable_cores())
    results, failures = _encode_slides(tasks, output, settings, processes=processes)
    return EncodedCohort(
        output=output,
        results=results,
        failures=failures,
        encoder={"kind": encoder.kind, **encoder.to_json()},
        width=encoder.width,
    )


def _encode_slides(
    tasks: Sequence[FeatureTask], output: Path, settings: Mapping[str, Any], *, processes: int
) -> tuple[tuple[FeatureResult, ...], tuple[Failure, ...]]:
    done: list[FeatureResult] = []
    failures: list[Failure] = []
    with OutputLock(output) as lock, CohortProgress(len(tasks), verb="slides encoded") as progress:
        sweep(output)
        atomic_text(output / RECORD, json_text(settings))
        for task in tasks:
            fault = name_fault(task.name)
            if fault is not None:
                path = plain(str(task.path))
                failures.append(Failure(slide=plain(task.name), path=path, step="name", reason=fault))
                progress.slide(task.name, f"quarantined at name: {fault}")
        named = [task for task in tasks if name_fault(task.name) is None]
        for task, outcome in each(encode_slide, named, workers=processes, on_tiles=progress.tiles):
            if isinstance(outcome, StorageError | CheckpointError | ConnectionError):
                raise outcome
            if isinstance(outcome, FeatureResult):
                done.append(outcome)
                progress.slide(task.name, f"{outcome.tiles} tiles")
                continue
            failure = Failure.of(task.name, task.path, outcome)
            failures.append(failure)
            progress.slide(task.name, f"quarantined at {failure}")
        lock.check()
        check_kept(output / f"{one.name}.zarr" for one in done)
        atomic_text(output / "quarantine.csv", quarantine_table(sorted(failures)))
    return tuple(sorted(done, key=lambda one: one.name)), tuple(sorted(failures))


def encode_slide(task: FeatureTask, on_tiles: Callable[[str, int, int], None]) -> FeatureResult:
    """Make the features of a slide unless they exist.

    Raises:
        SlideFaultError: the slide is at fault; ``where`` is the step.
        StorageError: the output is at fault.
        CheckpointError: the encoder is at fault.
    """
    from wsi.cnn.encoders.features import (  # noqa: PLC0415  (loads torch)
        TileGeometry,
        features_provenance,
        read_features,
        write_features,
    )

    encoder = _encoder(task.encoder, task.digest)
    geometry = TileGeometry(mpp=task.mpp, size_px=encoder.size_px, stride_px=task.stride_px)
    with step("open", slide=task.name, path=task.path):
        slide = Slide.open(task.path, mpp=task.slide_mpp, on_bad_tile=task.on_bad_tile)
    with slide:
        with step("open", slide=task.name, path=task.path):
            made_from = features_provenance(
                slide.fingerprint(), encoder, geometry, mask=MASK, precision=task.precision
            ) | {"slide_mpp": mpp_json(task.slide_mpp), "on_bad_tile": task.on_bad_tile}
        if provenance_of(task.output) == made_from:
            with suppress(ArtefactError):  # damaged features are made again
                made = read_features(task.output)
                seen = _seen(task, made.coverage)
                return FeatureResult(
                    name=task.name, tiles=len(made), was_there=True, bad_tiles=_read_bad(task), seen=seen
                )
        with step("resolution", slide=task.name, path=task.path):
            if not task.upsample:
                slide.check_detail(task.mpp)
        with step("tissue", slide=task.name, path=task.path):
            tissue = find_tissue(slide)
            downsample = slide.frame_at(task.mpp).downsample

        def coverage() -> Coverage:
            with step("coverage", slide=task.name, path=task.path):
                found = stored_coverage(slide, tissue, downsample=downsample)
                _seen(task, found)
                return found

        coverage()  # missing tiles are known before hours of work
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
                coverage=coverage,
            )
        _bad_path(task).unlink(missing_ok=True)
        if slide.bad_tiles:
            atomic_text(_bad_path(task), json_text([asdict(tile) for tile in slide.bad_tiles]))
        seen = task.seen_rule.judge(coverage())
        return FeatureResult(name=task.name, tiles=count, was_there=False, bad_tiles=len(slide.bad_tiles), seen=seen)


def _seen(task: FeatureTask, coverage: Coverage | None) -> Seen:
    """Judge how much of a slide's tissue can be read.

    Raises:
        SlideFaultError: not enough of it; ``where`` is the step "coverage".
    """
    fault = task.seen_rule.fault(coverage)
    if fault is not None:
        raise SlideFaultError(task.path, fault, where="coverage")
    return task.seen_rule.judge(coverage)


def _bad_path(task: FeatureTask) -> Path:
    """Return the file that lists the tiles of a slide that were read as white."""
    return task.output.with_suffix(".bad_tiles.json")


def _read_bad(task: FeatureTask) -> int:
    path = _bad_path(task)
    return len(read_json(path)) if path.is_file() else 0


@lru_cache(maxsize=1)
def _encoder(choice: EncoderChoice, digest: str) -> Encoder:
    encoder = choice.load()
    if encoder.digest != digest:
        raise CheckpointError(choice.path, "changed while the slides were being encoded", mend="start again")
    return encoder
