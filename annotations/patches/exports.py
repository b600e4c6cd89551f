"""Patches exported for other tools: WebDataset tar shards, HDF5 as CLAM reads it, folders of pictures.

Every slide has its own files, each whole or absent; equal patches yield equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow

from annotations.errors import PatchStoreError
from annotations.patches.table import PatchTable
from wsi.patches.reading import read_patches
from wsi.slide import Slide
from wsi.store import atomic_bytes, storage, unfinished_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

SHARD_PATCHES = 1000
_READ_AT_ONCE, _BYTES_AT_ONCE = 256, 64 * 2**20


def images_of(slide: Slide, rows: PatchTable) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number of the row, uint8 (side, side, 3)) of one slide's patches, row by row, a bounded number in memory.

    Raises:
        PatchStoreError: the patches differ in size.
        TileError: a tile is damaged.
    """
    side = rows.size_px if len(rows) else 1
    step = max(1, min(_READ_AT_ONCE, _BYTES_AT_ONCE // (side * side * 3)))
    for start in range(0, len(rows), step):
        part = np.arange(start, min(start + step, len(rows)))
        images = np.empty((len(part), side, side, 3), dtype=np.uint8)
        for downsample in np.unique(rows["downsample"][part]).tolist():
            alike = np.flatnonzero(rows["downsample"][part] == downsample)
            x, y = rows["x"][part[alike]], rows["y"][part[alike]]
            images[alike] = read_patches(slide, x, y, downsample=downsample, size_px=side, workers=1)
        yield from zip(part.tolist(), images, strict=True)


def export_images(folder: Path, slide: Slide, rows: PatchTable, *, quality: int | None) -> list[Path]:
    """Write ``<split>/<class>/<slide>_<number>_x<x>_y<y>.png`` (or .jpg), as ImageFolder of torchvision reads them.

    Args:
        folder: of the export.
        slide: the slide.
        rows: its patches.
        quality: of JPEG, 1 to 100; None writes lossless PNG.

    Returns:
        The files.

    Raises:
        PathologyError: the slide cannot be read, or the files cannot be written.
    """
    written = []
    for number, image in images_of(slide, rows):
        target = folder / str(rows["split"][number]) / str(rows["class"][number])
        suffix = "png" if quality is None else "jpg"
        written.append(target / f"{_key(slide, rows, number)}.{suffix}")
        atomic_bytes(written[-1], encoded(image, quality))
    return written


def export_webdataset(folder: Path, slide: Slide, rows: PatchTable, *, quality: int | None) -> list[Path]:
    """Write ``<split>-<slide>-0000.tar`` ... with ``.png`` (or ``.jpg``), ``.cls`` and ``.json`` of each patch.

    Args:
        folder: of the export.
        slide: the slide.
        rows: its patches, 1,000 a shard; ``.cls`` is 0 normal, 1 tumour, 255 unknown.
        quality: of JPEG, 1 to 100; None writes lossless PNG.

    Returns:
        The files.

    Raises:
        PathologyError: the slide cannot be read, or the files cannot be written.
    """
    written = []
    suffix = "png" if quality is None else "jpg"
    for split in np.unique(rows["split"].astype(str)).tolist():
        chosen = rows.rows(rows["split"] == split)
        labels = chosen.labels
        images = images_of(slide, chosen)
        for shard in range(-(-len(chosen) // SHARD_PATCHES)):
            written.append(folder / f"{split}-{slide.name}-{shard:04d}.tar")
            with _hidden(written[-1]) as work, tarfile.open(work, "w") as tar:
                count = min(SHARD_PATCHES, len(chosen) - shard * SHARD_PATCHES)
                for number, image in (next(images) for _ in range(count)):
                    key = _key(slide, chosen, number)
                    _add(tar, f"{key}.{suffix}", encoded(image, quality))
                    _add(tar, f"{key}.cls", str(labels[number]).encode())
                    _add(tar, f"{key}.json", json.dumps(_row(chosen, number), sort_keys=True).encode())
    return written


def import_h5py() -> Any:  # noqa: ANN401  (a module that need not be there)
    """The module h5py.

    Raises:
        PatchStoreError: it is not installed.
    """
    try:
        import h5py  # noqa: PLC0415  (slow import, and only in the extra)
    except ImportError as error:
        raise PatchStoreError(
            None, "HDF5 needs h5py, which is not installed", mend="pip install 'sentinode[export]'"
        ) from error
    return h5py


def export_hdf5(folder: Path, slide: Slide, rows: PatchTable) -> list[Path]:
    """Write ``<slide>.h5`` as CLAM's tools do: datasets ``imgs`` and ``coords`` with their attributes, and ``labels``.

    ``coords`` are level-0 px, rounded to integers as in CLAM. ``patch_level`` is the stored level that the patches were
    read from and ``patch_size`` their side in its px, so that reading there returns the same field.

    Args:
        folder: of the export.
        slide: the slide.
        rows: its patches.

    Returns:
        The file.

    Raises:
        PatchStoreError: h5py is not installed.
        PathologyError: the slide cannot be read, or the file cannot be written.
    """
    h5py = import_h5py()
    side = rows.size_px
    level = slide.levels[int(rows["level"][0])]
    sizes = [[level.width, level.height], [slide.levels[0].width, slide.levels[0].height]]
    target = folder / f"{slide.name}.h5"
    with _hidden(target) as work, _PatientFile.over(work) as stream, h5py.File(stream, "w") as file:
        shape = (len(rows), side, side, 3)
        images = file.create_dataset(
            "imgs", shape, np.uint8, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]), track_times=False
        )
        for number, image in images_of(slide, rows):
            images[number] = image
        corners = np.stack([np.rint(rows["x"]), np.rint(rows["y"])], axis=1).astype(np.int32)
        coords = file.create_dataset(
            "coords", data=corners, maxshape=(None, 2), chunks=(min(len(rows), 1024), 2), track_times=False
        )
        file.create_dataset("labels", data=rows.labels.astype(np.uint8), track_times=False)
        for dataset in (images, coords):
            dataset.attrs["patch_level"] = level.index
            dataset.attrs["downsample"] = np.array([level.downsample, level.downsample])
            dataset.attrs["downsampled_level_dim"] = np.array(sizes[0])
            dataset.attrs["level_dim"] = np.array(sizes[0])
        images.attrs["wsi_name"] = slide.name
        coords.attrs["name"] = slide.name
        coords.attrs["save_path"] = "."
        coords.attrs["patch_size"] = round(side * float(rows["downsample"][0]) / level.downsample)
    return [target]


def encoded(image: NDArray[np.uint8], quality: int | None) -> bytes:
    """An RGB picture as JPEG, or as PNG where ``quality`` is None."""
    if quality is not None:
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444")
        return data
    stream = io.BytesIO()
    Pillow.fromarray(image).save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def _key(slide: Slide, rows: PatchTable, number: int) -> str:
    # For WebDataset a point ends the key.
    name = slide.name.replace(".", "_")
    return f"{name}_{number:06d}_x{round(float(rows['x'][number]))}_y{round(float(rows['y'][number]))}"


def _row(rows: PatchTable, number: int) -> dict[str, Any]:
    row = rows.rows(np.array([number]))
    return {name: column.tolist()[0] for name, column in row.columns.items()}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class _PatientFile(io.FileIO):
    """A file that accepts every write once the disk is full, and raises the error at the end.

    HDF5 cannot close a file that it could not write, and then aborts the process.
    """

    refused: OSError | None = None

    @classmethod
    @contextmanager
    def over(cls, path: Path) -> Iterator[_PatientFile]:
        """Open a new file.

        Raises:
            OSError: part of it could not be written.
        """
        with cls(path, "w+") as file:
            try:
                yield file
            finally:
                if file.refused is not None:
                    raise file.refused

    def write(self, data: Buffer, /) -> int:
        """Write all of the bytes, or none after an error."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view) and self.refused is None:
            try:
                at += super().write(view[at:])
            except OSError as error:
                self.refused = error
        return len(view)


@contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    """A hidden file that takes its name when the block ends well.

    Raises:
        StorageError: the file system refuses.
    """
    work = unfinished_name(path, "partial")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield work
            handle = os.open(work, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            work.replace(path)
        finally:
            with suppress(OSError):
                work.unlink(missing_ok=True)
