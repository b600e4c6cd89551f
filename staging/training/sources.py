"""Which slides of a cohort give training patches, how many, and at which positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from annotations.annotation import AnnotationSet, Role
from annotations.errors import PatchStoreError
from annotations.files.formats import SUFFIXES, read_annotation_set
from annotations.groups import has_role, require_role
from annotations.patches.batch import HARD_CHOICE, HardChoice, Shares, draw_patches
from annotations.patches.labels import LabelRule
from annotations.patches.splits import Split
from annotations.patches.table import PatchTable, read_patch_table, table_of, write_patch_table
from annotations.polygons import check_within
from staging.cohorts.camelyon import SlideFile, StageTable
from staging.cohorts.errata import EXCLUDED, is_partly_annotated
from staging.cohorts.names import centre_of_patient, slide_key
from staging.errors import CohortError
from staging.lesions.labels import SlideLabel
from staging.lesions.settings import COVERAGE_TOLERANCE
from staging.runs.cluster import TileNews
from staging.training.fit import share_on
from wsi.coverage import measure_coverage
from wsi.errors import SlideError
from wsi.geometry import Frame
from wsi.heatmap_store import read_heatmap
from wsi.hidden import shown
from wsi.raster import Heatmap, Mask
from wsi.readers.resolution import Mpp
from wsi.readers.source import is_url
from wsi.slide import Slide
from wsi.store import digest_of, provenance_of
from wsi.tissue import find_tissue

_CELLS_OFF = 2
_STRATEGIES: Mapping[str, Shares] = MappingProxyType(
    {"lesion": Shares(), "uniform": Shares(border=0, near=0, background=0, turns="area"), "border": Shares(border=1)}
)
_UNLESS = "label the slide negative in the reference (patches: or give --allow-empty)"
_NO_INFLUENCE = ("device", "threads", "upsample", "allows_empty")


_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRecipe:
    """How patches are drawn from each slide.

    Attributes:
        mpp: um per pixel of the patches.
        size_px: side of the patches in pixels.
        tumour: patches with tumour per slide that has annotations.
        normal: patches without tumour per slide.
        seed: equal seeds give equal patches for any number of workers.
        per_class: total patches of each class, instead of ``tumour`` and ``normal``: shared equally among the centres,
            and among the slides of each.
        strategy: ``lesion`` samples the lesions of a slide in turn, with part of the patches on their borders and
            beside them; ``uniform`` samples tumour and tissue uniformly; ``border`` takes all tumour patches on
            outlines.
        rule: what makes a patch tumour.
        hard: patches per slide where a model takes normal tissue for tumour.
        hard_choice: ``worst`` takes the most probable of these, apart from each other; ``even`` samples uniformly.
        model: the checkpoint whose false positives are sampled.
        heatmaps: a directory of ``<slide>.zarr`` heatmaps to use instead of a model.
        split: of the patients; None puts all in ``train``.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        groups: roles of annotation groups, beyond the known ones.
        device: where the model runs: auto, cpu or cuda; several processes may share a GPU.
        threads: threads per process, which read for the model and, on a CPU, compute.
        upsample: draw from slides coarser than the patches, too.
        allows_empty: an annotation file without tumour is not an error.
    """

    mpp: float
    size_px: int
    tumour: int
    normal: int
    seed: int
    per_class: int | None = None
    strategy: Literal["lesion", "uniform", "border"] = "lesion"
    rule: LabelRule = field(default_factory=LabelRule)
    hard: int = 0
    hard_choice: HardChoice = HARD_CHOICE
    model: Path | None = None
    heatmaps: Path | None = None
    split: Split | None = None
    slide_mpp: Mpp | None = None
    groups: Mapping[str, Role] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    upsample: bool = False
    allows_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSource:
    """A slide that patches are drawn from.

    Attributes:
        slide: the slide file.
        annotation_file: its annotations; None for a slide labelled negative.
        tumour, normal, hard: number of patches to draw.
        centre: number of its medical centre; None if unknown.
        allows_empty: its annotation file may be without tumour.
    """

    slide: SlideFile
    annotation_file: Path | None
    tumour: int
    normal: int
    hard: int
    centre: int | None
    allows_empty: bool = False


def find_sources(
    slides: Sequence[SlideFile], annotations: Path, reference: StageTable, recipe: PatchRecipe
) -> tuple[list[PatchSource], dict[str, str]]:
    """Find the slides that patches may be drawn from.

    A slide with an annotation file of its name gives both classes; one without, or with a file without tumour, gives
    normal patches only if the reference labels it negative: missing annotations never mean "no tumour". Slides known to
    be wrong or only partly annotated give none. Names are compared case-insensitively, as CAMELYON uses both cases.

    Returns:
        The sources, by name, and the slides left out, with the reasons.

    Raises:
        CohortError: there is no such directory, a slide has two annotation files or two labels, no slide is usable, or
            tumour is wanted and none is outlined.
    """
    files, left_out, negative = annotation_files(annotations), {}, _negative(reference)
    usable: list[tuple[SlideFile, Path | None]] = []
    for slide in sorted(slides, key=lambda one: one.name):
        name = slide_key(slide.name)
        drawn = files.get(name)
        if name in EXCLUDED:
            left_out[slide.name] = EXCLUDED[name]
        elif is_partly_annotated(name):
            left_out[slide.name] = "not all of its tumour is annotated"
        elif drawn is None and name not in negative:
            left_out[slide.name] = "it has no annotations and is not labelled negative"
        else:
            usable.append((slide, drawn))
    wants_tumour = not recipe.hard and (recipe.per_class is not None or recipe.tumour > 0)
    if wants_tumour and usable and all(file is None for _, file in usable):
        raise CohortError(
            annotations,
            "has annotations for none of the slides, so that no patch would show tumour",
            mend="check --annotations, or give --tumour 0 for normal patches alone",
        )
    if not usable:
        raise CohortError(
            annotations,
            "has annotations for none of the slides, and none is labelled negative",
            mend="check --annotations and --reference",
        )
    centres = {slide.name: _centre(slide) for slide, _ in usable}
    with_tumour = [slide.name for slide, drawn in usable if drawn is not None]
    everywhere = [slide.name for slide, _ in usable]
    if recipe.per_class is None:
        tumour, normal = dict.fromkeys(with_tumour, recipe.tumour), dict.fromkeys(everywhere, recipe.normal)
    else:
        tumour = shared_out(recipe.per_class, {name: centres[name] for name in with_tumour})
        normal = shared_out(recipe.per_class, {name: centres[name] for name in everywhere})
    sources = [
        PatchSource(
            slide=slide,
            annotation_file=drawn,
            tumour=tumour.get(slide.name, 0),
            normal=normal[slide.name],
            hard=recipe.hard,
            centre=centres[slide.name],
            allows_empty=recipe.allows_empty or slide_key(slide.name) in negative,
        )
        for slide, drawn in usable
    ]
    return sources, left_out


def shared_out(total: int, group_of: Mapping[str, int | None]) -> dict[str, int]:
    """Share a number equally among groups, and each group's part equally among its members.

    If a part does not divide evenly, the first ones in order of name get one more.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(group_of):
        groups.setdefault(str(group_of[name]), []).append(name)
    shares: dict[str, int] = {}
    for members, part in zip(groups.values(), _parts(total, len(groups)), strict=True):
        shares.update(zip(members, _parts(part, len(members)), strict=True))
    return shares


def draw(work: tuple[PatchSource, PatchRecipe, Path], _: TileNews) -> PatchTable:
    """Draw the rows of one slide, or return those of an earlier call if nothing has changed.

    Args:
        work: the slide, the recipe, and the directory that keeps the rows between calls.

    Raises:
        PathologyError: the slide or its annotations are faulty.
    """
    source, recipe, folder = work
    kept = folder / f"{source.slide.name}.parquet"
    with Slide.open(source.slide.path, mpp=recipe.slide_mpp) as slide:
        if not recipe.upsample:
            slide.check_detail(recipe.mpp)
        digest = _digest(source, recipe, slide)
        earlier = _kept(kept, digest)
        if earlier is not None:
            return earlier
        drawn = _drawn(source, slide, recipe.groups)
        whole = find_tissue(slide)
        downsample = slide.frame_at(recipe.mpp).downsample
        tissue = shown(slide, whole, downsample=downsample)
        coverage = measure_coverage(slide, whole, tissue, downsample=downsample)
        if not coverage.looked_mm2:
            raise SlideError(slide.path, f"gives no patches: {coverage}", mend="copy the slide again from its source")
        unseen = [] if coverage.is_whole(COVERAGE_TOLERANCE) else [f"gives patches of what is seen only: {coverage}"]
        patches = draw_patches(
            slide,
            None if drawn is None else drawn.annotations,
            tissue,
            mpp=recipe.mpp,
            size_px=recipe.size_px,
            count_tumour=source.tumour if drawn is not None and has_role(drawn.annotations, Role.TUMOUR) else 0,
            count_normal=source.normal,
            seed=recipe.seed,
            negative=source.annotation_file is None,
            shares=_STRATEGIES[recipe.strategy],
            mistakes=_mistakes(slide, tissue, recipe) if source.hard else None,
            count_hard=source.hard,
            hard_choice=recipe.hard_choice,
            rule=recipe.rule,
        )
        lost = Mask(frame=whole.frame, array=whole.array & ~tissue.array)
        table = table_of(
            [patch for patch in patches if not lost.array.any() or _seen_share(lost, patch.frame) > _HALF],
            slide=source.slide.name,
            file=_file(source.slide.path),
            level=slide.level_for(slide.frame_at(recipe.mpp).downsample).index,
            mpp=recipe.mpp,
            rule=recipe.rule,
            patient=source.slide.patient,
            centre=source.centre,
            about={
                "digest": digest,
                "warnings": [*unseen, *([] if drawn is None else drawn.warnings)],
                "on_tissue": None if drawn is None else share_on(drawn.annotations, whole),
            },
            groups=recipe.groups,
        )
    write_patch_table(kept, table)
    return table


def _seen_share(lost: Mask, patch: Frame) -> float:
    """The share of a patch that is not lost."""
    height, width = patch.shape
    rows, columns = lost.frame.fractions(*patch.positions([0, height], [0, width]))
    top, left = max(0, math.floor(rows[0])), max(0, math.floor(columns[0]))
    bottom, right = max(0, math.ceil(rows[1])), max(0, math.ceil(columns[1]))
    part = lost.array[top:bottom, left:right]
    return 1.0 - float(part.mean()) if part.size else 1.0


def described(recipe: PatchRecipe) -> dict[str, Any]:
    """Return the recipe for JSON, without what changes no patch: another device may resume the work."""
    values = {name: value for name, value in asdict(recipe).items() if name not in _NO_INFLUENCE}
    values |= {"rule": str(recipe.rule), "model": recipe.model and str(recipe.model)}
    values |= {"groups": {name: role.value for name, role in recipe.groups.items()}}
    return values | {"heatmaps": recipe.heatmaps and str(recipe.heatmaps)}


def _kept(path: Path, digest: str) -> PatchTable | None:
    if not path.is_file():
        return None
    try:
        table = read_patch_table(path)
    except PatchStoreError:
        return None
    return table if table.about.get("digest") == digest else None


def _digest(source: PatchSource, recipe: PatchRecipe, slide: Slide) -> str:
    """Digest everything that decides which patches are drawn."""
    wanted = {"tumour": source.tumour, "normal": source.normal, "hard": source.hard, "centre": source.centre}
    files = [path for path in (source.annotation_file, recipe.model if source.hard else None) if path is not None]
    if source.hard and recipe.heatmaps is not None:
        files += sorted(file for file in (recipe.heatmaps / f"{slide.name}.zarr").glob("DONE.json"))
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    drawing = described(recipe) | {"split": None, "per_class": None, "tumour": None, "normal": None, "hard": None}
    origin = {"file": _file(source.slide.path), "patient": source.slide.patient, "slide": slide.fingerprint()}
    return digest_of({"recipe": drawing, "wanted": wanted, "contents": contents, **origin})


def annotation_files(folder: Path) -> dict[str, Path]:
    """Find annotation files, by slide_key.

    Raises:
        CohortError: there is no such folder, or two files are of one slide.
    """
    if not folder.is_dir():
        raise CohortError(folder, "there is no such directory of annotations", mend="check --annotations")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not (path.name.startswith(".") or path.is_dir()):
            other = found.setdefault(slide_key(path.name), path)
            if other != path:
                raise CohortError(
                    folder, f"{other.name} and {path.name} annotate the same slide", mend="remove one of them"
                )
    return found


def _negative(reference: StageTable) -> set[str]:
    """Return the slides labelled negative, by slide_key."""
    found: dict[str, SlideLabel] = {}
    for name, label in reference.labels.items():
        if found.setdefault(slide_key(name), label) is not label:
            raise CohortError(None, f"the slide {name} has two labels in the table", mend="keep one of its rows")
    return {name for name, label in found.items() if label is SlideLabel.NEGATIVE}


def _drawn(source: PatchSource, slide: Slide, groups: Mapping[str, Role]) -> AnnotationSet | None:
    """Read the annotations of a slide.

    Raises:
        AnnotationError: the file is faulty, has no tumour and is not allowed to, or does not fit the slide: its patches
            would show other tissue.
    """
    file = source.annotation_file
    if file is None:
        return None
    drawn = read_drawn(source, file, groups)
    check_within(drawn.annotations, slide.levels[0].width, slide.levels[0].height, path=file)
    return drawn


def read_drawn(source: PatchSource, file: Path, groups: Mapping[str, Role]) -> AnnotationSet:
    """Read the annotation file of a slide.

    Raises:
        AnnotationError: it is faulty, or has no tumour and is not allowed to.
    """
    drawn = read_annotation_set(file, groups)
    if not source.allows_empty:
        require_role(drawn.annotations, Role.TUMOUR, file, unless=_UNLESS)
    return drawn


def _parts(total: int, count: int) -> Iterable[int]:
    return (total // count + (at < total % count) for at in range(count))


def _centre(slide: SlideFile) -> int | None:
    return centre_of_patient(slide.patient) if slide.patient else None


def _file(path: Path) -> str:
    return str(path) if is_url(str(path)) else str(path.resolve())


def _mistakes(slide: Slide, tissue: Mask, recipe: PatchRecipe) -> Heatmap | None:
    if recipe.heatmaps is not None:
        path = recipe.heatmaps / f"{slide.name}.zarr"
        heatmap = read_heatmap(path)
        _check_belongs(path, heatmap.frame, slide)
        return heatmap
    if recipe.model is None:
        return None
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    return infer(slide, load_checkpoint(recipe.model), tissue=tissue, device=recipe.device, workers=recipe.threads)


def _check_belongs(path: Path, cells: Frame, slide: Slide) -> None:
    """Refuse a heatmap of another slide: patches would be at wrong positions.

    Raises:
        CohortError: it was made from another file, or does not cover the slide as its own heatmap would.
    """
    made_from = (provenance_of(path) or {}).get("slide")
    if made_from is not None and made_from != slide.fingerprint():
        raise CohortError(path, f"was not made from {slide.path}", mend="make it again, or give --model")
    width, height = slide.levels[0].width, slide.levels[0].height
    # A heatmap starts at the slide's corner, and its last cells overhang; sizes differ by a few px between levels.
    off = max(abs(cells.x), abs(cells.y), abs(cells.right - width), abs(cells.bottom - height))
    if off > _CELLS_OFF * cells.downsample:
        reason = f"covers {cells.right:g} x {cells.bottom:g} px, not the {width} x {height} px of {slide.path}"
        raise CohortError(path, reason, mend="give the heatmap of this slide, or --model")
