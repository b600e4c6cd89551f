"""Heatmaps of slides of known label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from staging.lesions.labels import SlideLabel
from wsi.coverage import Coverage
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap


def heatmap_of(values: NDArray[Any]) -> Heatmap:
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=values.shape, mpp=0.5)
    return Heatmap(frame=frame, array=values.astype(np.float32), tissue=np.ones(values.shape, dtype=np.bool_))


def labelled_cohort(folder: Path, *, patients: int = 6, false_peak: float = 0.96) -> Path:
    """Patients of whom every third is pN0, pN1mi, pN1; every negative slide has a false lesion of 300 um."""
    rows = ["patient,stage"]
    for patient in range(patients):
        for node in range(5):
            label = (SlideLabel.NEGATIVE, SlideLabel.MICRO, SlideLabel.MACRO)[patient % 3 if node == 0 else 0]
            values = np.zeros((100, 120))
            side = {SlideLabel.NEGATIVE: 10, SlideLabel.MICRO: 30, SlideLabel.MACRO: 80}[label]
            values[5 : 5 + side, 5 : 5 + side] = false_peak if label is SlideLabel.NEGATIVE else 0.999
            name = f"patient_{patient:03d}_node_{node}"
            coverage = Coverage(tissue_mm2=9.0, looked_mm2=9.0)
            write_heatmap(folder / "heatmaps" / f"{name}.zarr", heatmap_of(values), {}, coverage=coverage)
            rows.append(f"{name}.tif,{label.value}")
    (folder / "reference.csv").write_text("\n".join(rows))
    return folder
