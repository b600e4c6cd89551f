"""Training patches: where they lie, what they claim, and that they come back from disk."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from annotations.annotation import Annotation, Role
from annotations.errors import PatchStoreError, SamplingError
from annotations.painting import Painting, rasterize
from annotations.patches.batch import PatchBatch, Shares, draw_patches
from annotations.patches.labels import IGNORE, LabelRule, PatchLabels, centre_of
from annotations.patches.sites import find_sites
from annotations.patches.zarr_store import read_patches, write_patches
from wsi.errors import ResolutionError
from wsi.geometry import Frame
from wsi.patches.reading import read_patches as read_many
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

MPP = 0.5
WIDTH, HEIGHT, TILE = 2048, 1536, 256
SIDE = 64


def box(role: Role, left: float, top: float, width: float, height: float | None = None) -> Annotation:
    right, bottom = left + width, top + (width if height is None else height)
    vertices = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
    return Annotation(name="a", group="g", role=role, kind="Polygon", vertices=vertices)


LARGE = box(Role.TUMOUR, 300, 300, 500)
SMALL = box(Role.TUMOUR, 1400, 1000, 20)
HOLE = box(Role.CUT_OUT, 450, 450, 150)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("slides") / "patient_007_node_1.tif"
    rng = np.random.default_rng(3)
    tiles = [
        None
        if column == WIDTH // TILE - 1
        else np.repeat(np.repeat(rng.integers(90, 250, (TILE // 8, TILE // 8, 3)), 8, 0), 8, 1).astype(np.uint8)
        for _, column in itertools.product(range(HEIGHT // TILE), range(WIDTH // TILE))
    ]
    write_pyramid(path, width=WIDTH, height=HEIGHT, mpp=MPP, tiles=tiles, tile_size=TILE)
    return Slide.open(path)


@pytest.fixture(scope="module")
def tissue() -> Mask:
    frame = Frame(x=0, y=0, downsample=32, shape=(HEIGHT // 32, WIDTH // 32), mpp=MPP)
    array = np.zeros(frame.shape, dtype=bool)
    array[6:40, 6:50] = True
    return Mask(frame=frame, array=array)


def sample(slide: Slide, tissue: Mask, annotations: list[Annotation] | None, **changes: Any) -> PatchBatch:
    """Places drawn, and their pixels."""
    wanted: dict[str, Any] = {
        "mpp": 1.0,
        "size_px": SIDE,
        "count_tumour": 20,
        "count_normal": 20,
        "seed": 5,
        "negative": False,
    } | changes
    told = {name: wanted.pop(name, None) for name in ("patient", "centre")}
    found = list(draw_patches(slide, annotations, tissue, **wanted))
    side, downsample = wanted["size_px"], slide.frame_at(wanted["mpp"]).downsample
    x, y = (np.array([getattr(where.frame, axis) for where in found], np.float64) for axis in ("x", "y"))
    return PatchBatch(
        slide=slide.name,
        patient=told["patient"] or slide.name,
        centre=told["centre"],
        mpp=wanted["mpp"],
        images=read_many(slide, x, y, downsample=downsample, size_px=side),
        targets=np.array([where.target for where in found], np.uint8).reshape(len(found), side, side),
        x=x,
        y=y,
        kinds=tuple(where.kind for where in found),
    )


def frames(batch: PatchBatch) -> list[Frame]:
    side = batch.targets.shape[1]
    return [
        Frame(x=float(x), y=float(y), downsample=batch.mpp / MPP, shape=(side, side), mpp=MPP)
        for x, y in zip(batch.x, batch.y, strict=True)
    ]


def digest(batch: PatchBatch) -> str:
    parts = (batch.images, batch.targets, batch.x, batch.y)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts) + str(batch.kinds).encode()).hexdigest()


def test_pixels_and_targets_are_those_of_their_place(slide: Slide, tissue: Mask) -> None:
    annotations = [LARGE, SMALL, HOLE]
    batch = sample(slide, tissue, annotations)
    assert batch.images.shape == (40, SIDE, SIDE, 3)
    for frame, image, target, kind in zip(frames(batch), batch.images, batch.targets, batch.kinds, strict=True):
        np.testing.assert_array_equal(image, slide.read_frame(frame).array)
        np.testing.assert_array_equal(target, rasterize(annotations, frame).array)
        assert (kind in ("tumour", "border")) == bool(target.any())
        # on the grid of the whole slide, and on the slide
        assert frame.x % 2 == 0 <= frame.x <= WIDTH - 2 * SIDE
        assert frame.y % 2 == 0 <= frame.y <= HEIGHT - 2 * SIDE
    np.testing.assert_allclose(batch.tumour_fraction, batch.targets.mean(axis=(1, 2)))


def test_every_kind_is_drawn_in_its_share(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [LARGE, SMALL], shares=Shares(border=0.5, near=0.3, background=0.2))
    assert {kind: batch.kinds.count(kind) for kind in batch.kinds} == {
        "border": 10,
        "tumour": 10,
        "normal": 10,
        "near": 6,
        "background": 4,
    }
    centres = [(x + SIDE, y + SIDE) for x, y in zip(batch.x, batch.y, strict=True)]
    for kind, (x, y), target in zip(batch.kinds, centres, batch.targets, strict=True):
        on_tissue = tissue.array[int(y // 32), int(x // 32)] or tissue.array[int((y - 2) // 32), int((x - 2) // 32)]
        if kind in ("normal", "near"):
            assert on_tissue
        if kind == "near":
            assert (
                min(
                    np.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
                    for left, top, right, bottom in ((300, 300, 800, 800), (1400, 1000, 1420, 1020))
                )
                <= 2 * SIDE * 2 + 4
            )
        if kind == "border":
            assert 0 < target.mean() < 1


def test_equal_seeds_give_equal_patches(slide: Slide, tissue: Mask, tmp_path: Path) -> None:
    first = sample(slide, tissue, [LARGE, SMALL])
    assert digest(first) == digest(sample(slide, tissue, [LARGE, SMALL]))
    assert digest(first) != digest(sample(slide, tissue, [LARGE, SMALL], seed=6))
    other = tmp_path / "patient_007_node_2.tif"
    other.write_bytes(Path(slide.path).read_bytes())
    with Slide.open(other) as renamed:
        assert digest(first) != digest(sample(renamed, tissue, [LARGE, SMALL]))


def test_a_small_lesion_is_seen_as_often_as_a_large_one(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [LARGE, SMALL], count_tumour=40, count_normal=0)
    assert np.count_nonzero(batch.x > 1000) == 20
    # Their places differ, though it is the same lesion.
    assert len(set(zip(batch.x.tolist(), batch.y.tolist(), strict=True))) > 30


def test_outlines_within_75_um_are_one_lesion() -> None:
    gap = 75 / MPP
    for distance, count in ((gap - 1, 1), (gap + 1, 2)):
        drawn = [box(Role.TUMOUR, 0, 0, 10), box(Role.TUMOUR, 10 + distance, 0, 10)]
        assert len(find_sites(drawn, Painting.of(drawn), mpp=MPP)) == count
    chain = [box(Role.TUMOUR, 150 * n, 0, 10) for n in (2, 0, 1)]
    assert len(find_sites(chain, Painting.of(chain), mpp=MPP)) == 1
    assert find_sites([], Painting.of([]), mpp=MPP) == ()


def test_points_of_a_site_lie_in_its_tumour_and_on_its_outline() -> None:
    annotations = [LARGE, HOLE, SMALL]
    painting = Painting.of(annotations)
    large, small = find_sites(annotations, painting, mpp=MPP)
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, y = large.inner_point(rng)
        assert 299 <= x <= 801
        assert not (452 < x < 598 and 452 < y < 598)
        x, y = small.border_point(rng)
        assert min(abs(x - 1400), abs(x - 1420), abs(y - 1000), abs(y - 1020)) < 1e-9
    erased = [SMALL, box(Role.CUT_OUT, 1400, 1000, 20)]
    assert find_sites(erased, Painting.of(erased), mpp=MPP) == ()


def test_a_lesion_smaller_than_a_pixel_gives_what_it_can(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [box(Role.TUMOUR, 601.0, 601.0, 0.5)], count_normal=0)
    assert all(target.sum() == 1 for target in batch.targets)


def test_a_negative_slide_gives_only_normal_patches(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, None, negative=True, count_tumour=0)
    assert not batch.targets.any()
    assert {kind: batch.kinds.count(kind) for kind in batch.kinds} == {"normal": 18, "background": 2}
    assert (batch.patient, batch.centre) == ("patient_007_node_1", None)


def test_missing_annotations_never_mean_negative(slide: Slide, tissue: Mask) -> None:
    with pytest.raises(SamplingError, match="not known to be negative") as caught:
        sample(slide, tissue, None)
    assert "patient_007_node_1.tif" in str(caught.value)


@pytest.mark.parametrize(
    ("annotations", "changes", "reason"),
    [
        ([LARGE], {"negative": True}, "said to be negative but tumour is drawn"),
        ([HOLE], {}, "no tumour is drawn"),
        ([], {}, "no tumour is drawn"),
        ([LARGE], {"partly_annotated": True}, "only partly annotated"),
    ],
)
def test_contradictions_are_refused(
    slide: Slide, tissue: Mask, annotations: list[Annotation], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SamplingError, match=reason):
        sample(slide, tissue, annotations, **changes)


def test_a_partly_annotated_slide_is_silent_outside_its_outlines(slide: Slide, tissue: Mask) -> None:
    annotations = [LARGE, HOLE]
    batch = sample(slide, tissue, annotations, partly_annotated=True, count_normal=0)
    assert set(batch.kinds) == {"tumour"}
    hole = box(Role.TUMOUR, 450, 450, 150)
    for frame, target in zip(frames(batch), batch.targets, strict=True):
        np.testing.assert_array_equal(target == 1, rasterize(annotations, frame).array)
        np.testing.assert_array_equal(target == 0, rasterize([hole], frame).array)
    assert (batch.targets == IGNORE).any()
    assert (batch.targets == 0).any()


def test_ignored_outlines_are_not_learnt_from(slide: Slide, tissue: Mask) -> None:
    ignored = box(Role.IGNORE, 0, 0, 900, HEIGHT)
    batch = sample(slide, tissue, [ignored], count_tumour=0)
    assert ((batch.targets == IGNORE).mean(axis=(1, 2)) <= 0.5).all()
    assert (batch.targets == IGNORE).any()


def test_the_worst_mistakes_may_be_ignored_for_half_of_their_pixels(slide: Slide, tissue: Mask) -> None:
    ignored = box(Role.IGNORE, 0, 0, 512, HEIGHT)
    frame = Frame(x=0, y=0, downsample=2, shape=(HEIGHT // 2, WIDTH // 2), mpp=MPP)
    probability = np.zeros(frame.shape, np.float32)
    # patches of 65 px that begin 32 px before their cell: 65, 33 and 32 of their columns are ignored
    probability[300, [223, 255, 256]] = 1.0, 0.9, 0.8
    mistakes = Heatmap(frame=frame, array=probability, tissue=np.ones(frame.shape, bool))
    arguments = {"count_tumour": 0, "count_normal": 0, "size_px": 65, "mistakes": mistakes, "count_hard": 3}
    batch = sample(slide, tissue, [ignored], **arguments, hard_choice="worst")
    assert (batch.x.tolist(), batch.y.tolist()) == ([2 * 224], [2 * 268])
    assert (batch.targets == IGNORE).mean() == 32 / 65


def test_tissue_that_is_all_tumour_has_no_normal_patches(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [box(Role.TUMOUR, 0, 0, WIDTH, HEIGHT)], count_tumour=3)
    assert set(batch.kinds) <= {"tumour", "border"}
    assert len(batch.images) == 3


def test_a_slide_smaller_than_a_patch_lies_in_its_middle(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [LARGE], size_px=1200, count_tumour=1, count_normal=0)
    assert (batch.x[0], batch.y[0]) == ((1024 - 1200) // 2 * 2, (768 - 1200) // 2 * 2)
    assert (batch.images[0, 0, 0] == 255).all()


def test_no_patches_where_none_are_wanted(slide: Slide, tissue: Mask) -> None:
    batch = sample(slide, tissue, [LARGE], count_tumour=0, count_normal=0)
    assert batch.images.shape == (0, SIDE, SIDE, 3)
    assert batch.kinds == ()


def test_a_slide_without_resolution_is_refused(tmp_path: Path, tissue: Mask) -> None:
    path = tmp_path / "plain.tif"
    write_pyramid(path, width=256, height=256, mpp=None, tiles=[None], tile_size=256)
    with Slide.open(path) as plain, pytest.raises(ResolutionError):
        sample(plain, tissue, [LARGE])


def test_the_worst_are_the_default_and_other_kinds_do_not_depend_on_the_choice(slide: Slide, tissue: Mask) -> None:
    probability = np.zeros(tissue.array.shape, np.float32)
    probability[20:30, 30:40] = np.linspace(0.5, 0.99, 100).reshape(10, 10)
    mistakes = Heatmap(frame=tissue.frame, array=probability, tissue=tissue.array)

    def found(**choice: Any) -> list[tuple[str, float, float]]:
        batch = sample(slide, tissue, [LARGE], mistakes=mistakes, count_hard=6, **choice)
        return list(zip(batch.kinds, batch.x.tolist(), batch.y.tolist(), strict=True))

    even, worst = found(hard_choice="even"), found(hard_choice="worst")
    assert found() == worst != even
    assert even[:40] == worst[:40]
    assert [kind for kind, *_ in worst[40:]] == ["hard"] * 6
    with pytest.raises(ValueError, match="even or worst"):
        found(hard_choice="best")


@pytest.mark.parametrize(
    "shares", [{"border": 1.5}, {"near": -0.1}, {"near": 0.6, "background": 0.6}, {"turns": "size"}]
)
def test_impossible_shares_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|by lesion or by area"):
        Shares(**shares)


def made_up(count: int, *, slide: str = "s_0", side: int = 8, mpp: float = 1.0, centre: int | None = 3) -> PatchBatch:
    rng = np.random.default_rng(count)
    return PatchBatch(
        slide=slide,
        patient=slide.split("_", maxsplit=1)[0],
        centre=centre,
        mpp=mpp,
        images=rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        targets=rng.choice(np.array([0, 1, 255], np.uint8), (count, side, side)),
        x=rng.uniform(0, 1e5, count),
        y=rng.uniform(0, 1e5, count),
        kinds=tuple(rng.choice(["tumour", "normal"], count).tolist()),
    )


@pytest.mark.parametrize("counts", [(1,), (63, 1), (64, 64), (10, 130, 0, 7), (0, 65)])
def test_what_is_stored_comes_back(tmp_path: Path, counts: tuple[int, ...]) -> None:
    batches = [made_up(count, slide=f"p{n}_é", centre=None if n else 2) for n, count in enumerate(counts)]
    write_patches(tmp_path / "patches", batches)
    found = read_patches(tmp_path / "patches")
    np.testing.assert_array_equal(found.images, np.concatenate([batch.images for batch in batches]))
    np.testing.assert_array_equal(found.targets, np.concatenate([batch.targets for batch in batches]))
    assert (found.mpp, found.size_px) == (1.0, 8)
    assert found.patients.tolist() == [batch.patient for batch in batches for _ in batch.kinds]
    assert found.table["slide"].tolist() == [batch.slide for batch in batches for _ in batch.kinds]
    assert found.table["kind"].tolist() == [kind for batch in batches for kind in batch.kinds]
    assert found.table["centre"].tolist() == [-1 if n else 2 for n, batch in enumerate(batches) for _ in batch.kinds]
    np.testing.assert_array_equal(found.table["x"], np.concatenate([batch.x for batch in batches]))
    np.testing.assert_array_equal(
        found.table["tumour_fraction"], np.concatenate([batch.tumour_fraction for batch in batches])
    )
    assert [left.name for left in tmp_path.iterdir()] == ["patches"]


def test_chunks_are_small_and_files_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotations.patches.zarr_store._SHARD_BYTES", 24 * 8 * 8 * 3)
    write_patches(tmp_path / "patches", [made_up(50), made_up(20)])
    images: Any = zarr.open_group(tmp_path / "patches", mode="r")["images"]
    assert (images.chunks[0], images.shards[0]) == (8, 24)
    assert sum(file.is_file() for file in (tmp_path / "patches" / "images" / "c").rglob("*")) == 3
    assert len(read_patches(tmp_path / "patches").images) == 70


def test_equal_patches_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_patches(tmp_path / name, [made_up(70)])
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) > 10
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_patches_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for batches in ([made_up(3), made_up(3, side=9)], [made_up(3), made_up(3, mpp=0.5)], [], [made_up(0)]):
        with pytest.raises(PatchStoreError, match=r"differ in size|no patches"):
            write_patches(tmp_path / "patches", batches)
    assert not list(tmp_path.iterdir())


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchStoreError, match="not a complete patch store"):
        read_patches(tmp_path / "none")
    path = tmp_path / "patches"
    write_patches(path, [made_up(5)])
    chunk = next(file for file in sorted((path / "images").rglob("*")) if file.name != "zarr.json" and file.is_file())
    whole = chunk.read_bytes()
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        chunk.write_bytes(damaged)
        with pytest.raises(PatchStoreError, match=r"since DONE\.json was written"):
            read_patches(path)
    chunk.unlink()
    with pytest.raises(PatchStoreError, match="is missing"):
        read_patches(path)
    chunk.write_bytes(whole)
    assert len(read_patches(path).images) == 5
    (path / "DONE.json").write_text("{}")
    with pytest.raises(PatchStoreError, match=r"DONE\.json"):
        read_patches(path)


@pytest.mark.parametrize("rule", ["any", "area:0.25"])
def test_a_patch_of_which_less_than_half_is_known_is_unknown(rule: str) -> None:
    frame = Frame(x=0, y=0, downsample=1, shape=(10, 10), mpp=0.5)
    labels = PatchLabels.of([])

    def class_of(unknown_px: int, tumour_px: int = 0) -> str:
        target = np.zeros(100, np.uint8)
        target[:unknown_px] = IGNORE
        target[100 - tumour_px :] = 1
        return labels.class_of(frame, target.reshape(10, 10), LabelRule.parse(rule))

    assert [class_of(unknown_px) for unknown_px in (0, 50, 51, 89, 100)] == ["normal"] * 2 + ["unknown"] * 3
    assert class_of(60, tumour_px=25) == "tumour"  # what is known makes it tumour


@pytest.mark.parametrize("shape", [(4, 6), (5, 3)])
def test_the_centre_of_a_patch_is_one_level_0_px_around_its_middle(shape: tuple[int, int]) -> None:
    frame = Frame(x=100.0, y=40.0, downsample=3.0, shape=shape, mpp=0.5)
    x, y = 100 + 1.5 * shape[1], 40 + 1.5 * shape[0]
    assert centre_of(frame) == Frame(x=x - 0.5, y=y - 0.5, downsample=1.0, shape=(1, 1), mpp=0.5)
    labels = {
        "tumour": PatchLabels.of([box(Role.TUMOUR, x - 0.1, y - 0.1, 0.2)]),
        "normal": PatchLabels.of([box(Role.TUMOUR, x + 0.1, y - 9, 99)]),
        "unknown": PatchLabels.of([box(Role.IGNORE, x - 0.1, y - 0.1, 0.2)]),
    }
    for wanted, one in labels.items():
        assert one.class_of(frame, one.target(frame), LabelRule.parse("centre")) == wanted


def test_what_is_not_drawn_is_known_unless_the_slide_is_partly_annotated() -> None:
    frame = Frame(x=0, y=0, downsample=1, shape=(2, 4), mpp=0.5)
    drawn = [box(Role.TUMOUR, 0, 0, 1, 2), box(Role.CUT_OUT, 1, 0, 1, 2)]
    assert PatchLabels.of(drawn).target(frame).tolist() == [[1, 0, 0, 0]] * 2
    assert PatchLabels.of(drawn, is_partial=True).target(frame).tolist() == [[1, 0, IGNORE, IGNORE]] * 2
