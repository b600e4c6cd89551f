"""A slide looked at with a network: its heatmap, and how much of its tissue that covers."""

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
    """Run a network over the tissue of a slide; cells over tiles that could not be decoded count as not looked at.

    Args:
        slide: its resolution must be known.
        checkpoint: says at which resolution to look.
        tissue: what find_tissue found.
        device: auto, cpu or cuda.
        workers: threads that read, and on a CPU threads that compute; None takes the usable cores.
        on_tiles: called with (windows done, windows in all).

    Raises:
        PathologyError: as infer.
    """
    heatmap = infer(slide, checkpoint, tissue=tissue, device=device, workers=workers, on_tiles=on_tiles)
    downsample = slide.frame_at(checkpoint.mpp).downsample
    heatmap = without_unread(heatmap, slide, downsample=downsample)
    looked = Mask(frame=heatmap.frame, array=heatmap.tissue)
    return heatmap, measure_coverage(slide, tissue, looked, downsample=downsample)
