"""The heatmap of one slide, and optionally a picture and a TIFF of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from staging.cohorts.training_patients import trained_on, training_patients
from staging.lesions.finding import find_lesions
from staging.lesions.settings import SMALLEST_UM, peak_of
from staging.runs.cluster import TileNews
from staging.stages.pn import BY_NAME
from wsi.coverage import Coverage
from wsi.errors import ArtefactError, OutputExistsError
from wsi.findings import Findings
from wsi.heatmap_store import read_coverage, read_heatmap, write_heatmap
from wsi.raster import Heatmap
from wsi.readers.base import BadTile, OnBadTile
from wsi.readers.resolution import Mpp, mpp_json
from wsi.render import save_picture, slide_picture
from wsi.slide import Slide
from wsi.stain_range import StainRange, stain_warnings
from wsi.store import identity, provenance_of
from wsi.tissue import find_tissue
from wsi.writing.heatmap_file import write_eight_bit_heatmap, write_heatmap_tiff

if TYPE_CHECKING:
    from wsi.cnn.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeHeatmap:
    """A heatmap, its path, how much tissue was seen, tiles read as white, if it was there, and what is doubtful."""

    path: Path
    heatmap: Heatmap
    coverage: Coverage
    bad_tiles: tuple[BadTile, ...]
    was_there: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        frame = self.heatmap.frame
        return {
            "heatmap": str(self.path),
            "rows": frame.shape[0],
            "columns": frame.shape[1],
            "um_per_cell": frame.pixel_um,
            "maximum": round(float(self.heatmap.array.max()), 4),
            "bad_tiles": [asdict(tile) for tile in self.bad_tiles],
            "coverage": self.coverage.to_json(),
            "warnings": list(self.warnings),
        }


def make_heatmap(
    slide: str,
    output: Path,
    *,
    model: Path,
    picture: Path | None = None,
    tiff: Path | None = None,
    tiff8: Path | None = None,
    device: str = "auto",
    threads: int = 1,
    slide_mpp: Mpp | None = None,
    on_bad_tile: OnBadTile = "raise",
    overwrite: bool = False,
    upsample: bool = False,
    on_tiles: TileNews,
) -> MadeHeatmap:
    """Run a network over the tissue of a slide, unless its heatmap is there already.

    Args:
        slide: its path or URL.
        output: the heatmap, a Zarr folder.
        model: the checkpoint.
        picture: the slide and what was found on it, as a run with the model's own settings draws them.
        tiff: the heatmap as a pyramidal float32 TIFF.
        tiff8: the same with 8 bits.
        device: where the network runs.
        threads: number of reading threads.
        slide_mpp: um per level-0 px if the slide states none, or an OverridingMpp.
        on_bad_tile: whether a tile that cannot be decoded raises, or is read as white.
        overwrite: replace a heatmap of another slide or model.
        upsample: look at a slide coarser than the model, too.
        on_tiles: called with (slide name, tiles done, total tiles).

    Raises:
        OutputExistsError: a heatmap of another slide or model is there, or a picture of another beside a kept one.
        SlideError: the slide cannot be read, or is coarser than the model.
        CheckpointError: the model cannot be used.
        StorageError: an output cannot be written.
    """
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.looking import look  # noqa: PLC0415

    checkpoint = load_checkpoint(model)
    with Slide.open(slide, mpp=slide_mpp, on_bad_tile=on_bad_tile) as opened:
        if not upsample:
            opened.check_detail(checkpoint.mpp)
        made_from: dict[str, Any] = {"slide": opened.fingerprint(), "model": checkpoint.digest}
        # lesions measured without the checkpoint are those that it finds
        made_from |= {"threshold": checkpoint.threshold, "peak": peak_of(checkpoint.provenance)}
        made_from |= _read_otherwise(slide_mpp, on_bad_tile)
        since = identity(output)
        earlier = _earlier(output, made_from, overwrite=overwrite)
        tissue = find_tissue(opened)
        stains = stain_warnings(opened, tissue, StainRange.of_provenance(checkpoint.provenance))
        heatmap, coverage = earlier or look(
            opened,
            checkpoint,
            tissue=tissue,
            device=device,
            workers=threads,
            on_tiles=lambda done, total: on_tiles(opened.name, done, total),
        )
        if earlier is None:
            write_heatmap(output, heatmap, made_from, coverage=coverage, since=since)
        is_kept = earlier is not None and not overwrite
        if tiff is not None:
            _write(tiff, lambda path: write_heatmap_tiff(path, heatmap), is_kept=is_kept)
        if tiff8 is not None:
            _write(tiff8, lambda path: write_eight_bit_heatmap(path, heatmap), is_kept=is_kept)
        if picture is not None:
            drawn = slide_picture(opened, _findings(heatmap, checkpoint))
            _write(picture, lambda path: save_picture(path, drawn), is_kept=is_kept)
        return MadeHeatmap(
            path=output,
            heatmap=heatmap,
            coverage=coverage,
            bad_tiles=opened.bad_tiles,
            was_there=earlier is not None,
            warnings=(
                *opened.warnings,
                *opened.upsampled(checkpoint.mpp),
                *stains,
                *_known(opened.name, checkpoint.provenance),
            ),
        )


def _findings(heatmap: Heatmap, checkpoint: Checkpoint) -> Findings:
    """The lesions that a run with the checkpoint's own settings finds."""
    _, masks = find_lesions(
        heatmap,
        threshold=checkpoint.threshold,
        smallest_um=SMALLEST_UM,
        peak=peak_of(checkpoint.provenance),
    )
    return Findings(heatmap=heatmap, threshold=checkpoint.threshold, lesions=masks)


def _known(slide: str, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    is_known = trained_on([slide], training_patients(provenance), BY_NAME)
    return ("is of a patient that the model was trained on",) if is_known else ()


def _write(path: Path, write: Callable[[Path], None], *, is_kept: bool) -> None:
    """Write what shows a heatmap; beside a heatmap of an earlier call only the same may be there already.

    Raises:
        OutputExistsError: it shows something else.
    """
    if not (is_kept and path.exists()):
        write(path)
        return
    with TemporaryDirectory() as folder:
        anew = Path(folder) / f"anew{path.suffix}"
        write(anew)
        if not cmp(anew, path, shallow=False):
            raise OutputExistsError(path, "shows another heatmap", mend="choose another output, or give --overwrite")


def _read_otherwise(slide_mpp: Mpp | None, on_bad_tile: OnBadTile) -> dict[str, str]:
    """Return what changes how the slide is read, if anything does."""
    return ({} if slide_mpp is None else {"mpp": str(mpp_json(slide_mpp))}) | (
        {} if on_bad_tile == "raise" else {"bad": on_bad_tile}
    )


def _earlier(output: Path, made_from: dict[str, Any], *, overwrite: bool) -> tuple[Heatmap, Coverage] | None:
    """Return the heatmap that an earlier call made from the same; None if it has to be made.

    When bad tiles are read as white, only the call that read the slide knows which were bad: it is made again.

    Raises:
        OutputExistsError: one of something else is there.
    """
    there = provenance_of(output)
    if there is None or (overwrite and there != made_from):
        return None
    if there != made_from:
        raise OutputExistsError(
            output,
            "is the heatmap of another slide or model, or was read with other options",
            mend="choose another output, or give --overwrite",
        )
    try:
        coverage = read_coverage(output)
        return None if coverage is None or "bad" in made_from else (read_heatmap(output), coverage)
    except ArtefactError as error:
        log.warning("%s: made again", error)
        return None
