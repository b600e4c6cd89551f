"""Drawn patches stored slide by slide, with records of what an output is made from, so that a second call resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from annotations.patches.contact_sheet import contact_sheet, pick_examples, thumbnail
from annotations.patches.sparse_store import TABLE
from annotations.patches.table import PatchTable
from staging.errors import ConfigurationError
from staging.runs.cluster import TileNews
from staging.training.outputs import MEASURED, NOTE, PARTS, REMADE, PatchOutput, Record, SlidePart
from wsi.inputs import read_json
from wsi.patches.pool import SlidePool
from wsi.patches.reading import read_positions
from wsi.render import save_png
from wsi.store import atomic_text, differs, digest_of, json_text, measured, sweep

CONTACT_SHEET = "contact_sheet.png"


def check_output(output: PatchOutput) -> None:
    """Refuse to overwrite other files, and what could not be written or would have no effect; nothing is touched.

    Raises:
        ConfigurationError: the output or its quality is refused.
        PathologyError: a library that the format needs is not installed.
    """
    path, form = output.path, output.form
    form.check_installed()
    if output.quality is not None and not form.has_jpeg:
        raise ConfigurationError(None, f"--quality is for JPEG, and {form.name} has none", mend="leave it out")
    if path.exists() and not (path.is_dir() and all(entry.name == ".lock" for entry in path.iterdir())):
        form.refuse_others(output)


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
    note = output.work / NOTE
    wanted = json.loads(json_text(made_from))
    earlier = _read(note)
    if not any(entry.name not in (".lock", PARTS, NOTE) for entry in _entries(output.path, output.work)):
        earlier = None  # an earlier call wrote nothing
    odd = _differences(earlier or {}, wanted)
    if odd:
        raise ConfigurationError(
            output.path, f"has patches made with other {', '.join(odd)}", mend="name another output or remove it"
        )
    if earlier is None and any(entry.name not in (".lock", PARTS) for entry in output.path.iterdir()):
        raise ConfigurationError(output.path, "is not empty and has no patches", mend="name another output")
    # pictures are two folders deep
    for folder in (output.path, *output.path.glob("*"), *output.path.glob("*/*")):
        sweep(folder)
    atomic_text(note, json_text({**(earlier or {}), **wanted}))


def store_part(part: SlidePart, _: TileNews) -> Record:
    """Write one slide's part, unless an earlier call wrote it.

    Returns:
        What was done, with at least ``patches``; with ``remade``, files of an earlier call had changed, and how.

    Raises:
        PathologyError: the slide cannot be read, or the part cannot be written.
    """
    earlier = _earlier(part)
    broken = () if earlier is None else _broken(part.output.parts_folder, earlier, digests=True)
    if earlier is not None and not broken:
        return earlier
    form, folder = part.output.form, part.output.parts_folder
    done = {"digest": _digest(part), "patches": len(part.rows), **form.write(part)}
    files = {name: measured(folder / name) for name in form.files(part, done)}
    atomic_text(_record(part), json_text({**done, MEASURED: files}))
    return {**done, REMADE: list(broken)} if broken else done


def is_stored(part: SlidePart) -> bool:
    """Return whether an earlier call wrote this part, by the sizes of its files alone."""
    earlier = _earlier(part)
    return earlier is not None and not _broken(part.output.parts_folder, earlier, digests=False)


def _earlier(part: SlidePart) -> Record | None:
    """Return an earlier call's record of this part, whatever became of its files."""
    record = _read(_record(part))
    return record if record is not None and record.get("digest") == _digest(part) else None


def is_patch_folder(folder: Path) -> bool:
    """Return whether a folder holds patches that ``sentinode patches`` stored slide by slide."""
    return (folder / PARTS / NOTE).is_file()


def broken_parts(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what is wrong with each slide's part of a folder of patches, and with its table; all are listed."""
    return {name: _broken(folder, record, digests=True) for name, record in _records(folder).items()}


def changed_files(folder: Path) -> list[str]:
    """Return how files of a folder of patches changed; what earlier versions stored is not known and passed over."""
    known = [record for record in _records(folder).values() if MEASURED in record]
    return [reason for record in known for reason in _broken(folder, record, digests=True)]


def _records(folder: Path) -> dict[str, Record]:
    """Read the record of each slide's part, and that of the table; empty if it cannot be read."""
    parts = sorted(path for path in (folder / PARTS).glob("[!.]*.json") if path.name != NOTE)
    return {path.stem: _read(path) or {} for path in parts} | {TABLE: _read(folder / PARTS / NOTE) or {}}


def _broken(folder: Path, record: Record, *, digests: bool) -> tuple[str, ...]:
    """Return how files differ from their record."""
    try:
        files = record[MEASURED].items()
        checked = {name: differs(folder / name, expected, digests=digests) for name, expected in files}
    except (LookupError, TypeError, AttributeError):
        return ("its record is malformed",)
    return tuple(f"{name} {reason}" for name, reason in checked.items() if reason is not None)


def finish(output: PatchOutput, table: PatchTable, done: Mapping[str, Record]) -> None:
    """Combine the parts and publish the result.

    Raises:
        StorageError: the file system refuses.
    """
    output.form.finish(output, table, done)
    if not output.form.is_folder:
        shutil.rmtree(output.work, ignore_errors=True)
        return
    # folders keep their records, so that a second call finds everything done
    note = output.work / NOTE
    atomic_text(note, json_text({**(_read(note) or {}), MEASURED: {TABLE: measured(output.path / TABLE)}}))


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


def _record(part: SlidePart) -> Path:
    return part.output.work / f"{part.name}.json"


def _digest(part: SlidePart) -> str:
    return digest_of(
        {"about": dict(part.rows.about), "form": part.output.form.name, "quality": part.output.quality}
        | {"split": sorted(set(part.rows["split"].tolist()))}
    )


def _read(record: Path) -> dict[str, Any] | None:
    try:
        found = read_json(record)
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
