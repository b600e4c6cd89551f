"""A network applied to a slide: its heatmap, and how much of the tissue that covers."""

from __future__ import annotations

from collections.abc import Callable

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.inference import infer
from wsi.coverage import Coverage, measure_coverage, without_unread
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide


def look(
    slide: Slide,
    checkpoint: Checkpoint,
    *,
    tissue: Mask,
    device: str = "auto",
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> tuple[Heatmap, Coverage]:
    """Apply a network to the tissue of a slide; cells over tiles that could not be decoded count as not looked at.

    Args:
        slide: its resolution must be known.
        checkpoint: its mpp is the resolution that is read.
        tissue: from find_tissue.
        device: auto, cpu or cuda.
        workers: reading threads, and on a CPU also computing threads; None uses the usable cores.
        on_tiles: called with (windows done, windows in all).

    Raises:
        PathologyError: as infer.
    """
    heatmap = infer(slide, checkpoint, tissue=tissue, device=device, workers=workers, on_tiles=on_tiles)
    downsample = slide.frame_at(checkpoint.mpp).downsample
    heatmap = without_unread(heatmap, slide, tissue, downsample=downsample)
    looked = Mask(frame=heatmap.frame, array=heatmap.tissue)
    return heatmap, measure_coverage(slide, tissue, looked, downsample=downsample)
