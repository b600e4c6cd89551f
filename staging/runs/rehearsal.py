"""What a run would do, and how much room and time it would take, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from staging.bars import watched
from staging.runs.slide_task import SlideTask, read_finished
from wsi.cores import usable_cores
from wsi.errors import SlideError
from wsi.findings import Findings
from wsi.heatmap_store import write_heatmap
from wsi.raster import Mask
from wsi.render import save_picture, slide_picture
from wsi.slide import Slide
from wsi.tissue import find_tissue, tissue_area_um2

if TYPE_CHECKING:
    from wsi.cnn.checkpoint import Checkpoint

_SAMPLE = 3
_SIDE_UM = 1500.0
_MANY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What was measured on one slide.

    Attributes:
        tissue_share: share of the slide that is tissue.
        once_s: seconds that every slide takes, whatever its tissue: opening, the tissue mask, the overlay.
        per_mm2_s: seconds to look at a mm2 of tissue.
        once_bytes: size of the overlay.
        per_mm2_bytes: size of the heatmap per mm2 of tissue.
    """

    tissue_share: float
    once_s: float
    per_mm2_s: float
    once_bytes: int
    per_mm2_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a run would do.

    Attributes:
        done: slides that are finished and unchanged.
        todo: slides to be analysed, with their area in mm2.
        faults: slides that would be quarantined before any work, and why.
        sampled: what was measured on some of those to be analysed.
        workers: processes that would share the work.
    """

    done: tuple[str, ...]
    todo: dict[str, float]
    faults: dict[str, str]
    sampled: tuple[Sampled, ...] = field(default=())
    workers: int = 1

    @property
    def tissue_mm2(self) -> float:
        """The tissue to be looked at, estimated from the sample."""
        return sum(self.todo.values()) * _mean([one.tissue_share for one in self.sampled])

    @property
    def seconds(self) -> float:
        """The time to do it."""
        once, per_mm2 = (_mean([getattr(one, name) for one in self.sampled]) for name in ("once_s", "per_mm2_s"))
        return (len(self.todo) * once + self.tissue_mm2 * per_mm2) / max(
            1, min(self.workers, usable_cores(), len(self.todo))
        )

    @property
    def bytes(self) -> float:
        """The room for it."""
        once, per_mm2 = (
            _mean([getattr(one, name) for one in self.sampled]) for name in ("once_bytes", "per_mm2_bytes")
        )
        return len(self.todo) * once + self.tissue_mm2 * per_mm2

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        is_known = bool(self.sampled) or not self.todo
        return {
            "done": len(self.done),
            "todo": len(self.todo),
            "quarantined": self.faults,
            "sampled": len(self.sampled),
            "tissue_mm2": round(self.tissue_mm2, 1) if is_known else None,
            "seconds": round(self.seconds, 1) if is_known else None,
            "bytes": round(self.bytes) if is_known else None,
        }


def rehearse(tasks: Sequence[SlideTask], checkpoint: Checkpoint, *, workers: int) -> Rehearsal:
    """Look at every slide's facts, and at a little tissue of a few; nothing is written to the output.

    Args:
        tasks: the slides.
        checkpoint: the network.
        workers: processes that would share the work.

    Raises:
        CheckpointError: the model cannot be used.
        StorageError: there is no room for a sample in the folder for temporary files.
    """
    done: list[str] = []
    todo: dict[str, float] = {}
    faults: dict[str, str] = {}
    for task in watched(tasks, count=len(tasks), verb="slides looked through", name=lambda one: one.name):
        if read_finished(task) is not None:
            done.append(task.name)
            continue
        try:
            with Slide.open(task.path, mpp=task.config.mpp, on_bad_tile=task.config.on_bad_tile) as slide:
                if not task.upsample:
                    slide.check_detail(checkpoint.mpp)
                todo[task.name] = float(np.prod(slide.frame.shape)) * slide.frame.pixel_um**2 / 1e6
        except SlideError as error:
            faults[task.name] = str(error)
    left = [task for task in tasks if task.name in todo]
    chosen = left[:: max(1, len(left) // _SAMPLE)][:_SAMPLE]
    sampled = []
    for task in watched(chosen, count=len(chosen), verb="slides sampled", name=lambda one: one.name):
        try:
            sampled.append(_sample(task, checkpoint))
        except SlideError as error:
            faults[task.name] = str(error)
            del todo[task.name]
    return Rehearsal(done=tuple(done), todo=todo, faults=faults, sampled=tuple(sampled), workers=workers)


def _sample(task: SlideTask, checkpoint: Checkpoint) -> Sampled:
    from wsi.cnn.looking import look  # noqa: PLC0415  (loads torch)

    begun = time.perf_counter()
    with (
        Slide.open(task.path, mpp=task.config.mpp, on_bad_tile=task.config.on_bad_tile) as slide,
        TemporaryDirectory() as folder,
    ):
        tissue = find_tissue(slide)
        part = _some_of(tissue)
        found = time.perf_counter() - begun
        seconds = 0.0
        for _ in range(_MANY):  # the first loads libraries and picks algorithms
            begun = time.perf_counter()
            heatmap, _ = look(slide, checkpoint, tissue=part, device=task.device, workers=task.threads)
            seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        picture = slide_picture(slide, Findings(heatmap=heatmap, threshold=checkpoint.threshold))
        save_picture(Path(folder) / "a.png", picture)
        drawn = time.perf_counter() - begun
        write_heatmap(Path(folder) / "a.zarr", heatmap, {})
        stored = sum(file.stat().st_size for file in (Path(folder) / "a.zarr").rglob("c/*/*"))
        return Sampled(
            tissue_share=float(tissue.array.mean()),
            once_s=found + drawn,
            per_mm2_s=seconds / (tissue_area_um2(part) / 1e6),
            once_bytes=(Path(folder) / "a.png").stat().st_size,
            per_mm2_bytes=stored / (tissue_area_um2(part) / 1e6),
        )


def _some_of(tissue: Mask) -> Mask:
    """The tissue in a square around one in the middle of the list of its pixels."""
    rows, columns = np.nonzero(tissue.array)
    row, column = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
    half = max(1, round(_SIDE_UM / tissue.frame.pixel_um / 2))
    kept = np.zeros_like(tissue.array)
    part = slice(max(0, row - half), row + half), slice(max(0, column - half), column + half)
    kept[part] = tissue.array[part]
    return Mask(frame=tissue.frame, array=kept)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
