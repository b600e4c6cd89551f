"""The review list: slides on which a run and the reference differ, most certain first, with pictures.

Reference labels are sometimes wrong; a list that begins with what the model is most certain of finds such slides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from staging.bars import watched
from staging.cohorts.names import centre_name, slide_key
from staging.csv_rows import csv_for_people
from staging.errors import CohortError
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SizeRule, SlideLabel
from staging.lesions.settings import settings_of
from staging.runs.pages import write_page
from staging.runs.records import artefact_paths, heatmap_path
from wsi.errors import ArtefactError
from wsi.findings import Findings
from wsi.geometry import Region
from wsi.heatmap_store import read_heatmap
from wsi.inputs import read_json
from wsi.legends import length_text
from wsi.raster import Heatmap
from wsi.store import atomic_bytes, atomic_text, check_kept, read_named, storage

if TYPE_CHECKING:
    from wsi.readers.resolution import Mpp
from wsi.slide import Slide

CROP_UM = 600.0
"""Side of every close-up: shows the architecture of the node around a 0.2 mm deposit."""

_CROP_PX = 600
_CROPS = 3
COLUMNS = ("slide", "reference", "found", "kind", "sureness", "probability", "largest_um", "centre")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is worth viewing: the level-0 position of a lesion and its longest diameter, None where none was found."""

    x: float
    y: float
    lesion_um: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A slide whose label differs from the reference's.

    Attributes:
        slide: its id.
        reference, found: the two labels.
        kind: ``false alarm`` (the reference is negative), ``missed`` (the run is negative) or ``size``.
        sureness: 0 to 1: the highest probability p of a false alarm; 1 - p for a missed slide; for a size, how far it
            lies beyond the limit between the labels, as 1 minus their ratio.
        probability: the highest in the heatmap.
        largest_um: longest diameter of the largest lesion; 0 without lesions.
        centre: the centre, if the name gives it.
        sights: what is worth viewing, largest lesion first; on a missed slide the heatmap's highest cell.
    """

    slide: str
    reference: SlideLabel
    found: SlideLabel
    kind: str
    sureness: float
    probability: float
    largest_um: float
    centre: str | None
    sights: tuple[Sight, ...]


def find_disagreements(run: Path, reference: Mapping[str, SlideLabel]) -> tuple[tuple[Disagreement, ...], int]:
    """Compare the slides of a run with reference labels.

    Args:
        run: the output of ``sentinode run``.
        reference: labels by slide.

    Returns:
        The disagreements, most certain first, and the number of slides compared.

    Raises:
        CohortError: the directory has no finished slides, or none with a reference label.
        ArtefactError: a heatmap is damaged.
    """
    truth = {slide_key(name): label for name, label in reference.items()}
    rule = _rule_of(run)
    found, compared = [], 0
    for record in sorted((run / "slides").glob("[!.]*.json")) if (run / "slides").is_dir() else []:
        try:
            analysis = read_named(record, "analysis")
            slide, label = str(analysis["slide"]), SlideLabel.parse(analysis["label"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.reason if isinstance(error, ArtefactError) else "is not a slide record"
            raise CohortError(record, reason, mend="run the slide again") from error
        expected = truth.get(slide_key(slide))
        if expected is None:
            continue
        compared += 1
        if expected is not label:
            found.append(_disagreement(run, slide, analysis, expected=expected, label=label, rule=rule))
    if not compared:
        raise CohortError(
            run,
            "has no finished slide that the reference labels",
            mend="give the output of sentinode run and its labels",
        )
    return tuple(sorted(found, key=lambda one: (-one.sureness, one.slide))), compared


def write_review(
    output: Path,
    disagreements: Sequence[Disagreement],
    *,
    compared: int,
    run: Path,
    slides: Mapping[str, Path] | None = None,
    slide_mpp: Mpp | None = None,
) -> None:
    """Write ``review.html`` and ``review.csv`` with pictures beside them.

    Args:
        output: the folder.
        disagreements: in the order shown.
        compared: number of slides compared.
        run: the output with the heatmaps and overlays.
        slides: slide files by id, for close-ups; without them only the run's pictures are shown.
        slide_mpp: um per level-0 px of slides that state none, or for all.

    Raises:
        StorageError: the output cannot be written.
        SlideError: a slide cannot be read.
    """
    with storage(output):
        (output / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for one in watched(disagreements, count=len(disagreements), verb="slides shown", name=lambda one: one.slide):
        path = (slides or {}).get(one.slide)
        pictures = _copied(one, output, run) if path is None else _drawn(one, path, output, run, slide_mpp)
        shown = {
            name: getattr(one, name) for name in ("slide", "kind", "sureness", "probability", "largest_um", "centre")
        }
        rows.append(shown | {"reference": one.reference.value, "found": one.found.value} | pictures)
    write_page(output / "review.html", "review.html.j2", disagreements=rows, compared=compared)
    atomic_text(output / "review.csv", review_table(disagreements))
    check_kept(output / row["overview"] for row in rows if row["overview"] is not None)


def review_table(disagreements: Sequence[Disagreement]) -> str:
    """Return the list as CSV."""
    rows = (
        (
            one.slide,
            one.reference.value,
            one.found.value,
            one.kind,
            f"{one.sureness:.4f}",
            f"{one.probability:.4f}",
            f"{one.largest_um:.1f}",
            one.centre or "",
        )
        for one in disagreements
    )
    return csv_for_people(COLUMNS, rows)


def _disagreement(
    run: Path, slide: str, analysis: Mapping[str, Any], *, expected: SlideLabel, label: SlideLabel, rule: SizeRule
) -> Disagreement:
    probability = float(analysis["probability"])
    sizes = [float(lesion["longest_diameter_um"]) for lesion in analysis["lesions"]]
    sights = tuple(
        Sight(x=float(lesion["centroid"][0]), y=float(lesion["centroid"][1]), lesion_um=size)
        for lesion, size in zip(analysis["lesions"][:_CROPS], sizes, strict=False)
    )
    largest = max(sizes, default=0.0)
    if expected is SlideLabel.NEGATIVE:
        kind, sureness = "false alarm", probability
    elif label is SlideLabel.NEGATIVE:
        kind, sureness = "missed", 1 - probability
        sights = (_highest(read_heatmap(heatmap_path(run, slide))),)
    else:
        limit = rule.itc_max_um if SlideLabel.ITC in (expected, label) else rule.micro_max_um
        kind, sureness = "size", 1 - min(largest / limit, limit / largest)
    return Disagreement(
        slide=slide,
        reference=expected,
        found=label,
        kind=kind,
        sureness=sureness,
        probability=probability,
        largest_um=largest,
        centre=centre_name(slide),
        sights=sights,
    )


def _rule_of(run: Path) -> SizeRule:
    try:
        return SizeRule(**read_json(run / "run.json")["rule"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(run, "has no valid run.json", mend="give the output of sentinode run") from error


def _highest(heatmap: Heatmap) -> Sight:
    row, column = np.unravel_index(int(heatmap.array.argmax()), heatmap.array.shape)
    x, y = heatmap.frame.centres(row, column)
    return Sight(x=float(x), y=float(y), lesion_um=None)


def _copied(one: Disagreement, output: Path, run: Path) -> dict[str, Any]:
    """The picture that the run made of a slide, if it is there."""
    overlay, copy = artefact_paths(run, one.slide)[0], f"pictures/{one.slide}.png"
    if not overlay.is_file():
        return {"overview": None, "crops": []}
    with storage(overlay):
        atomic_bytes(output / copy, overlay.read_bytes())
    return {"overview": copy, "crops": []}


def _drawn(one: Disagreement, path: Path, output: Path, run: Path, slide_mpp: Mpp | None) -> dict[str, Any]:
    """The slide with a numbered box around each close-up, and the close-ups as they are and with edges."""
    from wsi.render import close_up, save_png, slide_picture  # noqa: PLC0415  (slow import)

    findings = _findings(heatmap_path(run, one.slide))
    overview, crops = f"pictures/{one.slide}.png", []
    with Slide.open(path, mpp=slide_mpp, on_bad_tile="white") as slide:
        boxes = [_around(slide, sight) for sight in one.sights]
        save_png(output / overview, slide_picture(slide, findings, boxes=boxes))
        for number, sight in enumerate(one.sights, start=1):
            drawn = close_up(slide, findings, x=sight.x, y=sight.y, side_um=CROP_UM, side_px=_CROP_PX)
            plain, edged = (f"pictures/{one.slide}-{number}{suffix}.png" for suffix in ("", "-edges"))
            save_png(output / plain, drawn[0])
            save_png(output / edged, drawn[1])
            crops.append({"plain": plain, "edged": edged, "what": _what(sight)})
    return {"overview": overview, "crops": crops}


def _what(sight: Sight) -> str:
    if sight.lesion_um is None:
        return "the highest probability; no lesion was found"
    size = f"a lesion, {length_text(sight.lesion_um)} at its longest"
    return size if sight.lesion_um <= CROP_UM else f"{size}, of which {length_text(CROP_UM)} are shown"


def _findings(heatmap: Path) -> Findings:
    """What the run found, by its own settings."""
    settings, values = settings_of(heatmap, options={}), read_heatmap(heatmap)
    _, masks = find_lesions(
        values,
        threshold=settings.threshold.value,
        merge_gap_um=settings.merge_gap_um.value,
        smallest_um=settings.smallest_um.value,
        peak=settings.peak.value,
    )
    return Findings(heatmap=values, threshold=settings.threshold.value, lesions=masks)


def _around(slide: Slide, sight: Sight) -> Region:
    side = round(CROP_UM / slide.frame.pixel_um)
    return Region(x=round(sight.x) - side // 2, y=round(sight.y) - side // 2, width=side, height=side)
