"""Training patches of a whole cohort: drawn slide by slide, then stored slide by slide; a second call resumes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from rich.filesize import decimal

from annotations.patches.table import NO_CENTRE, PatchTable, join_tables
from staging.cohorts.camelyon import SlideFile, StageTable
from staging.errors import CohortError, listed
from staging.runs.cluster import each
from staging.training.fit import is_fit, misfit
from staging.training.outputs import REMADE, PatchOutput, Record, SlidePart, form_of
from staging.training.room import check_room, expected_bytes, room_bytes
from staging.training.sources import PatchRecipe, PatchSource, described, draw, find_sources, read_drawn
from staging.training.storing import check_output, claim, finish, store_part, write_contact_sheet
from wsi.lock import OutputLock
from wsi.slide import Slide

__all__ = ["PatchRecipe", "SamplingNews", "StoringNews", "sample_cohort"]


class SamplingNews(Protocol):
    """Receives the progress of sampling."""

    def slide(self, name: str, outcome: str = "") -> None:
        """Report a slide that patches were drawn from."""


class StoringNews(SamplingNews, Protocol):
    """Also receives the progress of storing."""

    def begin(self, slides: int) -> None:
        """Report the number of slides drawn from."""

    def stored(self, name: str, patches: int, total: int) -> None:
        """Report the stored patches of a slide; an empty name starts the count."""

    def say(self, text: str) -> None:
        """Print a line."""


def sample_cohort(
    slides: Sequence[SlideFile],
    annotations: Path,
    reference: StageTable,
    output: Path,
    *,
    recipe: PatchRecipe,
    workers: int,
    news: SamplingNews,
    form: str | None = None,
    quality: int | None = None,
    has_contact_sheet: bool = False,
) -> dict[str, Any]:
    """Draw patches from every usable slide and store them.

    See ``staging.training.sources.find_sources`` for which slides are usable. After an interruption the next call
    keeps the slides that were done, if neither they nor the recipe have changed.

    Args:
        slides: what find_slides found.
        annotations: directory of annotations, of any format, named like the slides.
        reference: labels of the slides.
        output: the folder to write; ``.zarr`` for a Zarr store, ``.parquet`` for the table alone.
        recipe: what to draw.
        workers: number of processes.
        news: receives the progress of sampling, and of storing if it is a StoringNews.
        form: a name among FORMATS, overriding the output's name.
        quality: JPEG quality, if any JPEG is encoded.
        has_contact_sheet: draw some patches of every kind as a PNG.

    Returns:
        Counts: ``slides``, ``left_out`` (name and reason), ``short`` (slides that gave fewer patches of a class than
        were requested, with both numbers: no more positions were found), ``warnings`` (slides whose annotations are
        odd, and how), ``remade`` (slides whose stored files had changed, and how), ``count``, ``classes``, ``splits``,
        ``bytes`` expected, ``contact_sheet``, and for sparse slides ``tiles_copied``, ``tiles_encoded``, ``not_exact``
        (slides whose stored pixels differ from the original).

    Raises:
        CohortError: no slide is usable, or no patch was found.
        ConfigurationError: the output has other files, or patches made differently; ``quality`` without any JPEG.
        SamplingError: the patients cannot be split like this; raised before anything is drawn.
        StorageError: the disk is too small.
        PathologyError: a slide or its annotations are faulty; faulty slides are never skipped silently.
    """
    sources, left_out = find_sources(slides, annotations, reference, recipe)
    check_sources(sources, recipe)
    target = PatchOutput(path=output, form=form_of(output, form), quality=quality, slide_mpp=recipe.slide_mpp)
    check_output(target)
    telling = cast("StoringNews", news) if hasattr(news, "stored") else None
    if telling is not None:
        telling.begin(len(sources))
        if left_out:
            telling.say(_left_out_text(left_out, len(slides)))
    with OutputLock(output if target.form.is_folder else target.work) as lock:
        claim(target, {"recipe": described(recipe), "format": target.form.name, "quality": quality})
        tables = _drawn(sources, recipe, target, workers=workers, news=news)
        table = _joined(tables, recipe, annotations)
        short = {source.slide.name: lack for source in sources if (lack := _lack(source, tables[source.slide.name]))}
        parts = [
            SlidePart(file=source.slide.path, annotation_file=source.annotation_file, rows=rows, output=target)
            for source in sources
            if len(rows := table.rows(table["slide"] == source.slide.name))
        ]
        parts = [replace(part, rows=_own(part, tables)) for part in parts]
        claim(target, {"slides and contours": {name: tables[name].about["digest"] for name in sorted(tables)}})
        expected = expected_bytes(target, parts)
        if telling is not None:
            telling.say(f"{len(table)} patches of {len(parts)} slides, about {decimal(expected)} as {target.form.name}")
        check_room(output, room_bytes(target, parts))
        sheet = write_contact_sheet(target, table) if has_contact_sheet else None
        done = _stored(parts, len(table), target, workers=workers, news=telling)
        lock.check()
        if not target.form.has_slides:
            table = replace(table, about={**table.about, "sources": _sources(sources, table)})
        finish(target, table, done)
    return {
        "slides": len(sources),
        "left_out": left_out,
        "short": short,
        "warnings": {name: found for name, found in _warnings(sources, tables, recipe).items() if found},
        "count": len(table),
        "classes": table.counts("class"),
        "splits": table.counts("split", "class"),
        "remade": {name: record[REMADE] for name, record in done.items() if REMADE in record},
        "bytes": expected,
        "contact_sheet": None if sheet is None else str(sheet),
        **target.form.told(done),
    }


def check_sources(sources: Sequence[PatchSource], recipe: PatchRecipe) -> None:
    """Refuse at once what would fail after hours of drawing.

    Raises:
        SamplingError: the patients cannot be split like this.
        CohortError: a slide has no heatmap.
        PathologyError: annotations cannot be read.
    """
    _check_split(sources, recipe)
    _check_heatmaps(sources, recipe)
    _check_annotations(sources, recipe)


def _check_split(sources: Sequence[PatchSource], recipe: PatchRecipe) -> None:
    """Refuse at once a split that would fail after hours of drawing.

    Raises:
        SamplingError: the patients cannot be split like this.
    """
    if recipe.split is not None:
        patients = np.array([source.slide.patient or source.slide.name for source in sources])
        centres = np.array([NO_CENTRE if source.centre is None else source.centre for source in sources])
        recipe.split.of(patients, centres, np.array([source.tumour > 0 for source in sources]), seed=recipe.seed)


def _check_heatmaps(sources: Sequence[PatchSource], recipe: PatchRecipe) -> None:
    """Refuse at once heatmaps that are not there for every slide.

    Raises:
        CohortError: some are not.
    """
    if recipe.hard and recipe.heatmaps is not None:
        names = [source.slide.name for source in sources]
        missing = [name for name in names if not (recipe.heatmaps / f"{name}.zarr").is_dir()]
        if missing:
            raise CohortError(
                recipe.heatmaps, f"has no heatmap of {listed(missing)}", mend="make them, or give --model"
            )


def _check_annotations(sources: Sequence[PatchSource], recipe: PatchRecipe) -> None:
    """Refuse at once annotations that cannot be read, which would end the work at their slide.

    Raises:
        PathologyError: some cannot.
    """
    for source in sources:
        if source.annotation_file is not None:
            read_drawn(source, source.annotation_file, recipe.groups)


def _warnings(
    sources: Sequence[PatchSource], tables: Mapping[str, PatchTable], recipe: PatchRecipe
) -> dict[str, list[str]]:
    """Return what is odd about the annotations of each slide."""
    found = {}
    unfit = {name for name, table in tables.items() if not is_fit(table.about.get("on_tissue"))}
    for source in sources:
        about = tables[source.slide.name].about
        found[source.slide.name] = list(about.get("warnings") or ())
        if source.annotation_file is not None and (about.get("on_tissue") or 0) < 1:
            others = [one.slide.path for one in sources if _are_swappable(one, source, unfit)]
            drawn = read_drawn(source, source.annotation_file, recipe.groups).annotations
            odd = misfit(drawn, about.get("on_tissue"), others, mpp=recipe.slide_mpp)
            found[source.slide.name] += [] if odd is None else [odd]
    return found


def _are_swappable(one: PatchSource, other: PatchSource, unfit: Collection[str]) -> bool:
    """Whether annotations of one may have been saved as those of the other: two slides of a patient, or both unfit."""
    if one is other:
        return False
    is_of_patient = one.slide.patient is not None and one.slide.patient == other.slide.patient
    return is_of_patient or {one.slide.name, other.slide.name} <= set(unfit)


def _left_out_text(left_out: Mapping[str, str], count: int) -> str:
    reasons = Counter(left_out.values()).most_common()
    return f"{len(left_out)} of {count} slides left out: " + "; ".join(f"{reason} ({n})" for reason, n in reasons)


def _drawn(
    sources: Sequence[PatchSource], recipe: PatchRecipe, target: PatchOutput, *, workers: int, news: SamplingNews
) -> dict[str, PatchTable]:
    tables = {}
    work = [(source, recipe, target.work) for source in sources]
    for (source, _, _), outcome in each(draw, work, workers=workers):
        if isinstance(outcome, BaseException):
            raise outcome
        tables[source.slide.name] = outcome
        news.slide(source.slide.name, f"{len(outcome)} patches")
    return tables


def _joined(tables: dict[str, PatchTable], recipe: PatchRecipe, annotations: Path) -> PatchTable:
    table = join_tables([tables[name] for name in sorted(tables)])
    if not len(table):
        raise CohortError(annotations, "no patches were found on any slide", mend="check the annotations and the size")
    table = replace(
        table,
        files={name: file for name, file in table.files.items() if name in set(table["slide"].tolist())},
        about={"recipe": described(recipe)},
    )
    if recipe.split is None:
        return table
    split = recipe.split.of(table["patient"].astype(str), table["centre"], table["class"] == "tumour", seed=recipe.seed)
    return table.with_split(split)


def _sources(sources: Sequence[PatchSource], table: PatchTable) -> dict[str, dict[str, Any]]:
    """Return, by slide, what shows whether it and its annotations are those that patches were drawn from."""
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        if source.slide.name in table.files:
            drawn = source.annotation_file
            found[source.slide.name] = {
                "fingerprint": Slide(source.slide.path).fingerprint(),
                "contours": None if drawn is None else str(drawn.resolve()),
                "contours_sha256": None if drawn is None else hashlib.sha256(drawn.read_bytes()).hexdigest(),
            }
    return found


def _lack(source: PatchSource, table: PatchTable) -> dict[str, list[int]]:
    """Return, by class, the patches drawn and requested, where fewer were drawn."""
    asked = {"tumour": source.tumour, "normal": source.normal + source.hard}
    drawn = {label: int((table["class"] == label).sum()) for label in asked}
    return {label: [drawn[label], count] for label, count in asked.items() if drawn[label] < count}


def _own(part: SlidePart, tables: dict[str, PatchTable]) -> PatchTable:
    """Return a slide's rows with what their drawing depended on."""
    name = str(part.rows["slide"][0])
    return replace(part.rows, files={name: part.rows.files[name]}, about=tables[name].about)


def _stored(
    parts: Sequence[SlidePart], total: int, target: PatchOutput, *, workers: int, news: StoringNews | None
) -> dict[str, Record]:
    done: dict[str, Record] = {}
    if not target.form.has_pixels:
        return done
    if news is not None:
        news.stored("", 0, total)
    for part, outcome in each(store_part, parts, workers=workers):
        if isinstance(outcome, BaseException):
            raise outcome
        done[part.name] = outcome
        if news is not None:
            news.stored(part.name, len(part.rows), total)
    return done
