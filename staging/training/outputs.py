"""How drawn patches are stored: the output formats, their sizes, and one slide's part of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from annotations.errors import PatchStoreError
from annotations.files.formats import read_annotations
from annotations.patches.batch import PatchBatch
from annotations.patches.contact_sheet import contact_sheet, pick_examples, thumbnail
from annotations.patches.exports import export_hdf5, export_images, export_webdataset, images_of
from annotations.patches.labels import PatchLabels
from annotations.patches.sparse_store import TABLE, finish_store, paint_targets, patch_windows, sparse_name, store_slide
from annotations.patches.table import PatchTable, read_patch_table, write_patch_table
from annotations.patches.zarr_store import STORE_KIND, write_patches
from staging.errors import ConfigurationError
from staging.runs.cluster import TileNews
from wsi.errors import StorageError
from wsi.patches.pool import SlidePool
from wsi.patches.reading import read_positions
from wsi.render import save_png
from wsi.slide import Slide
from wsi.store import atomic_text, digest_of, json_text, provenance_of, storage, sweep
from wsi.writing.sparse import estimate_bytes

CONTACT_SHEET = "contact_sheet.png"
_NOTE = "made_from.json"
_EXPORT_QUALITY = 95
_RESERVE_BYTES = 64 * 2**20
_MARGIN = 1.4  # of disk space: coarse pixels, or a bright stain, compress less well
# Measured on 50 CAMELYON patches at 0.24 and 0.49 um per px.
_PNG_BYTES_PER_PX, _ZARR_BYTES_PER_PX = 2.2, 2.7
_JPEG_QUALITIES, _JPEG_BYTES_PER_PX = (50, 80, 90, 95, 100), (0.25, 0.4, 0.6, 0.8, 1.6)
_BYTES_PER_ROW, _BYTES_PER_SLIDE = 40, 300  # of the table
_BYTES_PER_TAR, _BYTES_PER_MEMBERS = 5000, 2800  # its end; three heads, class, row and the gap behind the picture


class PatchFormat(Enum):
    """An output format; the value is its name on the command line."""

    SPARSE = "sparse"
    TABLE = "table"
    ZARR = "zarr"
    WEBDATASET = "webdataset"
    HDF5 = "hdf5"
    PNG = "png"
    JPEG = "jpeg"

    @property
    def is_folder(self) -> bool:
        """Whether the output folder itself grows slide by slide."""
        return self not in (PatchFormat.TABLE, PatchFormat.ZARR)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOutput:
    """The target of patches, and how they are written.

    Attributes:
        path: the folder, or the Parquet file of a table alone.
        form: the output format.
        quality: JPEG quality, if any JPEG is encoded; None writes PNG into WebDataset shards.
        slide_mpp: um per level-0 px, overriding the files.
    """

    path: Path
    form: PatchFormat
    quality: int | None = None
    slide_mpp: float | None = None

    @property
    def work(self) -> Path:
        """The folder of parts until all are complete."""
        if self.form.is_folder:
            return self.path / ".parts"
        return self.path.with_name(f".{self.path.name}.parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePart:
    """One slide's part of an output: its file, annotations, rows and target."""

    file: Path
    annotation_file: Path | None
    rows: PatchTable
    output: PatchOutput


def form_of(path: Path, name: str | None) -> PatchFormat:
    """Return the format that the output's name or ``name`` asks for; sparse slides without either.

    Raises:
        ConfigurationError: the two contradict each other, or the output is a file where a folder is needed.
    """
    by_suffix = {".zarr": PatchFormat.ZARR, ".parquet": PatchFormat.TABLE}.get(path.suffix.lower())
    form = by_suffix or PatchFormat.SPARSE if name is None else PatchFormat(name)
    if by_suffix is not None and by_suffix is not form:
        raise ConfigurationError(
            path, f"ends in {path.suffix} but the format is {form.value}", mend="leave --format out or rename it"
        )
    if form.is_folder and path.exists() and not path.is_dir():
        raise ConfigurationError(path, "is a file; patches go into a folder", mend="name another output")
    return form


def check_output(output: PatchOutput) -> None:
    """Refuse to overwrite other files, and a quality that would have no effect; nothing is touched.

    Raises:
        ConfigurationError: see above.
    """
    path, form = output.path, output.form
    if output.quality is not None and form not in (PatchFormat.SPARSE, PatchFormat.WEBDATASET, PatchFormat.JPEG):
        raise ConfigurationError(None, f"--quality is for JPEG, and {form.value} has none", mend="leave it out")
    if not path.exists() or (path.is_dir() and all(entry.name == ".lock" for entry in path.iterdir())):
        return
    if form.is_folder:
        if not output.work.is_dir():
            raise ConfigurationError(path, "is not empty and has no patches", mend="name another output")
        return
    if form is PatchFormat.ZARR and (provenance_of(path) or {}).get("kind") != STORE_KIND:
        raise ConfigurationError(path, "exists but is not a patch store", mend="name another output")
    if form is PatchFormat.TABLE:
        try:
            read_patch_table(path)
        except PatchStoreError as error:
            raise ConfigurationError(path, "exists but is not a patch table", mend="name another output") from error
        if (path.parent / ".parts" / _NOTE).exists():
            raise ConfigurationError(path, "belongs to the patches beside it", mend="name another output")


def expected_bytes(output: PatchOutput, parts: Sequence[SlidePart]) -> int:
    """Estimate the size of the output, for stained tissue."""
    patches = sum(len(part.rows) for part in parts)
    table = patches * _BYTES_PER_ROW + len(parts) * _BYTES_PER_SLIDE + 4096
    if output.form is PatchFormat.TABLE:
        return table
    if output.form is PatchFormat.SPARSE:
        return table + sum(_sparse_bytes(part) for part in parts)
    if output.form is PatchFormat.WEBDATASET:
        table += patches * _BYTES_PER_MEMBERS + len(parts) * _BYTES_PER_TAR
    return table + round(_pixels(parts) * _bytes_per_px(output))


def room_bytes(output: PatchOutput, parts: Sequence[SlidePart]) -> int:
    """Estimate the disk space needed beyond what earlier calls have written."""
    left = [part for part in parts if _stored_before(part) is None]
    if output.form is PatchFormat.ZARR:
        # Image and target: uncompressed in parts, then at most as large again in the store.
        return round(4.0 * (_pixels(left) + _pixels(parts)))
    return round(_MARGIN * expected_bytes(output, left))


def check_room(path: Path, needed: int) -> None:
    """Refuse to start if the disk is too small.

    Raises:
        StorageError: there is too little space.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    with storage(path):
        free = shutil.disk_usage(folder).free
    if needed + _RESERVE_BYTES > free:
        raise StorageError(
            path,
            f"needs {size_text(needed)}, and {size_text(_RESERVE_BYTES)} to spare, but only {size_text(free)} are free",
            mend="free some space, choose another output, or draw fewer patches",
        )


def claim(output: PatchOutput, made_from: Mapping[str, Any]) -> None:
    """Record what an output folder is made from, so that a later call resumes only the same work.

    Args:
        output: the target of the patches.
        made_from: what decides the contents of the output; JSON values. Later calls may add to it.

    Raises:
        ConfigurationError: the folder has other files, or patches made differently; they are not touched.
        StorageError: the file system refuses.
    """
    if not output.form.is_folder:
        return
    note = output.work / _NOTE
    wanted = json.loads(json_text(made_from))
    earlier = _done(note)
    if not any(entry.name not in (".lock", ".parts", _NOTE) for entry in _entries(output.path, output.work)):
        earlier = None  # an earlier call wrote nothing
    odd = _differences(earlier or {}, wanted)
    if odd:
        raise ConfigurationError(
            output.path, f"has patches made with other {', '.join(odd)}", mend="name another output or remove it"
        )
    if earlier is None and any(entry.name not in (".lock", ".parts") for entry in output.path.iterdir()):
        raise ConfigurationError(output.path, "is not empty and has no patches", mend="name another output")
    # pictures are two folders deep
    for folder in (output.path, *output.path.glob("*"), *output.path.glob("*/*")):
        sweep(folder)
    atomic_text(note, json_text({**(earlier or {}), **wanted}))


def store_part(part: SlidePart, _: TileNews) -> dict[str, Any]:
    """Write one slide's part, unless an earlier call wrote it.

    Returns:
        What was done, with at least ``patches``.

    Raises:
        PathologyError: the slide cannot be read, or the part cannot be written.
    """
    earlier = _stored_before(part)
    if earlier is not None:
        return earlier
    done = {"digest": _part_digest(part), "patches": len(part.rows), **_written(part)}
    atomic_text(_record(part), json_text(done))
    return done


def finish(output: PatchOutput, table: PatchTable, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Combine the parts and publish the result.

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
        write_patch_table(output.path, table)
    elif output.form is PatchFormat.ZARR:
        names = sorted(set(table["slide"].tolist()))
        write_patches(
            output.path, [_batch(output, table.rows(table["slide"] == name), name) for name in names], drawn=table
        )
    else:
        write_patch_table(output.path / TABLE, table)
    # folders keep their records, so that a second call finds everything done
    if not output.form.is_folder:
        shutil.rmtree(output.work, ignore_errors=True)


def write_contact_sheet(output: PatchOutput, table: PatchTable) -> Path:
    """Draw some patches of every kind as one PNG, in the output folder or beside the output.

    Returns:
        The path of the PNG.

    Raises:
        PathologyError: a slide cannot be read, or the picture cannot be written.
    """
    examples = pick_examples(table)
    pool = SlidePool()
    try:
        positions = table.positions()
        images = {
            title: [thumbnail(read_positions(positions, np.array([row]), pool)[0]) for row in rows.tolist()]
            for title, rows in examples.items()
        }
    finally:
        pool.close()
    beside = output.path.with_name(f"{output.path.stem}_{CONTACT_SHEET}")
    path = output.path / CONTACT_SHEET if output.form.is_folder else beside
    save_png(path, contact_sheet(table, examples, images))
    return path


def size_text(size: int) -> str:
    """Format a number of bytes for humans: ``26 MB``."""
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


def _entries(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            yield from folder.iterdir()


def _differences(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """List differences in what both name: settings of the recipe, slides, or else the key itself."""
    found = []
    for key in sorted(wanted.keys() & earlier.keys()):
        old, new = earlier[key], wanted[key]
        if old != new and isinstance(old, dict) and isinstance(new, dict):
            names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            found.append(f"{key} ({shown})")
        elif old != new:
            found.append(key)
    return found


def _pixels(parts: Sequence[SlidePart]) -> int:
    return sum(len(part.rows) * part.rows.size_px**2 for part in parts if len(part.rows))


def _bytes_per_px(output: PatchOutput) -> float:
    if output.form is PatchFormat.JPEG or (output.form is PatchFormat.WEBDATASET and output.quality is not None):
        return float(np.interp(output.quality or _EXPORT_QUALITY, _JPEG_QUALITIES, _JPEG_BYTES_PER_PX))
    if output.form is PatchFormat.HDF5:
        return 3.0
    return _ZARR_BYTES_PER_PX if output.form is PatchFormat.ZARR else _PNG_BYTES_PER_PX


def _record(part: SlidePart) -> Path:
    return part.output.work / f"{_name(part)}.json"


def _part_digest(part: SlidePart) -> str:
    return digest_of(
        {"about": dict(part.rows.about), "form": part.output.form.value, "quality": part.output.quality}
        | {"split": sorted(set(part.rows["split"].tolist()))}
    )


def _stored_before(part: SlidePart) -> dict[str, Any] | None:
    """Return an earlier call's record of this part, if its files still exist with the same sizes."""
    earlier = _done(_record(part))
    if earlier is None or earlier.get("digest") != _part_digest(part):
        return None
    folder = _folder(part.output)
    if part.output.form is PatchFormat.SPARSE:
        files: Any = {sparse_name(_name(part)): earlier.get("file_bytes")}
        if part.annotation_file is not None and not (folder / str(earlier.get("contours"))).is_file():
            return None
    else:
        files = earlier.get("files")
    is_whole = isinstance(files, dict) and all(_size(folder / name) == size for name, size in files.items())
    return earlier if is_whole else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _folder(output: PatchOutput) -> Path:
    """Return the folder of the parts' files."""
    return output.path if output.form.is_folder else output.work


def _written(part: SlidePart) -> dict[str, Any]:
    form, rows, folder = part.output.form, part.rows, part.output.path
    with _slide(part) as slide:
        if form is PatchFormat.SPARSE:
            return store_slide(
                folder, slide, rows, annotation_file=part.annotation_file, quality=part.output.quality or 90
            )
        written: Iterable[Path] = ()
        if form is PatchFormat.ZARR:
            written = _spool(part, slide)
        elif form is PatchFormat.HDF5 and len(rows):
            written = export_hdf5(folder, slide, rows)
        elif form is PatchFormat.WEBDATASET:
            written = export_webdataset(folder, slide, rows, quality=part.output.quality)
        elif form in (PatchFormat.PNG, PatchFormat.JPEG):
            quality = None if form is PatchFormat.PNG else part.output.quality or _EXPORT_QUALITY
            written = export_images(folder, slide, rows, quality=quality)
    return {"files": {str(path.relative_to(_folder(part.output))): path.stat().st_size for path in written}}


def _spool(part: SlidePart, slide: Slide) -> list[Path]:
    """Write pixels and targets of one slide to files that are mapped, not read, when the parts are combined."""
    rows = part.rows
    file = part.annotation_file
    labels = PatchLabels.of(() if file is None else read_annotations(file, rows.groups))
    files = [part.output.work / f"{slide.name}.{kind}" for kind in ("images", "targets")]
    with storage(files[0]), files[0].open("wb") as images, files[1].open("wb") as targets:
        for number, image in images_of(slide, rows):
            images.write(image.tobytes())
            targets.write(paint_targets(labels, rows.rows(np.array([number]))).tobytes())
    return files


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
