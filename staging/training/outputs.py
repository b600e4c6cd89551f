"""The output formats of patches, one class each; a new one is added to FORMATS and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from annotations.errors import PatchStoreError
from annotations.files.formats import read_annotations
from annotations.patches.batch import PatchBatch
from annotations.patches.exports import export_hdf5, export_images, export_webdataset, images_of, import_h5py
from annotations.patches.labels import PatchLabels
from annotations.patches.sparse_store import TABLE, finish_store, paint_targets, patch_windows, sparse_name, store_slide
from annotations.patches.table import PatchTable, read_patch_table, write_patch_table
from annotations.patches.zarr_store import STORE_KIND, write_patches
from staging.errors import ConfigurationError
from wsi.readers.resolution import Mpp
from wsi.slide import Slide
from wsi.store import provenance_of, storage
from wsi.writing.sparse import estimate_bytes

PARTS = ".parts"
"""The folder in an output with the records of what it was made from."""
NOTE = "made_from.json"
MEASURED = "measured"
"""In a record: size and sha256 of each file, by name."""
REMADE = "remade"
"""In what is returned of a part: why an earlier call's was made again."""

_SPARSE_QUALITY, _EXPORT_QUALITY = 90, 95
_MARGIN = 1.4  # of disk space: coarse pixels, or a bright stain, compress less well
# Measured on 50 CAMELYON patches at 0.24 and 0.49 um per px.
_PNG_BYTES_PER_PX, _ZARR_BYTES_PER_PX, _RAW_BYTES_PER_PX = 2.2, 2.7, 3.0
_JPEG_QUALITIES, _JPEG_BYTES_PER_PX = (50, 80, 90, 95, 100), (0.25, 0.4, 0.6, 0.8, 1.6)
_BYTES_PER_TAR, _BYTES_PER_MEMBERS = 5000, 2800  # its end; three heads, class, row and the gap behind the picture

Record = Mapping[str, Any]
"""What was written of one slide, as JSON holds it."""


class PatchFormat(ABC):
    """An output format. A format with a suffix is one file or store; the others grow slide by slide in a folder.

    Attributes:
        name: on the command line.
        suffix: outputs with this suffix have this format by default.
        has_jpeg: a JPEG quality may be given.
        has_pixels: each slide has a part to be written.
        has_slides: the output has its own copies of the slides; otherwise its table names the original ones.
    """

    name: ClassVar[str]
    suffix: ClassVar[str | None] = None
    has_jpeg: ClassVar[bool] = False
    has_pixels: ClassVar[bool] = True
    has_slides: ClassVar[bool] = False

    @property
    def is_folder(self) -> bool:
        """Whether the output folder itself grows slide by slide."""
        return self.suffix is None

    def check_installed(self) -> None:  # noqa: B027  (most formats need nothing)
        """Refuse a format whose library is not installed.

        Raises:
            PathologyError: it is not.
        """

    def refuse_others(self, output: PatchOutput) -> None:
        """Refuse to overwrite an existing path that is not an output of this format.

        Raises:
            ConfigurationError: it is not.
        """
        if not output.work.is_dir():
            raise ConfigurationError(output.path, "is not empty and has no patches", mend="name another output")

    @abstractmethod
    def write(self, part: SlidePart) -> Record:
        """Write one slide's part, and return its record.

        Raises:
            PathologyError: the slide cannot be read, or the part cannot be written.
        """

    def files(self, part: SlidePart, record: Record) -> Sequence[str]:  # noqa: ARG002
        """Return the names of the files that ``write`` made, in the folder of the parts."""
        return tuple(record["files"])

    def finish(self, output: PatchOutput, table: PatchTable, done: Mapping[str, Record]) -> None:  # noqa: ARG002
        """Combine the parts and publish the result.

        Raises:
            StorageError: the file system refuses.
        """
        write_patch_table(output.path / TABLE, table)

    def told(self, done: Mapping[str, Record]) -> dict[str, Any]:  # noqa: ARG002
        """Return what to report about the parts, as JSON values."""
        return {}

    @abstractmethod
    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:
        """Estimate the size of the patches without the table, for stained tissue."""

    def room_bytes(self, expected: int, left: Sequence[SlidePart], parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Estimate the disk space for the parts ``left`` to be written, whose output has ``expected`` bytes."""
        return round(_MARGIN * expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOutput:
    """The target of patches, and how they are written.

    Attributes:
        path: the folder, file or store.
        form: the output format.
        quality: JPEG quality, if any JPEG is encoded; None writes PNG into WebDataset shards.
        slide_mpp: um per level-0 px of slides that state none, or for all.
    """

    path: Path
    form: PatchFormat
    quality: int | None = None
    slide_mpp: Mpp | None = None

    @property
    def work(self) -> Path:
        """The folder of the records and, for a store, of parts until all are complete."""
        return self.path / PARTS if self.form.is_folder else self.path.with_name(f".{self.path.name}{PARTS}")

    @property
    def parts_folder(self) -> Path:
        """The folder of the parts' files."""
        return self.path if self.form.is_folder else self.work


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePart:
    """One slide's part of an output: its file, annotations, rows and target."""

    file: Path
    annotation_file: Path | None
    rows: PatchTable
    output: PatchOutput

    @property
    def name(self) -> str:
        """The slide's name."""
        return str(next(iter(self.rows.files)))

    def open(self) -> Slide:
        """Open the slide."""
        return Slide.open(self.file, mpp=self.output.slide_mpp)


class ExportFormat(PatchFormat):
    """A format that writes files of its own for each slide."""

    def write(self, part: SlidePart) -> Record:
        """Export the slide's patches; ``files`` of the record names the files."""
        with part.open() as slide:
            written = list(self.export(part, slide))
        folder = part.output.parts_folder
        return {"files": [str(path.relative_to(folder)) for path in written]}

    @abstractmethod
    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write the patches of one slide, and return the files."""


class Sparse(PatchFormat):
    """Slides with only the tiles that patches touch, beside the table."""

    name = "sparse"
    has_jpeg = True
    has_slides = True

    def write(self, part: SlidePart) -> Record:
        """Copy the tiles, and the annotation file."""
        quality = part.output.quality or _SPARSE_QUALITY
        with part.open() as slide:
            return store_slide(
                part.output.path, slide, part.rows, annotation_file=part.annotation_file, quality=quality
            )

    def files(self, part: SlidePart, record: Record) -> Sequence[str]:
        """Return the names of the sparse slide and of the copied annotation file."""
        copied = record["contours"]
        return (sparse_name(part.name),) if copied is None else (sparse_name(part.name), copied)

    def finish(self, output: PatchOutput, table: PatchTable, done: Mapping[str, Record]) -> None:
        """Publish the table with the records of the slides."""
        facts = {
            name: {key: value for key, value in record.items() if key not in ("digest", "patches", MEASURED, REMADE)}
            for name, record in done.items()
        }
        finish_store(output.path, table, facts)

    def told(self, done: Mapping[str, Record]) -> dict[str, Any]:
        """Return the tiles copied and encoded, and the slides whose stored pixels differ from the original."""
        return {
            "tiles_copied": sum(record["tiles_copied"] for record in done.values()),
            "tiles_encoded": sum(record["tiles_encoded"] for record in done.values()),
            "not_exact": sorted(name for name, record in done.items() if not record["is_exact"]),
        }

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Add up the stored tiles."""
        total = 0
        for part in parts:
            if len(part.rows):
                with part.open() as slide:
                    total += estimate_bytes(slide, patch_windows(slide, part.rows))
        return total


class TableAlone(PatchFormat):
    """The Parquet table without any pixels."""

    name = "table"
    suffix = ".parquet"
    has_pixels = False

    def refuse_others(self, output: PatchOutput) -> None:
        """Overwrite only a patch table that is not part of a folder of patches."""
        path = output.path
        try:
            read_patch_table(path)
        except PatchStoreError as error:
            raise ConfigurationError(path, "exists but is not a patch table", mend="name another output") from error
        if (path.parent / PARTS / NOTE).exists():
            raise ConfigurationError(path, "belongs to the patches beside it", mend="name another output")

    def write(self, part: SlidePart) -> Record:  # noqa: ARG002
        """Write nothing."""
        return {"files": []}

    def finish(self, output: PatchOutput, table: PatchTable, done: Mapping[str, Record]) -> None:  # noqa: ARG002
        """Publish the table."""
        write_patch_table(output.path, table)

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Return 0."""
        return 0


class Zarr(ExportFormat):
    """A Zarr store of images, targets and the table."""

    name = "zarr"
    suffix = ".zarr"

    def refuse_others(self, output: PatchOutput) -> None:
        """Overwrite only a patch store."""
        if (provenance_of(output.path) or {}).get("kind") != STORE_KIND:
            raise ConfigurationError(output.path, "exists but is not a patch store", mend="name another output")

    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write pixels and targets to files that are mapped, not read, when the parts are combined."""
        rows, file = part.rows, part.annotation_file
        labels = PatchLabels.of(() if file is None else read_annotations(file, rows.groups))
        files = [part.output.work / f"{slide.name}.{kind}" for kind in ("images", "targets")]
        with storage(files[0]), files[0].open("wb") as images, files[1].open("wb") as targets:
            for number, image in images_of(slide, rows):
                images.write(image.tobytes())
                targets.write(paint_targets(labels, rows.rows(np.array([number]))).tobytes())
        return files

    def finish(self, output: PatchOutput, table: PatchTable, done: Mapping[str, Record]) -> None:  # noqa: ARG002
        """Combine the parts and publish the store."""
        names = sorted(set(table["slide"].tolist()))
        batches = [self._batch(output, table.rows(table["slide"] == name), name) for name in names]
        write_patches(output.path, batches, drawn=table)

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Estimate lossless chunks."""
        return round(_pixels(parts) * _ZARR_BYTES_PER_PX)

    def room_bytes(self, expected: int, left: Sequence[SlidePart], parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Images and targets: uncompressed in parts, then at most as large again in the store."""
        return round(4.0 * (_pixels(left) + _pixels(parts)))

    @staticmethod
    def _batch(output: PatchOutput, rows: PatchTable, name: str) -> PatchBatch:
        shape = (len(rows), rows.size_px, rows.size_px)
        images = np.memmap(output.work / f"{name}.images", np.uint8, "r", shape=(*shape, 3))
        targets = np.memmap(output.work / f"{name}.targets", np.uint8, "r", shape=shape)
        centre = int(rows["centre"][0])
        return PatchBatch(
            slide=name,
            patient=str(rows["patient"][0]),
            centre=None if centre < 0 else centre,
            mpp=rows.mpp,
            images=images,
            targets=targets,
            x=rows["x"],
            y=rows["y"],
            kinds=tuple(rows["kind"].tolist()),
            split=str(rows["split"][0]),
        )


class WebDataset(ExportFormat):
    """Tar shards of PNG, or of JPEG if a quality is given."""

    name = "webdataset"
    has_jpeg = True

    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write the shards of one slide."""
        return export_webdataset(part.output.path, slide, part.rows, quality=part.output.quality)

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:
        """Estimate the pictures and their tar headers."""
        per_px = _PNG_BYTES_PER_PX if output.quality is None else _jpeg_bytes_per_px(output.quality)
        patches = sum(len(part.rows) for part in parts)
        return round(_pixels(parts) * per_px) + patches * _BYTES_PER_MEMBERS + len(parts) * _BYTES_PER_TAR


class Hdf5(ExportFormat):
    """One HDF5 file per slide, for CLAM."""

    name = "hdf5"

    def check_installed(self) -> None:
        """Refuse it without h5py."""
        import_h5py()

    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write the file of one slide, if it has patches."""
        return export_hdf5(part.output.path, slide, part.rows) if len(part.rows) else ()

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Estimate uncompressed pixels."""
        return round(_pixels(parts) * _RAW_BYTES_PER_PX)


class Png(ExportFormat):
    """One PNG per patch, in folders of split and class."""

    name = "png"

    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write the pictures of one slide."""
        return export_images(part.output.path, slide, part.rows, quality=None)

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:  # noqa: ARG002
        """Estimate PNG files."""
        return round(_pixels(parts) * _PNG_BYTES_PER_PX)


class Jpeg(ExportFormat):
    """One JPEG per patch, in folders of split and class."""

    name = "jpeg"
    has_jpeg = True

    def export(self, part: SlidePart, slide: Slide) -> Iterable[Path]:
        """Write the pictures of one slide."""
        return export_images(part.output.path, slide, part.rows, quality=part.output.quality or _EXPORT_QUALITY)

    def pixel_bytes(self, output: PatchOutput, parts: Sequence[SlidePart]) -> int:
        """Estimate JPEG files of this quality."""
        return round(_pixels(parts) * _jpeg_bytes_per_px(output.quality or _EXPORT_QUALITY))


SPARSE = Sparse()
FORMATS: Mapping[str, PatchFormat] = {
    form.name: form for form in (SPARSE, TableAlone(), Zarr(), WebDataset(), Hdf5(), Png(), Jpeg())
}
"""All formats, by name on the command line."""


def form_of(path: Path, name: str | None) -> PatchFormat:
    """Return the format that the output's name or ``name`` asks for; sparse slides without either.

    Raises:
        ConfigurationError: there is no such format, the two contradict each other, or the output is a file where a
            folder is needed.
    """
    if name is not None and name not in FORMATS:
        raise ConfigurationError(None, f"there is no --format {name}", mend=f"known are {', '.join(FORMATS)}")
    suffix = path.suffix.lower()
    by_suffix = next((form for form in FORMATS.values() if form.suffix == suffix), None)
    form = by_suffix or SPARSE if name is None else FORMATS[name]
    if by_suffix is not None and by_suffix is not form:
        raise ConfigurationError(
            path, f"ends in {path.suffix} but the format is {form.name}", mend="leave --format out or rename it"
        )
    if form.is_folder and path.exists() and not path.is_dir():
        raise ConfigurationError(path, "is a file; patches go into a folder", mend="name another output")
    return form


def _pixels(parts: Sequence[SlidePart]) -> int:
    return sum(len(part.rows) * part.rows.size_px**2 for part in parts if len(part.rows))


def _jpeg_bytes_per_px(quality: int) -> float:
    return float(np.interp(quality, _JPEG_QUALITIES, _JPEG_BYTES_PER_PX))
