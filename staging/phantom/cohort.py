"""The phantom cohort on disk: slides, annotations, the table of stages and the exact truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from annotations.polygons import longest_diameter
from staging.cohorts.camelyon import write_stage_table
from staging.lesions.labels import SizeRule, SlideLabel
from staging.phantom.anatomy import CELL_UM, RIM, Anatomy, draw_anatomy
from staging.phantom.growth import Ground, GrownLesion, grow_lesion
from staging.phantom.plan import Difficulty, LesionPlan, SlidePlan, plan_cohort
from staging.phantom.section import Section
from staging.phantom.stain import CENTRES
from staging.phantom.texture import Tissue
from staging.stages.pn import PatientStage, parse_slide_name
from wsi.inputs import read_json
from wsi.store import atomic_text, check_kept, json_text, storage
from wsi.writing.pyramid import write_pyramid

_DECIMALS = 4
_PURPOSES = 1000  # streams of one slide: layouts from 0 on, the textures' shifts after them
_LAYOUTS = 30
_SMALL_UM = 320.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionTruth:
    """One metastasis as drawn.

    Attributes:
        longest_diameter_um: largest distance between two vertices of its outlines.
        deposits: number of its outlines.
        centroid: x, y of the filled outlines' centre of mass, level-0 px.
        label: the label of a slide with this lesion alone.
    """

    longest_diameter_um: float
    deposits: int
    centroid: tuple[float, float]
    label: SlideLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTruth:
    """One slide as drawn.

    Attributes:
        name: file name without suffix.
        label: decided by the largest lesion.
        centre: 0 to 4.
        mpp: um per level-0 px.
        width, height: of level 0 in px.
        seed: of the cohort.
        lesions: largest first.
    """

    name: str
    label: SlideLabel
    centre: int
    mpp: float
    width: int
    height: int
    seed: int
    lesions: tuple[LesionTruth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTruth:
    """The truth about a phantom cohort.

    Attributes:
        seed: of the cohort.
        difficulty: by what its tumour is told.
        stages: stages by patient (``patient_000``).
        slides: in order of name.
    """

    seed: int
    difficulty: Difficulty
    stages: dict[str, PatientStage]
    slides: tuple[SlideTruth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A slide ready to be rendered, and what it shows."""

    section: Section
    lesions: tuple[GrownLesion, ...]
    truth: SlideTruth


def generate_cohort(
    out: Path,
    *,
    patients: int,
    centres: Sequence[int],
    seed: int,
    mpp: float,
    workers: int = 1,
    size_um: tuple[float, float] | None = None,
    first_patient: int = 0,
    difficulty: Difficulty = "real",
    on_slide: Callable[[str], None] | None = None,
) -> CohortTruth:
    """Make a cohort in ``out`` in the layout of CAMELYON17's object store; equal arguments give equal bytes.

    Writes ``images/*.tif``, ``annotations/*.xml`` (slides with lesions only), ``stage_labels.csv`` and, last,
    ``truth.json``.

    Args:
        out: folder; made if missing.
        patients: as for plan_cohort.
        centres: as for plan_cohort.
        seed: as for plan_cohort.
        mpp: as for plan_cohort.
        workers: number of processes; it does not change the bytes.
        size_um: as for plan_cohort.
        first_patient: as for plan_cohort.
        difficulty: as for plan_cohort.
        on_slide: called with the name of each slide once it is complete.

    Raises:
        ValueError: an argument is out of range.
        StorageError: the files cannot be written.
    """
    planned = plan_cohort(
        patients=patients,
        centres=centres,
        seed=seed,
        mpp=mpp,
        size_um=size_um,
        first_patient=first_patient,
        difficulty=difficulty,
    )
    # slides of one scanner and stain follow one another: each process keeps the last textures
    slides = sorted(
        (slide for patient in planned for slide in patient.slides),
        key=lambda slide: (slide.mpp, slide.centre, slide.name),
    )
    truths = []
    for truth in _render_all(slides, out, workers):
        truths.append(truth)
        if on_slide is not None:
            on_slide(truth.name)
    cohort = CohortTruth(
        seed=seed,
        difficulty=difficulty,
        stages={patient.name: patient.stage for patient in planned},
        slides=tuple(sorted(truths, key=lambda truth: truth.name)),
    )
    write_stage_table(out / "stage_labels.csv", cohort.stages, {slide.name: slide.label for slide in cohort.slides})
    atomic_text(out / "truth.json", json_text(_plain(asdict(cohort))))
    check_kept(out / "images" / f"{slide.name}.tif" for slide in cohort.slides)
    return cohort


def forget_cohort(out: Path, *, is_own: bool = False) -> None:
    """Remove the files of a cohort in ``out``: the slides that its truth lists.

    Args:
        out: the folder of the cohort.
        is_own: it is known to be one, and incomplete without a truth: slides are then told by the form of their names.
            Otherwise nothing is removed without a truth.

    Raises:
        StorageError: the file system refuses.
    """
    names = drawn_slides(out)
    if names is None and is_own:
        names = tuple(path.stem for path in (out / "images").glob("patient_???_node_?.tif"))
    if names is None:
        return
    made = [part for name in names for part in (f"images/{name}.tif", f"annotations/{name}.xml")]
    for name in (*made, "stage_labels.csv", "truth.json"):
        with storage(out / name):
            (out / name).unlink(missing_ok=True)


def drawn_slides(out: Path) -> tuple[str, ...] | None:
    """The slides of the cohort that was drawn in a folder; None if there is none, or its folders are links."""
    try:
        truth = read_json(out / "truth.json")
        names = tuple(slide["name"] for slide in truth["slides"])
        of_slide = {field.name for field in fields(SlideTruth)}
        # cohorts of earlier versions do not say how difficult they are
        is_own = truth.keys() | {"difficulty"} == {field.name for field in fields(CohortTruth)}
        is_own = is_own and all(slide.keys() == of_slide for slide in truth["slides"])
        is_own = is_own and all(parse_slide_name(name) and name == name.strip() for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return names if is_own and not any((out / part).is_symlink() for part in ("images", "annotations")) else None


def render_slide(plan: SlidePlan, out: Path) -> SlideTruth:
    """Draw one slide: ``images/NAME.tif`` and, with lesions, ``annotations/NAME.xml`` below ``out``.

    Raises:
        StorageError: the files cannot be written.
    """
    layout = lay_out(plan)
    section = layout.section
    (out / "images").mkdir(parents=True, exist_ok=True)
    if layout.lesions:
        write_asap(out / "annotations" / f"{plan.name}.xml", _annotations(plan, section))
    write_pyramid(
        out / "images" / f"{plan.name}.tif",
        width=section.width,
        height=section.height,
        mpp=section.mpp,
        tiles=section.tiles(),
        philips=section.centre.philips,
    )
    return layout.truth


def lay_out(plan: SlidePlan) -> Layout:
    """Draw the anatomy of a slide and grow its lesions in it."""
    for attempt in range(_LAYOUTS):
        rng = plan.random(attempt)
        anatomy = draw_anatomy(
            rng,
            width_um=plan.width_um,
            height_um=plan.height_um,
            pieces=plan.pieces,
            fatty=plan.fatty,
            pen=plan.pen,
            fold=plan.fold,
        )
        grown = _grow(rng, Ground(anatomy), plan)
        if grown is None:
            continue
        for lesion in grown:
            _fill_small(anatomy, lesion)
        lesions = tuple(_on_grid(lesion, plan.mpp) for lesion in grown)
        section = Section(
            centre=CENTRES[plan.centre],
            difficulty=plan.difficulty,
            mpp=plan.mpp,
            width=round(plan.width_um / plan.mpp),
            height=round(plan.height_um / plan.mpp),
            anatomy=anatomy,
            tumours=[outline for lesion in lesions for outline in lesion.deposits],
            islands=[outline for lesion in lesions for outline in lesion.islands],
            shifts=plan.random(_PURPOSES).integers(0, 1 << 20, (len(Tissue), 2)),
        )
        return Layout(section=section, lesions=lesions, truth=_truth(plan, section, lesions))
    raise RuntimeError(f"no section has room for the lesions of {plan.name}")


def _render_all(slides: Sequence[SlidePlan], out: Path, workers: int) -> Iterator[SlideTruth]:
    if workers <= 1:
        yield from (render_slide(slide, out) for slide in slides)
        return
    with ProcessPoolExecutor(min(workers, len(slides)), mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(render_slide, slide, out) for slide in slides]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            for future in pending:
                future.cancel()


def _grow(rng: np.random.Generator, ground: Ground, plan: SlidePlan) -> list[GrownLesion] | None:
    """Grow the lesions of a slide; None if there is no room for the largest, which decides the label."""
    grown: list[GrownLesion] = []
    for planned in plan.lesions:
        lesion = _grow_one(rng, ground, planned)
        if lesion is not None:
            ground.block(lesion)
            grown.append(lesion)
        elif not grown:
            return None
    return grown


def _grow_one(rng: np.random.Generator, ground: Ground, lesion: LesionPlan) -> GrownLesion | None:
    return grow_lesion(
        rng, ground, lesion.diameter_um, deposits=lesion.deposits, island=lesion.island, loop=lesion.loop
    )


def _fill_small(anatomy: Anatomy, lesion: GrownLesion) -> None:
    """Make small deposits solid: nests and glands are wider, so that they could show nothing but stroma."""
    for outline in lesion.deposits:
        low, high = outline.min(axis=0), outline.max(axis=0)
        if (high - low).max() < _SMALL_UM:
            left, top = np.floor(low / CELL_UM).astype(int) + RIM - 3
            right, bottom = np.ceil(high / CELL_UM).astype(int) + RIM + 3
            anatomy.tumour[max(0, top) : bottom, max(0, left) : right] = Tissue.TUMOUR_SOLID


def _on_grid(lesion: GrownLesion, mpp: float) -> GrownLesion:
    """Convert a lesion to level-0 px, rounded as written."""
    return GrownLesion(
        deposits=tuple(np.round(outline / mpp, _DECIMALS) for outline in lesion.deposits),
        islands=tuple(np.round(outline / mpp, _DECIMALS) for outline in lesion.islands),
    )


def _truth(plan: SlidePlan, section: Section, grown: Sequence[GrownLesion]) -> SlideTruth:
    rule = SizeRule()
    lesions = []
    for lesion in grown:
        diameter = longest_diameter(np.concatenate(lesion.deposits)) * plan.mpp
        lesions.append(
            LesionTruth(
                longest_diameter_um=round(diameter, 6),
                deposits=len(lesion.deposits),
                centroid=_centroid(lesion),
                label=rule.label(diameter),
            )
        )
    lesions.sort(key=lambda lesion: -lesion.longest_diameter_um)
    label = max((lesion.label for lesion in lesions), default=SlideLabel.NEGATIVE)
    if label is not plan.label:
        raise RuntimeError(f"{plan.name} was drawn as {label} but planned as {plan.label}")
    return SlideTruth(
        name=plan.name,
        label=label,
        centre=plan.centre,
        mpp=plan.mpp,
        width=section.width,
        height=section.height,
        seed=plan.seed,
        lesions=tuple(lesions),
    )


def _centroid(lesion: GrownLesion) -> tuple[float, float]:
    total, moment = 0.0, np.zeros(2)
    for sign, outlines in ((1.0, lesion.deposits), (-1.0, lesion.islands)):
        for outline in outlines:
            area, first = _moments(outline)
            total += sign * area
            moment += sign * first
    x, y = moment / total
    return round(float(x), 3), round(float(y), 3)


def _moments(outline: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Area and first moments of a polygon, both positive for either direction."""
    after = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * after[:, 1] - after[:, 0] * outline[:, 1]
    area = float(cross.sum()) / 2
    first = ((outline + after) * cross[:, None]).sum(axis=0) / 6
    return (area, first) if area >= 0 else (-area, -first)


def _annotations(plan: SlidePlan, section: Section) -> list[Annotation]:
    centre = CENTRES[plan.centre]
    return [
        Annotation(name=f"Annotation {number}", group=group, role=role, kind="Polygon", vertices=outline)
        for number, (outline, group, role) in enumerate(
            [(outline, centre.tumour_group, Role.TUMOUR) for outline in section.tumours]
            + [(outline, centre.cut_out_group, Role.CUT_OUT) for outline in section.islands]
        )
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401  (whatever asdict gives)
    """Replace enumeration members in the value by their texts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, (SlideLabel, PatientStage)) else value
