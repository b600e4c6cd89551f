"""One slide of a run: from its file to heatmap, lesions, label and overlay, each made once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from staging.lesions.finding import find_lesions
from staging.lesions.labels import slide_label
from staging.lesions.outlines import write_outlines
from staging.runs.analysis import SlideAnalysis
from staging.runs.cluster import TileNews
from staging.runs.config import RunConfig, slide_provenance
from staging.runs.deaths import marked
from staging.runs.records import FOLDER, artefact_paths, heatmap_path, read_record, record_path, write_record
from staging.runs.slide_fault import SlideFaultError, step
from wsi.coverage import Coverage
from wsi.errors import ArtefactError, CheckpointError, SlideError
from wsi.findings import Findings
from wsi.heatmap_store import read_coverage, read_heatmap, write_heatmap
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.stain_range import StainRange, stain_warnings
from wsi.store import provenance_of
from wsi.tissue import find_tissue, tissue_area_um2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask:
    """What a worker needs to know about one slide.

    Attributes:
        path: the slide file.
        name: the slide's id: its file name without suffix.
        output: the directory of the run.
        model: path of the checkpoint.
        config: the configuration of the run.
        device: where the network runs.
        threads: number of reading threads.
        digests: compare the digests, not only the sizes, of what an earlier call left.
        upsample: analyse a slide coarser than the model, too.
    """

    path: Path
    name: str
    output: Path
    model: Path
    config: RunConfig
    device: str = "auto"
    threads: int = 1
    digests: bool = True
    upsample: bool = False


def read_finished(task: SlideTask) -> SlideAnalysis | None:
    """Return what an earlier call found on a slide, if its file, the settings and the artefacts are unchanged.

    Only bytes are compared: the slide is not opened, and neither torch nor a decoder is loaded.
    """
    if not record_path(task.output, task.name).exists():
        return None
    try:
        made_from = slide_provenance(Slide(task.path).fingerprint(), task.config)
    except SlideError:
        return None  # analyse_slide says what is wrong
    return read_record(task.output, task.name, made_from, digests=task.digests).analysis


def analyse_alone(task: SlideTask) -> SlideAnalysis | BaseException:
    """Like analyse_slide, in a process of its own without tile progress; errors are returned."""
    try:
        return analyse_slide(task, lambda _slide, _done, _total: None)
    except Exception as error:  # noqa: BLE001  (the caller judges it)
        return error


def analyse_slide(task: SlideTask, on_tiles: TileNews) -> SlideAnalysis:
    """Make the missing artefacts of a slide; a mark exists while it is being worked on.

    Raises:
        SlideFaultError: the slide is at fault.
        StorageError: the output cannot be written; the slide is not to blame.
        CheckpointError: the model is at fault.
    """
    with marked(task.output / FOLDER, task.name):
        return _analyse(task, on_tiles)


def _analyse(task: SlideTask, on_tiles: TileNews) -> SlideAnalysis:
    """Make the missing artefacts of a slide.

    Raises:
        SlideFaultError: the slide is at fault.
        StorageError: the output cannot be written; the slide is not to blame.
        CheckpointError: the model is at fault.
    """
    with step("open", slide=task.name, path=task.path):
        slide = Slide.open(task.path, mpp=task.config.mpp, on_bad_tile=task.config.on_bad_tile)
    with slide, _in_doubt(slide.warnings):
        with step("open", slide=task.name, path=task.path):
            made_from = slide_provenance(slide.fingerprint(), task.config)
        recorded = read_record(task.output, task.name, made_from, digests=task.digests)
        if recorded.analysis is not None:
            return recorded.analysis
        heatmap, coverage, stains, broken = _heatmap(task, slide, made_from, on_tiles)
        is_partial = not coverage.is_whole(task.config.coverage_tolerance)
        with step("coverage", slide=task.name, path=task.path):
            if is_partial and not task.config.allow_partial:
                raise SlideError(task.path, f"only {coverage}", mend="use --allow-partial to label what was seen")
        with step("lesions", slide=task.name, path=task.path):
            lesions, masks = find_lesions(
                heatmap,
                threshold=task.config.threshold,
                merge_gap_um=task.config.merge_gap_um,
                smallest_um=task.config.rule.smallest_um,
                peak=task.config.peak,
            )
            analysis = SlideAnalysis(
                slide=task.name,
                label=slide_label(lesions, task.config.rule),
                lesions=lesions,
                probability=round(float(heatmap.array.max()), 6),
                coverage=coverage,
                is_partial=is_partial,
                mpp=slide.frame.pixel_um,
            )
            write_outlines(task.output / "lesions", task.name, lesions, masks, task.config.rule)
        with step("overlay", slide=task.name, path=task.path):
            _draw(task, slide, heatmap, masks)
        repeated = slide.upsampled(_checkpoint(task.model, task.config.model).mpp)
        analysis = replace(analysis, bad_tiles=slide.bad_tiles, warnings=(*slide.warnings, *repeated, *stains))
    write_record(task.output, analysis, made_from)
    return replace(analysis, remade=recorded.broken or broken)


@contextmanager
def _in_doubt(warnings: Sequence[str]) -> Iterator[None]:
    """Add the slide's warnings to the reason of a fault: they are often its cause.

    Raises:
        SlideFaultError: as raised within, with the warnings that its reason does not have.
    """
    try:
        yield
    except SlideFaultError as error:
        unsaid = [warning for warning in warnings if warning not in error.reason]
        if not unsaid:
            raise
        reason = f"{error.reason}; the slide {'; it '.join(unsaid)}"
        raise SlideFaultError(error.path, reason, where=error.where) from error


def _heatmap(
    task: SlideTask, slide: Slide, made_from: dict[str, str], on_tiles: TileNews
) -> tuple[Heatmap, Coverage, tuple[str, ...], tuple[str, ...]]:
    """The heatmap, its coverage, whether its stain is unlike the training set's, and what was wrong with an earlier."""
    checkpoint = _checkpoint(task.model, task.config.model)
    trained = StainRange.of_provenance(checkpoint.provenance)
    path = heatmap_path(task.output, task.name)
    broken: tuple[str, ...] = ()
    # When bad tiles are read as white, only the call that read the slide for the heatmap knows which were bad.
    if provenance_of(path) == made_from and task.config.on_bad_tile == "raise":
        try:
            coverage = read_coverage(path)
            if coverage is not None:
                heatmap = read_heatmap(path)
                with step("tissue", slide=task.name, path=task.path):
                    stains = () if trained is None else stain_warnings(slide, find_tissue(slide), trained)
                return heatmap, coverage, stains, ()
        except ArtefactError as error:
            broken = (str(error),)
    from wsi.cnn.looking import look  # noqa: PLC0415  (loads torch)

    with step("resolution", slide=task.name, path=task.path):
        if not task.upsample:
            slide.check_detail(checkpoint.mpp)
    with step("tissue", slide=task.name, path=task.path):
        tissue = find_tissue(slide)
        stains = stain_warnings(slide, tissue, trained)
        log.info("%s: %.1f mm2 of tissue", task.name, tissue_area_um2(tissue) / 1e6)
    with step("heatmap", slide=task.name, path=task.path):
        heatmap, coverage = look(
            slide,
            checkpoint,
            tissue=tissue,
            device=task.device,
            workers=task.threads,
            on_tiles=lambda done, total: on_tiles(task.name, done, total),
        )
    write_heatmap(path, heatmap, made_from, coverage=coverage, is_own=True)
    return heatmap, coverage, stains, broken


@lru_cache(maxsize=1)
def _checkpoint(path: Path, digest: str) -> Any:  # noqa: ANN401  (Checkpoint, imported late)
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(path)
    if checkpoint.digest != digest:
        raise CheckpointError(path, "changed during the run", mend="start the run again")
    return checkpoint


def _draw(task: SlideTask, slide: Slide, heatmap: Heatmap, masks: tuple[Mask, ...]) -> None:
    from wsi.render import save_png, slide_picture  # noqa: PLC0415  (slow import)

    findings = Findings(heatmap=heatmap, threshold=task.config.threshold, lesions=masks)
    save_png(artefact_paths(task.output, task.name)[0], slide_picture(slide, findings))
