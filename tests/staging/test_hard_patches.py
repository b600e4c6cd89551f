"""The worst false positives: in order of their probability, apart from each other, and never on tumour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from annotations.annotation import Annotation, Role
from annotations.painting import rasterize
from annotations.patches.batch import HARD, DrawnPatch, draw_patches
from annotations.patches.labels import IGNORE, LabelRule, PatchLabels
from annotations.patches.table import PatchTable, read_patch_table
from staging.cli import app
from staging.cohorts.camelyon import StageTable, find_slides
from staging.errors import ConfigurationError
from staging.lesions.labels import SlideLabel
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe, described
from wsi.cnn.checkpoint import Checkpoint, save_checkpoint
from wsi.errors import PathologyError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

pytestmark = pytest.mark.slow  # its fixtures take seconds

MPP = 0.5
WIDTH, HEIGHT, TILE = 1024, 768, 256
CELL = 32
NAMES = ("patient_001_node_0", "patient_001_node_1")


def box(role: Role, left: float, top: float, width: float, height: float) -> Annotation:
    right, bottom = left + width, top + height
    vertices = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
    return Annotation(name="a", group="g", role=role, kind="Polygon", vertices=vertices)


def heatmap_of(probability: NDArray[np.float32], cell: float = CELL, x: float = 0, y: float = 0) -> Heatmap:
    frame = Frame(x=x, y=y, downsample=cell, shape=probability.shape, mpp=MPP)
    return Heatmap(frame=frame, array=probability, tissue=np.ones(probability.shape, bool))


def blank() -> NDArray[np.float32]:
    return np.zeros((HEIGHT // CELL, WIDTH // CELL), np.float32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of tissue all over but for a rim of glass."""
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        image = np.clip(rng.normal((170, 90, 150), 20, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        image[:64] = image[-64:] = 244
        tiles = [
            image[top : top + TILE, left : left + TILE]
            for top in range(0, HEIGHT, TILE)
            for left in range(0, WIDTH, TILE)
        ]
        write_pyramid(folder / f"{name}.tif", width=WIDTH, height=HEIGHT, mpp=MPP, tiles=tiles, tile_size=TILE)
    return folder


@pytest.fixture(scope="module")
def slide(images: Path) -> Slide:
    return Slide.open(images / f"{NAMES[0]}.tif")


def hard_places(
    slide: Slide,
    annotations: Sequence[Annotation],
    mistakes: Heatmap,
    *,
    count: int,
    size_px: int = 64,
    mpp: float = 1.0,
    **options: Any,
) -> list[DrawnPatch]:
    cells = Frame(x=0, y=0, downsample=CELL, shape=(HEIGHT // CELL, WIDTH // CELL), mpp=MPP)
    positions = draw_patches(
        slide,
        annotations,
        Mask(frame=cells, array=np.ones(cells.shape, bool)),
        mpp=mpp,
        size_px=size_px,
        count_tumour=0,
        count_normal=0,
        seed=options.pop("seed", 0),
        negative=not annotations,
        mistakes=mistakes,
        count_hard=count,
        **{"hard_choice": "worst", **options},
    )
    return list(positions)


def corners(positions: Sequence[DrawnPatch]) -> list[tuple[int, int]]:
    """(row, column) of each patch on the slide's grid at the patches' resolution."""
    return [
        (round(where.frame.y / where.frame.downsample), round(where.frame.x / where.frame.downsample))
        for where in positions
    ]


# --- the oracle -----------------------------------------------------------------------------------------------------


def worst_by_trying_all(
    annotations: Sequence[Annotation],
    mistakes: Heatmap,
    *,
    count: int,
    size_px: int,
    downsample: float,
    rule: LabelRule,
) -> list[tuple[int, int]]:
    """Every cell from 0.5 on in turn, each with its own look at the annotations."""
    grid = round(HEIGHT / downsample), round(WIDTH / downsample)
    rows, columns = mistakes.array.shape
    cells = [(row, column) for row in range(rows) for column in range(columns) if mistakes.array[row, column] >= 0.5]
    ignored = [replace(one, role=Role.TUMOUR) for one in annotations if one.role is Role.IGNORE]
    taken: list[tuple[int, int]] = []
    for row, column in sorted(cells, key=lambda cell: (-float(mistakes.array[cell]), *cell)):
        middle = (
            (mistakes.frame.y + (row + 0.5) * mistakes.frame.downsample) / downsample,
            (mistakes.frame.x + (column + 0.5) * mistakes.frame.downsample) / downsample,
        )
        top, left = (
            min(max(round(at - size_px / 2), 0), side - size_px) for at, side in zip(middle, grid, strict=True)
        )
        frame = Frame(x=left * downsample, y=top * downsample, downsample=downsample, shape=(size_px, size_px), mpp=MPP)
        if len(taken) == count:
            break
        if any(max(abs(top - other[0]), abs(left - other[1])) < size_px / 2 for other in taken):
            continue
        unknown = rasterize(ignored, frame).array
        if unknown.mean() > 0.5 or (rasterize(annotations, frame).array & ~unknown).any():
            continue
        if rule.kind == "centre":
            x, y = (left + size_px / 2) * downsample, (top + size_px / 2) * downsample
            point = Frame(x=x - 0.5, y=y - 0.5, downsample=1.0, shape=(1, 1), mpp=MPP)
            if rasterize([*annotations, *ignored], point).array.any():
                continue
        taken.append((top, left))
    return taken


boxes = st.builds(
    box,
    st.sampled_from([Role.TUMOUR, Role.IGNORE]),
    st.integers(-50, WIDTH - 60),
    st.integers(-50, HEIGHT - 60),
    st.integers(60, 500),
    st.integers(60, 500),
)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 5, 1000]),
    share=st.floats(0, 1),
    cell=st.sampled_from([16, 27.3, 40, 100]),
    offset=st.sampled_from([(0.0, 0.0), (-21.0, 33.5)]),
    size_px=st.sampled_from([32, 47, 64, 121]),
    mpp=st.sampled_from([0.5, 1.0]),
    drawn=st.lists(boxes, max_size=4),
    count=st.integers(1, 40),
    rule=st.sampled_from(["any", "centre", "area:0.3"]),
)
def test_the_worst_are_those_of_trying_every_cell(
    slide: Slide,
    *,
    seed: int,
    levels: int,
    share: float,
    cell: float,
    offset: tuple[float, float],
    size_px: int,
    mpp: float,
    drawn: list[Annotation],
    count: int,
    rule: str,
) -> None:
    rng = np.random.default_rng(seed)
    shape = int(HEIGHT // cell) + 1, int(WIDTH // cell) + 1
    # few levels make many ties; what is below 0.5 must never be taken
    probability = (rng.integers(0, levels + 1, shape) / levels * (rng.random(shape) < share)).astype(np.float32)
    mistakes = heatmap_of(probability, cell, *offset)
    parsed = LabelRule.parse(rule)
    positions = hard_places(slide, drawn, mistakes, count=count, size_px=size_px, mpp=mpp, rule=parsed)
    expected = worst_by_trying_all(drawn, mistakes, count=count, size_px=size_px, downsample=mpp / MPP, rule=parsed)
    assert corners(positions) == expected
    labels = PatchLabels.of(drawn)
    for where in positions:
        assert (where.kind, where.label, where.lesion) == (HARD, "normal", None)
        np.testing.assert_array_equal(where.target, labels.target(where.frame))
        assert not (where.target == 1).any()
        assert (where.target == IGNORE).mean() <= 0.5


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size_px=st.integers(40, 300), cell=st.integers(20, 128))
def test_hard_patches_keep_their_distance(slide: Slide, seed: int, size_px: int, cell: int) -> None:
    """The law: any two begin half a side apart; no room is left where the cells that remain would still fit."""
    rng = np.random.default_rng(seed)
    shape = -(-HEIGHT // cell), -(-WIDTH // cell)
    mistakes = heatmap_of(rng.uniform(0.5, 1, shape).astype(np.float32), cell)
    taken = np.array(corners(hard_places(slide, [], mistakes, count=10**6, size_px=size_px)))
    apart = np.abs(taken[:, None] - taken[None]).max(axis=2)
    assert (apart[~np.eye(len(taken), dtype=bool)] >= size_px / 2).all()
    grid = HEIGHT // 2, WIDTH // 2
    rows, columns = (
        np.clip(np.rint((np.arange(cells) + 0.5) * cell / 2 - size_px / 2), 0, side - size_px)
        for cells, side in zip(shape, grid, strict=True)
    )
    every = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    assert (np.abs(every - taken).max(axis=2).min(axis=1) < size_px / 2).all()


# --- what it is for -------------------------------------------------------------------------------------------------


def test_one_blob_does_not_take_all_places(slide: Slide) -> None:
    """10 x 10 cells, 16 px apart, have room for 5 x 5 patches that begin 32 px apart."""
    probability = blank()
    probability[4:14, 3:13] = 0.99
    probability[20, 28] = 0.6
    found = corners(hard_places(slide, [], heatmap_of(probability), count=100))
    alone = (20 * 16 + 8 - 32, 28 * 16 + 8 - 32)
    assert len(found) == 26
    assert found[25] == alone
    probability[20, 28] = 1.0
    assert corners(hard_places(slide, [], heatmap_of(probability), count=1)) == [alone]


def test_cells_on_tumour_are_passed_over(slide: Slide) -> None:
    """A good model is surest on the metastasis; what counts are the mistakes beside it."""
    probability = np.full((HEIGHT, WIDTH), 0.0, np.float32)
    probability[200:600, 200:600] = 1.0
    probability[300:310, 900:910] = 0.7
    mistakes = heatmap_of(probability, 1)
    tumour = box(Role.TUMOUR, 200, 200, 400, 400)
    positions = hard_places(slide, [tumour], mistakes, count=5)
    assert corners(positions) == [(round(300.5 / 2 - 32), round(900.5 / 2 - 32))]


def test_metastases_are_not_looked_at_cell_by_cell(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Frame] = []
    whole = PatchLabels.target

    def counted(labels: PatchLabels, frame: Frame) -> NDArray[np.uint8]:
        looked.append(frame)
        return whole(labels, frame)

    monkeypatch.setattr(PatchLabels, "target", counted)
    mistakes = heatmap_of(np.ones((HEIGHT, WIDTH), np.float32), 1)
    assert not hard_places(slide, [box(Role.TUMOUR, 0, 0, WIDTH, HEIGHT)], mistakes, count=5)
    assert len(looked) <= 4 * (WIDTH // 128) * (HEIGHT // 128)


def test_fewer_than_asked_for_where_a_model_errs_less(slide: Slide) -> None:
    probability = blank()
    probability[5, 5], probability[15, 15] = 0.5, np.nextafter(np.float32(0.5), np.float32(0))
    assert corners(hard_places(slide, [], heatmap_of(probability), count=9)) == [(5 * 16 + 8 - 32, 5 * 16 + 8 - 32)]
    assert not hard_places(slide, [], heatmap_of(blank()), count=9)
    assert not hard_places(slide, [], heatmap_of(probability), count=0)


def test_a_slide_smaller_than_a_patch_gives_one(slide: Slide) -> None:
    positions = hard_places(slide, [], heatmap_of(np.ones_like(blank())), count=9, size_px=600)
    assert corners(positions) == [((384 - 600) // 2, (512 - 600) // 2)]


def test_the_heatmap_is_left_as_it_was(slide: Slide) -> None:
    probability = np.random.default_rng(0).random((HEIGHT // CELL, WIDTH // CELL)).astype(np.float32)
    mistakes = heatmap_of(probability.copy())
    hard_places(slide, [box(Role.TUMOUR, 100, 100, 300, 300)], mistakes, count=20)
    np.testing.assert_array_equal(mistakes.array, probability)


# --- of a cohort ----------------------------------------------------------------------------------------------------


class Silent:
    def slide(self, name: str, outcome: str = "") -> None:
        """Nobody listens."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes with the slides: an empty folder of annotations, labels and heatmaps."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "annotations").mkdir()
    (folder / "stage_labels.csv").write_text("patient,stage\n" + "".join(f"{name}.tif,negative\n" for name in NAMES))
    for seed, name in enumerate(NAMES):
        write_heatmap(folder / "heatmaps" / f"{name}.zarr", heatmap_of(mixed(seed)), {})
    return folder


def mixed(seed: int) -> NDArray[np.float32]:
    """Any probability, but none where a patch of 64 px at 1 um/px would be shifted to stay on the slide."""
    probability = blank()
    inner = probability[2:-2, 2:-2]
    inner[...] = np.random.default_rng(seed).random(inner.shape)
    return probability


def sampled(images: Path, cohort: Path, output: Path, *, workers: int = 1, **changes: Any) -> dict[str, Any]:
    recipe = PatchRecipe(
        mpp=1.0, size_px=64, tumour=0, normal=2, seed=3, hard=8, hard_choice="worst", heatmaps=cohort / "heatmaps"
    )
    return sample_cohort(
        find_slides([images]),
        cohort / "annotations",
        StageTable(labels=dict.fromkeys(NAMES, SlideLabel.NEGATIVE)),
        output,
        recipe=replace(recipe, **changes),
        workers=workers,
        news=Silent(),
    )


def probabilities(table: PatchTable, slide: str) -> list[float]:
    """What the slide's heatmap says at the centres of its hard patches."""
    expected = mixed(NAMES.index(slide))
    chosen = table.rows((table["slide"] == slide) & (table["kind"] == HARD))
    positions = zip(chosen["x"].tolist(), chosen["y"].tolist(), strict=True)
    return [float(expected[int((y + 64) // CELL), int((x + 64) // CELL)]) for x, y in positions]


def test_the_worst_do_not_depend_on_the_workers(images: Path, cohort: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        sampled(images, cohort, tmp_path / f"{workers}.parquet", workers=workers)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    # nothing of them is drawn by chance
    sampled(images, cohort, tmp_path / "other.parquet", seed=4)
    first, other = read_patch_table(tmp_path / "1.parquet"), read_patch_table(tmp_path / "other.parquet")
    for column in ("x", "y"):
        hard, normal = first["kind"] == HARD, first["kind"] == "normal"
        np.testing.assert_array_equal(first[column][hard], other[column][other["kind"] == HARD])
        assert (first[column][normal] != other[column][other["kind"] == "normal"]).any()


def test_another_choice_is_another_recipe_and_another_device_is_not(images: Path, cohort: Path, tmp_path: Path) -> None:
    sampled(images, cohort, tmp_path / "store")
    before = (tmp_path / "store" / "patches.parquet").read_bytes()
    sampled(images, cohort, tmp_path / "store", device="auto", threads=3)
    with pytest.raises(ConfigurationError, match="other recipe"):
        sampled(images, cohort, tmp_path / "store", hard_choice="even")
    assert (tmp_path / "store" / "patches.parquet").read_bytes() == before
    recipe = PatchRecipe(mpp=1.0, size_px=64, tumour=0, normal=2, seed=3)
    assert described(recipe)["hard_choice"] == "worst"
    assert not {"device", "threads"} & described(recipe).keys()


def command(images: Path, cohort: Path, output: Path, *options: str | Path) -> list[str]:
    given = (images, cohort / "annotations", "-r", cohort / "stage_labels.csv", "-o", output)
    drawing = ("--mpp", "1", "--size", "64", "--normal", "2", "--workers", "1", "--no-contact-sheet")
    return [str(argument) for argument in ("patches", *given, *drawing, *options)]


def test_the_command_line_takes_the_worst(images: Path, cohort: Path, tmp_path: Path) -> None:
    found: dict[str, list[list[float]]] = {}
    for name, options in (("default", ()), ("worst", ("--hard-choice", "worst")), ("even", ("--hard-choice", "even"))):
        output = tmp_path / f"{name}.parquet"
        hard = ("--hard", "8", "--heatmaps", cohort / "heatmaps")
        done = CliRunner().invoke(app, command(images, cohort, output, *hard, *options), catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        found[name] = [probabilities(read_patch_table(output), slide) for slide in NAMES]
    assert found["default"] == found["worst"] != found["even"]
    for worst, even in zip(found["default"], found["even"], strict=True):
        assert worst == sorted(worst, reverse=True)
        assert min(worst) > 0.9
        assert len(worst) == len(even) == 8
        assert sum(even) < sum(worst)


def test_the_model_runs_on_the_device(
    images: Path,
    cohort: Path,
    tmp_path: Path,
    make_checkpoint: Callable[..., Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model.safetensors"
    save_checkpoint(model, make_checkpoint(mpp=1.0))
    asked: list[tuple[str, int]] = []

    def told(_slide: Slide, _model: Checkpoint, *, tissue: Mask, device: str, workers: int) -> Heatmap:
        asked.append((device, workers))
        return Heatmap(frame=tissue.frame, array=tissue.array.astype(np.float32), tissue=tissue.array)

    monkeypatch.setattr("wsi.cnn.inference.infer", told)
    hard = ("--hard", "3", "--model", model)
    given = command(images, cohort, tmp_path / "t.parquet", *hard, "--device", "cpu")
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert asked == [("cpu", 1)] * 2
    given = command(images, cohort, tmp_path / "u.parquet", *hard, "--device", "tpu")
    refused = CliRunner().invoke(app, given)
    assert isinstance(refused.exception, PathologyError)
    assert "no device 'tpu'" in str(refused.exception)
    assert not (tmp_path / "u.parquet").exists()


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [("cuda", None, (1, 6)), ("cuda", 2, (2, 3)), ("cuda", 9, (9, 1)), ("cpu", None, (6, 1)), ("cpu", 2, (2, 1))],
)
def test_one_process_feeds_a_gpu_unless_more_are_asked_for(
    images: Path,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_checkpoint: Callable[..., Checkpoint],
    *,
    device: str,
    workers: int | None,
    expected: tuple[int, int],
) -> None:
    import torch  # noqa: PLC0415  (slow import)

    asked: list[tuple[int, int, str]] = []

    def told(*_: Any, recipe: PatchRecipe, workers: int, **__: Any) -> dict[str, Any]:
        asked.append((workers, recipe.threads, recipe.device))
        return {"warnings": {}, "remade": {}}

    monkeypatch.setattr("staging.training.sampling.sample_cohort", told)
    monkeypatch.setattr("wsi.cnn.device.pick_device", torch.device)
    monkeypatch.setattr("wsi.cnn.device.usable_cores", lambda: 6)
    save_checkpoint(tmp_path / "m.safetensors", make_checkpoint(mpp=MPP))
    model = str(tmp_path / "m.safetensors")
    given = command(images, cohort, tmp_path / "t", "--hard", "3", "--model", model, "--device", device)
    at = given.index("--workers")
    del given[at : at + 2]
    given += [] if workers is None else ["--workers", str(workers)]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert asked == [(*expected, device)]
