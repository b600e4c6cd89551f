"""What becomes of drawn patches on disk: the forms of output, how large they get, and one slide's part of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from annotations.contact_sheet import contact_sheet, pick_examples
from annotations.formats import read_annotations
from annotations.patch_exports import export_hdf5, export_images, export_webdataset, images_of
from annotations.patch_labels import PatchLabels
from annotations.patch_store import write_patches
from annotations.patch_table import PatchTable, write_table
from annotations.patches import PatchBatch
from annotations.sparse_store import TABLE, finish_store, paint_targets, patch_windows, store_slide
from staging.cluster import TileNews
from staging.errors import ConfigurationError
from wsi.errors import StorageError
from wsi.patch_reading import SlidePool, read_places
from wsi.render import save_png
from wsi.slide import Slide
from wsi.sparse import estimate_bytes
from wsi.store import atomic_text, digest_of, json_text, storage, sweep

CONTACT_SHEET = "contact_sheet.png"
_NOTE = "made_from.json"
_RESERVE_BYTES = 64 * 2**20


class PatchFormat(Enum):
    """What is written; the value is its name on the command line."""

    SPARSE = "sparse"
    TABLE = "table"
    ZARR = "zarr"
    WEBDATASET = "webdataset"
    HDF5 = "hdf5"
    PNG = "png"
    JPEG = "jpeg"

    @property
    def is_folder(self) -> bool:
        """Whether it grows slide by slide in the output folder itself."""
        return self not in (PatchFormat.TABLE, PatchFormat.ZARR)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOutput:
    """Where patches go.

    Attributes:
        path: the folder, or the Parquet file of a table alone.
        form: what is written there.
        quality: of JPEG, where any is made; None writes PNG into WebDataset shards.
        slide_mpp: um per level-0 px in place of what the files say.
    """

    path: Path
    form: PatchFormat
    quality: int | None = None
    slide_mpp: float | None = None

    @property
    def work(self) -> Path:
        """Where parts lie until all are there."""
        if self.form.is_folder:
            return self.path / ".parts"
        return self.path.with_name(f".{self.path.name}.parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePart:
    """One slide's work: its file, contours and rows, and where they go."""

    file: Path
    contours: Path | None
    rows: PatchTable
    output: PatchOutput


def form_of(path: Path, name: str | None) -> PatchFormat:
    """The form that an output's name or a given word asks for; without either sparse slides.

    Raises:
        ConfigurationError: the two contradict each other, or the output is a file that stands in the way.
    """
    by_suffix = {".zarr": PatchFormat.ZARR, ".parquet": PatchFormat.TABLE}.get(path.suffix.lower())
    form = by_suffix or PatchFormat.SPARSE if name is None else PatchFormat(name)
    if by_suffix is not None and by_suffix is not form:
        raise ConfigurationError(
            path, f"ends in {path.suffix} but {form.value} is asked for", mend="leave --format out or rename it"
        )
    if form.is_folder and path.exists() and not path.is_dir():
        raise ConfigurationError(path, "is a file; patches go into a folder", mend="name another output")
    return form


def expected_bytes(output: PatchOutput, parts: Sequence[SlidePart]) -> int:
    """How large the output gets: about, for sparse slides; at most, where pixels are compressed."""
    if output.form is PatchFormat.SPARSE:
        return sum(_sparse_bytes(part) for part in parts)
    pixels = sum(len(part.rows) * part.rows.size_px**2 for part in parts if len(part.rows))
    per_pixel = {
        PatchFormat.TABLE: 0.0,
        PatchFormat.ZARR: 8.0,  # image and target, in parts and then in the store
        PatchFormat.JPEG: 1.5,
        PatchFormat.WEBDATASET: 3.0 if output.quality is None else 1.5,
    }
    return round(pixels * per_pixel.get(output.form, 3.0)) + 4096


def check_room(path: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        StorageError: there is too little room.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    with storage(path):
        free = shutil.disk_usage(folder).free
    if needed + _RESERVE_BYTES > free:
        raise StorageError(
            path,
            f"needs {size_text(needed)} but only {size_text(free)} are free",
            mend="free the disk, choose another output, or draw fewer patches",
        )


def claim(output: PatchOutput, made_from: Mapping[str, Any]) -> None:
    """Note what an output folder is made from, so that a later call goes on with the same and with nothing else.

    Args:
        output: where patches go.
        made_from: what decides what is written; values that JSON can hold. Further calls may add to it.

    Raises:
        ConfigurationError: the folder holds something else, or patches made otherwise; they are not touched.
        StorageError: the file system refuses.
    """
    if not output.form.is_folder:
        return
    note = output.work / _NOTE
    wanted = json.loads(json_text(made_from))
    earlier = _done(note)
    odd = sorted(key for key in wanted.keys() & (earlier or {}).keys() if (earlier or {})[key] != wanted[key])
    if odd:
        raise ConfigurationError(
            output.path, f"holds patches made from other {', '.join(odd)}", mend="name another output or remove it"
        )
    if earlier is None and any(entry.name not in (".lock", ".parts") for entry in output.path.iterdir()):
        raise ConfigurationError(output.path, "is not empty and holds no patches", mend="name another output")
    for folder in (output.path, output.path / "slides"):
        sweep(folder)
    atomic_text(note, json_text({**(earlier or {}), **wanted}))


def store_part(part: SlidePart, _: TileNews) -> dict[str, Any]:
    """Write one slide's part, unless an earlier call has done so.

    Returns:
        What was done; ``patches`` at least.

    Raises:
        PathologyError: the slide cannot be read, or the part not be written.
    """
    record = part.output.work / f"{_name(part)}.json"
    digest = digest_of(
        {"about": dict(part.rows.about), "form": part.output.form.value, "quality": part.output.quality}
        | {"split": sorted(set(part.rows["split"].tolist()))}
    )
    earlier = _done(record)
    if earlier is not None and earlier.get("digest") == digest and _files_are_there(part, earlier):
        return earlier
    done = {"digest": digest, "patches": len(part.rows), **_written(part)}
    atomic_text(record, json_text(done))
    return done


def finish(output: PatchOutput, table: PatchTable, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Publish what the parts make together.

    Raises:
        StorageError: the file system refuses.
    """
    if output.form is PatchFormat.SPARSE:
        facts = {
            name: {key: value for key, value in record.items() if key not in ("digest", "patches")}
            for name, record in done.items()
        }
        finish_store(output.path, table, facts)
    elif output.form is PatchFormat.TABLE:
        write_table(output.path, table)
    elif output.form is PatchFormat.ZARR:
        names = sorted(set(table["slide"].tolist()))
        write_patches(output.path, [_batch(output, table.rows(table["slide"] == name), name) for name in names])
    else:
        write_table(output.path / TABLE, table)
    # Folders keep their records: a second call finds everything done.
    if not output.form.is_folder:
        shutil.rmtree(output.work, ignore_errors=True)


def write_contact_sheet(output: PatchOutput, table: PatchTable) -> Path:
    """Read some patches of every kind and draw them into one PNG, in the output folder or beside the output.

    Returns:
        Where it lies.

    Raises:
        PathologyError: a slide cannot be read, or the picture not be written.
    """
    examples = pick_examples(table)
    pool = SlidePool()
    try:
        places = table.places()
        images = {title: list(read_places(places, rows, pool)) for title, rows in examples.items()}
    finally:
        pool.close()
    path = output.path / CONTACT_SHEET if output.form.is_folder else output.path.with_suffix(".png")
    save_png(path, contact_sheet(table, examples, images))
    return path


def size_text(size: int) -> str:
    """Bytes as people read them: ``26 MB``."""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


def _name(part: SlidePart) -> str:
    return str(next(iter(part.rows.files)))


@contextmanager
def _slide(part: SlidePart) -> Iterator[Slide]:
    with Slide.open(part.file, mpp=part.output.slide_mpp) as slide:
        yield slide


def _sparse_bytes(part: SlidePart) -> int:
    if not len(part.rows):
        return 0
    with _slide(part) as slide:
        return estimate_bytes(slide, patch_windows(slide, part.rows))


def _done(record: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _files_are_there(part: SlidePart, earlier: Mapping[str, Any]) -> bool:
    if part.output.form is not PatchFormat.SPARSE:
        return True
    path = part.output.path / "slides" / f"{_name(part)}.tif"
    return path.is_file() and path.stat().st_size == earlier.get("file_bytes")


def _written(part: SlidePart) -> dict[str, Any]:
    form, rows, folder = part.output.form, part.rows, part.output.path
    with _slide(part) as slide:
        if form is PatchFormat.SPARSE:
            return store_slide(folder, slide, rows, contours=part.contours, quality=part.output.quality or 90)
        if form is PatchFormat.ZARR:
            _spool(part, slide)
        elif form is PatchFormat.HDF5 and len(rows):
            export_hdf5(folder, slide, rows)
        elif form is PatchFormat.WEBDATASET:
            export_webdataset(folder, slide, rows, quality=part.output.quality)
        elif form in (PatchFormat.PNG, PatchFormat.JPEG):
            quality = None if form is PatchFormat.PNG else part.output.quality or 95
            export_images(folder, slide, rows, quality=quality)
    return {}


def _spool(part: SlidePart, slide: Slide) -> None:
    """Pixels and targets of one slide into files that are mapped, not read, when all are put together."""
    rows = part.rows
    labels = PatchLabels.of(() if part.contours is None else read_annotations(part.contours))
    files = [part.output.work / f"{slide.name}.{kind}" for kind in ("images", "targets")]
    with storage(files[0]), files[0].open("wb") as images, files[1].open("wb") as targets:
        for number, image in images_of(slide, rows):
            images.write(image.tobytes())
            targets.write(paint_targets(labels, rows.rows(np.array([number]))).tobytes())


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
