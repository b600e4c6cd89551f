from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from numpy.typing import NDArray

from annotations.measures import MERGE_GAP_UM
from staging.lesions.labels import SlideLabel
from staging.phantom import Difficulty, PatientPlan, generate_cohort, plan_cohort, render_slide
from staging.phantom.atlas import atlases
from staging.phantom.cohort import lay_out
from staging.phantom.growth import fill_polygon
from staging.phantom.plan import _stage_counts
from staging.phantom.section import TILE_PX
from staging.phantom.stain import CENTRES
from staging.phantom.texture import TUMOURS, Tissue
from staging.stages.pn import PatientStage
from wsi.stain import separate

pytestmark = pytest.mark.slow  # its fixtures take seconds

SMALL = (4600.0, 3600.0)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort")
    generate_cohort(out, patients=5, centres=(0, 3), seed=11, mpp=8.0, size_um=SMALL)
    return out


def test_bytes_do_not_depend_on_the_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    generate_cohort(tmp_path, patients=5, centres=(0, 3), seed=11, mpp=8.0, size_um=SMALL, workers=2)
    assert digests(tmp_path) == digests(cohort)


def test_another_seed_gives_other_slides(cohort: Path) -> None:
    first = {slide.name: slide for patient in plan(seed=11) for slide in patient.slides}
    other = {slide.name: slide for patient in plan(seed=12) for slide in patient.slides}
    assert first.keys() == other.keys()
    assert any(first[name].lesions != other[name].lesions for name in first)
    assert {path.stem for path in (cohort / "images").iterdir()} == set(first)


def plan(*, seed: int, patients: int = 5) -> tuple[PatientPlan, ...]:
    return plan_cohort(patients=patients, centres=(0, 3), seed=seed, mpp=8.0, size_um=SMALL)


@pytest.mark.parametrize("patients", [5, 6, 10, 23, 100, 200])
def test_stages_keep_the_proportions_of_camelyon17(patients: int) -> None:
    counts = _stage_counts(patients)
    assert sum(counts.values()) == patients
    assert min(counts.values()) >= 1
    if patients >= 10:
        real = {"pN0": 25, "pN0(i+)": 11, "pN1mi": 21, "pN1": 30, "pN2": 13}
        assert all(abs(count - patients * real[stage.value] / 100) < 1 for stage, count in counts.items())


def test_a_hundred_patients_have_the_slide_labels_of_camelyon17() -> None:
    planned = plan_cohort(patients=100, centres=(0, 1, 2, 3, 4), seed=5, mpp=4.0)
    labels = Counter(slide.label.value for patient in planned for slide in patient.slides)
    assert labels == {"negative": 323, "itc": 35, "micro": 57, "macro": 85}
    assert [patient.name for patient in planned] == [f"patient_{number:03d}" for number in range(100)]
    assert all(patient.centre == int(patient.name[-3:]) // 20 for patient in planned)


def test_patients_beyond_twenty_of_a_centre_continue_at_a_hundred() -> None:
    planned = plan_cohort(patients=22, centres=(1,), seed=5, mpp=4.0)
    assert [patient.name for patient in planned][-3:] == ["patient_039", "patient_120", "patient_121"]
    later = plan_cohort(patients=2, centres=(1,), seed=5, mpp=4.0, first_patient=3)
    assert [patient.name for patient in later] == ["patient_023", "patient_024"]


# the stage by the numbers of macro and micro nodes and whether any node has ITC: written out, not computed
STAGES = {
    **{(0, micro): PatientStage.PN1MI for micro in range(1, 6)},
    **{(macro, micro): PatientStage.PN1 for macro in range(1, 4) for micro in range(4 - macro)},
    **{(macro, micro): PatientStage.PN2 for macro in range(1, 6) for micro in range(max(0, 4 - macro), 6 - macro)},
}


def test_stages_follow_from_the_labels_of_five_nodes() -> None:
    for patient in plan_cohort(patients=100, centres=(0, 1, 2, 3, 4), seed=9, mpp=4.0):
        labels = [slide.label for slide in patient.slides]
        assert len(labels) == 5
        positive = labels.count(SlideLabel.MACRO), labels.count(SlideLabel.MICRO)
        without = PatientStage.PN0_I_PLUS if SlideLabel.ITC in labels else PatientStage.PN0
        assert patient.stage is STAGES.get(positive, without)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patients": 0},
        {"centres": ()},
        {"centres": (5,)},
        {"centres": (1, 1)},
        {"patients": 41, "centres": (0,)},
        {"mpp": 0.0},
        {"size_um": (1000.0, 1000.0)},
        {"first_patient": -1},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    arguments = {"patients": 1, "centres": (0,), "seed": 0, "mpp": 4.0, **wrong}
    with pytest.raises(ValueError):  # noqa: PT011  (the messages are for people)
        plan_cohort(**arguments)  # type: ignore[arg-type]


def polygons(path: Path) -> list[tuple[str, np.ndarray]]:
    found = []
    for annotation in ET.parse(path).getroot().iter("Annotation"):  # noqa: S314  (written a moment ago)
        points = sorted(annotation.iter("Coordinate"), key=lambda point: int(point.attrib["Order"]))
        vertices = np.array([(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points])
        found.append((annotation.attrib["PartOfGroup"], vertices))
    return found


def test_truth_diameters_equal_brute_force_over_the_written_contours(cohort: Path) -> None:
    truth = json.loads((cohort / "truth.json").read_text())
    table = dict(line.split(",") for line in (cohort / "stage_labels.csv").read_text().splitlines()[1:])
    checked = 0
    for slide in truth["slides"]:
        path = cohort / "annotations" / f"{slide['name']}.xml"
        assert path.exists() == bool(slide["lesions"])
        expected = "negative"
        if path.exists():
            tumours = [points for group, points in polygons(path) if group in {"metastases", "Tumor"}]
            sizes = sorted(brute_force_lesions(tumours, slide["mpp"]), reverse=True)
            assert sizes == pytest.approx([lesion["longest_diameter_um"] for lesion in slide["lesions"]], abs=2e-6)
            largest = sizes[0]
            expected = "itc" if largest <= 200 else "micro" if largest <= 2000 else "macro"
            checked += len(sizes)
        assert slide["label"] == table[f"{slide['name']}.tif"] == expected
    assert checked >= 5
    assert set(truth["stages"].values()) == {"pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"}
    assert all(table[f"{patient}.zip"] == stage for patient, stage in truth["stages"].items())


def brute_force_lesions(tumours: list[np.ndarray], mpp: float) -> list[float]:
    groups: list[list[np.ndarray]] = []
    for outline in tumours:
        ring = shapely.LinearRing(outline)
        near = [
            group for group in groups if any(ring.distance(shapely.LinearRing(o)) * mpp <= MERGE_GAP_UM for o in group)
        ]
        groups = [group for group in groups if not any(group is one for one in near)]
        groups.append([outline, *(o for group in near for o in group)])
    sizes = []
    for group in groups:
        points = np.concatenate(group)
        sizes.append(float(max(np.hypot(*(points - point).T).max() for point in points)) * mpp)
    return sizes


def test_openslide_opens_every_slide_and_only_philips_has_missing_tiles(cohort: Path) -> None:
    truth = json.loads((cohort / "truth.json").read_text())
    missing = Counter[int]()
    for slide in truth["slides"]:
        path = cohort / "images" / f"{slide['name']}.tif"
        with openslide.OpenSlide(path) as opened:
            assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(slide["mpp"], rel=1e-4)
            assert opened.dimensions[0] >= slide["width"]
            assert opened.read_region((0, 0), 0, (64, 64)).size == (64, 64)
        with tifffile.TiffFile(path) as tiff:
            missing[slide["centre"]] += tiff.pages[0].databytecounts.count(0)
    assert missing[0] == 0


def test_philips_glass_far_from_tissue_is_not_stored(tmp_path: Path) -> None:
    [patient] = plan_cohort(patients=1, centres=(3,), seed=2, mpp=2.0)
    slide = next(slide for slide in patient.slides if not slide.pen)
    render_slide(slide, tmp_path)
    with tifffile.TiffFile(tmp_path / "images" / f"{slide.name}.tif") as tiff:
        counts = tiff.pages[0].databytecounts
    assert 0 < counts.count(0) < len(counts)


@pytest.mark.parametrize("mpp", [0.5, 4.0])
def test_tumour_is_rendered_exactly_inside_the_contours(mpp: float) -> None:
    planned = plan_cohort(patients=10, centres=(0,), seed=3, mpp=mpp, size_um=SMALL)
    slide = next(
        slide for patient in planned for slide in patient.slides if any(lesion.island for lesion in slide.lesions)
    )
    section = lay_out(slide).section
    assert section.islands
    tumour = shapely.union_all([shapely.make_valid(shapely.Polygon(outline)) for outline in section.tumours])
    island = shapely.union_all([shapely.Polygon(outline) for outline in section.islands])
    x, y = section.islands[0].mean(axis=0)
    row, column = int(y) // TILE_PX, int(x) // TILE_PX
    classes = section.classes(row, column)
    ys, xs = np.mgrid[0:TILE_PX, 0:TILE_PX]
    points = shapely.points(column * TILE_PX + xs + 0.5, row * TILE_PX + ys + 0.5)
    shapely.prepare(tumour)
    shapely.prepare(island)
    expected = shapely.contains(tumour, points) & ~shapely.contains(island, points)
    drawn = np.isin(classes, [int(code) for code in TUMOURS])
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(drawn, expected)


def test_lesions_lie_in_tissue_and_apart_from_each_other() -> None:
    planned = plan_cohort(patients=10, centres=(0,), seed=4, mpp=4.0)
    slides = [slide for patient in planned for slide in patient.slides if len(slide.lesions) > 1][:3]
    assert slides
    for slide in slides:
        layout = lay_out(slide)
        tissue = layout.section.anatomy.tissue
        for outline in layout.section.tumours:
            cells = np.floor(outline * slide.mpp / 16).astype(int) + 2
            codes = tissue[cells[:, 1], cells[:, 0]]
            assert not np.isin(codes, [Tissue.GLASS, Tissue.FAT]).any()
        shapes = [shapely.MultiPoint(np.concatenate(lesion.deposits)) for lesion in layout.lesions]
        gaps = [a.distance(b) * slide.mpp for i, a in enumerate(shapes) for b in shapes[:i]]
        assert min(gaps, default=1e9) > 150


def test_deposits_of_a_lesion_are_nearer_than_the_merge_distance() -> None:
    planned = plan_cohort(patients=20, centres=(0,), seed=6, mpp=4.0)
    slides = [slide for patient in planned for slide in patient.slides if any(x.deposits > 1 for x in slide.lesions)]
    clusters = [lesion for slide in slides[:4] for lesion in lay_out(slide).lesions if len(lesion.deposits) > 1]
    assert clusters
    for lesion in clusters:
        first, *others = (shapely.LinearRing(outline) for outline in lesion.deposits)
        assert all(0 < first.distance(other) * slides[0].mpp < MERGE_GAP_UM for other in others)


def test_tiles_fit_together_without_seams() -> None:
    [patient] = plan_cohort(patients=1, centres=(0,), seed=1, mpp=4.0)
    section = lay_out(patient.slides[0]).section
    # a px's tissue follows from its own position: neighbours across a tile's edge differ no more than within a tile
    left, right = section.tile(1, 0), section.tile(1, 1)
    assert left is not None
    assert right is not None
    across = np.abs(left[:, -1].astype(int) - right[:, 0]).mean()
    within = np.abs(np.diff(right.astype(int), axis=1)).mean(axis=(0, 2))[:64]
    assert across <= within.max() * 1.5 + 1


@pytest.mark.parametrize("mpp", [0.5, 1.0, 4.0])
def test_the_blocks_in_which_a_tile_is_computed_do_not_show(mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    [patient] = plan_cohort(patients=1, centres=(0,), seed=1, mpp=mpp, size_um=SMALL)
    section = lay_out(patient.slides[0]).section
    row, column = (size // 2 for size in section.grid)
    in_blocks = section.classes(row, column)
    monkeypatch.setattr("staging.phantom.section._block_side", lambda _: TILE_PX)
    at_once = section.classes(row, column)
    assert len(np.unique(at_once)) > 1
    assert (in_blocks != at_once).mean() < 1e-4


def test_a_polygon_is_filled_by_the_non_zero_rule() -> None:
    star = np.array([(5 + 4.3 * np.cos(k * 4 * np.pi / 5), 5.2 + 4.3 * np.sin(k * 4 * np.pi / 5)) for k in range(5)])
    filled = fill_polygon(star[:, 0], star[:, 1], (10, 10))
    assert filled[5, 5]
    outline = shapely.Polygon(star).buffer(0)
    whole = shapely.union_all([shapely.make_valid(shapely.Polygon(star)), outline.convex_hull.intersection(outline)])
    ys, xs = np.mgrid[0:10, 0:10]
    arms = shapely.contains_xy(whole, xs + 0.5, ys + 0.5)
    assert filled[arms].all()
    assert not filled[~shapely.contains_xy(outline.convex_hull, xs + 0.5, ys + 0.5)].any()


@pytest.mark.parametrize(("difficulty", "low", "high"), [("real", -0.5, 0.5), ("easy", 0.5, 3.0)])
def test_tumour_stains_darker_only_where_it_is_easy(difficulty: Difficulty, low: float, high: float) -> None:
    """Mean eosin of 16 um squares of tumour, in standard deviations of that of cellular normal tissue."""
    textures = atlases(CENTRES[0], 1.0, 16, difficulty)

    def squares(*tissues: Tissue) -> NDArray[np.float32]:
        side = textures[0].period // 16
        parts = [separate(textures[tissue].window(0, 0, side * 16, side * 16))[1] for tissue in tissues]
        return np.concatenate([part.reshape(side, 16, side, 16).mean(axis=(1, 3)).ravel() for part in parts])

    normal = squares(*(Tissue.PLASMA, Tissue.PARACORTEX, Tissue.GERMINAL, Tissue.HISTIOCYTES, Tissue.COLLAGEN))
    tumour = squares(*TUMOURS)
    assert low < (tumour.mean() - normal.mean()) / normal.std() < high
