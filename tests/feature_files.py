"""Features of tiny slides, to learn slide labels from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from wsi.cnn.encoders.encoder import Encoder
from wsi.cnn.encoders.features import TileGeometry, features_provenance, write_features
from wsi.coverage import Coverage
from wsi.geometry import Frame
from wsi.raster import Image, Mask


class PixelSlide:
    """Ten by twelve px at 1 um/px, each a tile; a positive slide's first four tiles are red."""

    def __init__(self, number: int, *, is_positive: bool) -> None:
        self.array = np.random.default_rng(number).integers(0, 120, (10, 12, 3), np.uint8)
        if is_positive:
            self.array[0, :4] = (250, 10, 10)

    def frame_at(self, mpp: float) -> Frame:
        return Frame(x=0, y=0, downsample=1 / mpp, shape=(10, 12), mpp=1.0)

    def read_frame(self, frame: Frame) -> Image:
        return Image(frame=frame, array=self.array[int(frame.y) :, int(frame.x) :][:1, :1])

    def is_missing(self, _: Frame) -> bool:
        return False


def colours(batch: torch.Tensor) -> torch.Tensor:
    flat = batch.flatten(1)
    return torch.cat([flat, flat**2, flat[:, :1] * flat], dim=1)


def write_slide(
    folder: Path, name: str, slide: PixelSlide, *, digest: str = "d", coverage: Coverage | None = None
) -> None:
    encoder = Encoder(
        path=Path("e"), digest=digest, kind="onnx", size_px=1, width=9, mean=(0, 0, 0), std=(1, 1, 1),
        device=torch.device("cpu"), forward=colours,
    )  # fmt: skip
    geometry = TileGeometry(mpp=1.0, size_px=1, stride_px=1)
    made_from = features_provenance(name, encoder, geometry, mask="all", precision="float32")
    tissue = Mask(frame=slide.frame_at(1.0), array=np.ones((10, 12), bool))
    path = folder / f"{name}.zarr"
    write_features(
        path, slide, encoder, tissue=tissue, geometry=geometry, provenance=made_from, precision="float32", batch=60,
        coverage=None if coverage is None else lambda: coverage,
    )  # fmt: skip
