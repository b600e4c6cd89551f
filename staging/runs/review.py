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
from staging.lesions.labels import SizeRule, SlideLabel
from staging.runs.pages import write_page
from wsi.errors import ArtefactError
from wsi.geometry import Region
from wsi.heatmap_store import read_heatmap
from wsi.inputs import read_json
from wsi.raster import Heatmap
from wsi.store import atomic_bytes, atomic_text, check_kept, read_named, storage

if TYPE_CHECKING:
    from wsi.readers.resolution import Mpp
from wsi.slide import Slide

CROP_UM = 600.0
"""Side of the pictures of lesions: shows the architecture of the node around a 0.2 mm deposit."""

_CROP_PX = 600
_CROPS = 3
COLUMNS = ("slide", "reference", "found", "kind", "sureness", "probability", "largest_um", "centre")


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
        positions: level-0 (x, y) worth viewing, largest lesion first; on a missed slide the heatmap's highest cell.
    """

    slide: str
    reference: SlideLabel
    found: SlideLabel
    kind: str
    sureness: float
    probability: float
    largest_um: float
    centre: str | None
    positions: tuple[tuple[float, float], ...]


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
        slides: slide files by id, for close-ups; without them only overlays are shown.
        slide_mpp: um per level-0 px of slides that state none, or for all.

    Raises:
        StorageError: the output cannot be written.
        SlideError: a slide cannot be read.
    """
    with storage(output):
        (output / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for one in watched(disagreements, count=len(disagreements), verb="slides shown", name=lambda one: one.slide):
        overlay = run / "overlays" / f"{one.slide}.png"
        copied = output / "pictures" / f"{one.slide}.png"
        if overlay.is_file():
            with storage(overlay):
                atomic_bytes(copied, overlay.read_bytes())
        path = (slides or {}).get(one.slide)
        crops = [] if path is None else _draw_crops(one, path, output, run, slide_mpp)
        shown = {
            name: getattr(one, name) for name in ("slide", "kind", "sureness", "probability", "largest_um", "centre")
        }
        rows.append(
            shown
            | {"reference": one.reference.value, "found": one.found.value, "crops": crops}
            | {"overlay": f"pictures/{copied.name}" if overlay.is_file() else None}
        )
    write_page(output / "review.html", "review.html.j2", disagreements=rows, compared=compared)
    atomic_text(output / "review.csv", review_table(disagreements))
    check_kept(output / row["overlay"] for row in rows if row["overlay"] is not None)


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
    positions = tuple(
        (float(lesion["centroid"][0]), float(lesion["centroid"][1])) for lesion in analysis["lesions"][:_CROPS]
    )
    largest = max(sizes, default=0.0)
    if expected is SlideLabel.NEGATIVE:
        kind, sureness = "false alarm", probability
    elif label is SlideLabel.NEGATIVE:
        kind, sureness = "missed", 1 - probability
        positions = (_highest(read_heatmap(run / "heatmaps" / f"{slide}.zarr")),)
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
        positions=positions,
    )


def _rule_of(run: Path) -> SizeRule:
    try:
        return SizeRule(**read_json(run / "run.json")["rule"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(run, "has no valid run.json", mend="give the output of sentinode run") from error


def _highest(heatmap: Heatmap) -> tuple[float, float]:
    row, column = np.unravel_index(int(heatmap.array.argmax()), heatmap.array.shape)
    x, y = heatmap.frame.centres(row, column)
    return float(x), float(y)


def _draw_crops(one: Disagreement, path: Path, output: Path, run: Path, slide_mpp: Mpp | None) -> list[dict[str, str]]:
    from wsi.render import overlay, save_png  # noqa: PLC0415  (slow import)
    from wsi.slide import Slide  # noqa: PLC0415

    heatmap = read_heatmap(run / "heatmaps" / f"{one.slide}.zarr")
    crops = []
    with Slide.open(path, mpp=slide_mpp, on_bad_tile="white") as slide:
        for number, (x, y) in enumerate(one.positions, start=1):
            image = slide.read_at(CROP_UM / _CROP_PX, _around(slide, x, y))
            what = "its highest probability" if one.kind == "missed" else f"lesion {number}"
            for suffix, drawn in (("", image.array), ("-heatmap", overlay(image, heatmap, threshold=0.5))):
                picture = output / "pictures" / f"{one.slide}-{number}{suffix}.png"
                save_png(picture, drawn)
                text = f"{what}, {CROP_UM:g} um wide" if not suffix else f"{what} with the heatmap"
                crops.append({"picture": f"pictures/{picture.name}", "what": text})
    return crops


def _around(slide: Slide, x: float, y: float) -> Region:
    side = round(CROP_UM / slide.frame.pixel_um)
    return Region(x=round(x) - side // 2, y=round(y) - side // 2, width=side, height=side)
