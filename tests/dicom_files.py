"""Small DICOM slides for tests, written by pydicom."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, generate_uid

_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_SIDE = 64


def write_dicom(
    path: Path,
    image: NDArray[np.uint8],
    encode: Callable[[NDArray[np.uint8]], bytes],
    *,
    photometric: str = "YBR_FULL_422",
    series: str | None = None,
    mm_per_px: float = 0.00025,
    profile: bytes | None = None,
    kind: str = "VOLUME",
    dropped: AbstractSet[int] = frozenset(),
) -> Path:
    """One image of a slide, uint8 (rows, columns, 3) in whole tiles of 64 px; those of one series are its levels.

    Without the ``dropped`` tiles, which are not stored, by their number row by row.
    """
    height, width = image.shape[:2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(_SLIDE), generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = _SLIDE, meta.MediaStorageSOPInstanceUID
    data.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    data.Modality = "SM"
    data.StudyInstanceUID, data.FrameOfReferenceUID = generate_uid(), generate_uid()
    data.SeriesInstanceUID = series or generate_uid()
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, photometric
    data.Rows = data.Columns = _SIDE
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    data.DimensionOrganizationType = "TILED_FULL"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * mm_per_px, height * mm_per_px
    measures, shared, optical = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [mm_per_px, mm_per_px]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    optical.OpticalPathIdentifier = "1"
    if profile is not None:
        optical.ICCProfile = profile
    data.OpticalPathSequence = [optical]
    frames = [
        encode(np.ascontiguousarray(image[row : row + _SIDE, column : column + _SIDE]))
        for row in range(0, height, _SIDE)
        for column in range(0, width, _SIDE)
    ]
    if dropped:
        data.DimensionOrganizationType = "TILED_SPARSE"
        across = width // _SIDE
        data.PerFrameFunctionalGroupsSequence = [
            _at(number % across * _SIDE, number // across * _SIDE)
            for number in range(len(frames))
            if number not in dropped
        ]
        frames = [frame for number, frame in enumerate(frames) if number not in dropped]
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def _at(x: int, y: int) -> Dataset:
    """Where a frame is, in px of the whole picture."""
    position, groups = Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = 0.0
    position.ZOffsetInSlideCoordinateSystem = 0.0
    groups.PlanePositionSlideSequence = [position]
    return groups
