"""One slide of a run: from its file to heatmap, lesions, label and overlay, each made once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from staging.lesions.finding import Lesion, find_lesions
from staging.lesions.labels import SlideLabel, slide_label
from staging.lesions.outlines import write_outlines
from staging.runs.cluster import TileNews
from staging.runs.config import RunConfig, slide_provenance
from staging.runs.slide_fault import step
from wsi.errors import CheckpointError
from wsi.geometry import Region
from wsi.heatmap_store import read_heatmap, write_heatmap
from wsi.inputs import read_json
from wsi.raster import Heatmap, Mask
from wsi.readers.base import BadTile
from wsi.slide import Slide
from wsi.store import atomic_text, json_text, provenance_of
from wsi.tissue import find_tissue, tissue_area_um2

log = logging.getLogger(__name__)
_OVERLAY_PX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask:
    """What a worker needs to know of one slide.

    Attributes:
        path: the slide file.
        name: the slide's id, its file name without suffix.
        output: the run's directory.
        model: path of the checkpoint.
        config: what decides the result.
        device: where the network runs.
        threads: reading threads.
    """

    path: Path
    name: str
    output: Path
    model: Path
    config: RunConfig
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideAnalysis:
    """What a run found on one slide.

    Attributes:
        slide: the slide's id.
        label: by the largest lesion.
        lesions: largest first.
        probability: the heatmap's maximum.
        tissue_mm2: area the tissue detector found.
        mpp: um per level-0 px that was used.
        bad_tiles: tiles that could not be decoded and were read as white.
    """

    slide: str
    label: SlideLabel
    lesions: tuple[Lesion, ...]
    probability: float
    tissue_mm2: float
    mpp: float
    bad_tiles: tuple[BadTile, ...] = ()

    @property
    def largest_um(self) -> float:
        """Longest diameter of the largest lesion, 0 without one."""
        return max((lesion.longest_diameter_um for lesion in self.lesions), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which from_json makes the same analysis."""
        return {**asdict(self), "label": self.label.value}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SlideAnalysis:
        """The analysis that to_json wrote."""
        lesions = tuple(
            Lesion(**{**lesion, "centroid": tuple(lesion["centroid"]), "region": Region(**lesion["region"])})
            for lesion in record["lesions"]
        )
        bad = tuple(BadTile(**tile) for tile in record["bad_tiles"])
        return cls(**{**record, "label": SlideLabel.parse(record["label"]), "lesions": lesions, "bad_tiles": bad})


def analyse_slide(task: SlideTask, on_tiles: TileNews) -> SlideAnalysis:
    """Make every artefact of a slide that is not there yet.

    Raises:
        SlideFaultError: the slide is at fault.
        StorageError: the output side is at fault; no slide is to blame.
        CheckpointError: the model is at fault.
    """
    with step("open", slide=task.name, path=task.path):
        slide = Slide.open(task.path, mpp=task.config.mpp, on_bad_tile=task.config.on_bad_tile)
    with slide:
        with step("open", slide=task.name, path=task.path):
            made_from = slide_provenance(slide.fingerprint(), task.config)
        done = _recorded(task, made_from)
        if done is not None:
            return done
        heatmap = _heatmap(task, slide, made_from, on_tiles)
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
                tissue_mm2=round(float(heatmap.tissue.sum()) * heatmap.frame.pixel_um**2 / 1e6, 6),
                mpp=slide.frame.pixel_um,
            )
            write_outlines(task.output / "lesions", task.name, lesions, masks, task.config.rule)
        with step("overlay", slide=task.name, path=task.path):
            _draw(task, slide, heatmap, masks)
        analysis = replace(analysis, bad_tiles=slide.bad_tiles)
    atomic_text(_record_path(task), json_text({"made_from": made_from, "analysis": analysis.to_json()}))
    return analysis


def _heatmap(task: SlideTask, slide: Slide, made_from: dict[str, str], on_tiles: TileNews) -> Heatmap:
    path = task.output / "heatmaps" / f"{task.name}.zarr"
    # Where bad tiles are read as white, what the heatmap's reading found bad is known only to the run that read it.
    if provenance_of(path) == made_from and task.config.on_bad_tile == "raise":
        return read_heatmap(path)
    from wsi.cnn.inference import infer  # noqa: PLC0415  (loads torch)

    with step("tissue", slide=task.name, path=task.path):
        tissue = find_tissue(slide)
        log.info("%s: %.1f mm2 of tissue", task.name, tissue_area_um2(tissue) / 1e6)
    with step("heatmap", slide=task.name, path=task.path):
        heatmap = infer(
            slide,
            _checkpoint(task.model, task.config.model),
            tissue=tissue,
            device=task.device,
            workers=task.threads,
            on_tiles=lambda done, total: on_tiles(task.name, done, total),
        )
    write_heatmap(path, heatmap, made_from)
    return heatmap


@lru_cache(maxsize=1)
def _checkpoint(path: Path, digest: str) -> Any:  # noqa: ANN401  (Checkpoint, imported late)
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(path)
    if checkpoint.digest != digest:
        raise CheckpointError(path, "changed while the run was going on", mend="start the run again")
    return checkpoint


def _draw(task: SlideTask, slide: Slide, heatmap: Heatmap, masks: Sequence[Mask]) -> None:
    from wsi.render import overlay, save_png, thumbnail  # noqa: PLC0415  (slow import)

    picture = overlay(thumbnail(slide, max_px=_OVERLAY_PX), heatmap, threshold=task.config.threshold, outlines=masks)
    save_png(task.output / "overlays" / f"{task.name}.png", picture)


def _record_path(task: SlideTask) -> Path:
    return task.output / "slides" / f"{task.name}.json"


def _recorded(task: SlideTask, made_from: dict[str, str]) -> SlideAnalysis | None:
    """The analysis of an earlier run when it was made from the same and its artefacts are all there."""
    try:
        record = read_json(_record_path(task))
        if record["made_from"] != made_from:
            return None
        analysis = SlideAnalysis.from_json(record["analysis"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    artefacts = (
        task.output / "overlays" / f"{task.name}.png",
        task.output / "lesions" / f"{task.name}.geojson",
        task.output / "lesions" / f"{task.name}.xml",
    )
    complete = all(path.is_file() for path in artefacts)
    complete = complete and provenance_of(task.output / "heatmaps" / f"{task.name}.zarr") == made_from
    return analysis if complete else None
