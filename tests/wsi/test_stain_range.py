"""The stains of a training set, and slides beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slide_files import stained

from wsi.patches.feeding import HeldPatches
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.stain import rgb_to_od
from wsi.stain_range import FARTHEST, PROVENANCE, StainRange, measure_range, stain_warnings
from wsi.writing.pyramid import write_pyramid

SIDE = 64


def tissue(strength: float, *, count: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Patches of 64 px whose stain is so strong, with a quarter of glass."""
    rng = np.random.default_rng(seed)
    shape = (count, SIDE, SIDE)
    haematoxylin = strength * rng.uniform(0.3, 0.6, shape)
    pixels = stained(haematoxylin, strength * rng.uniform(0.5, 0.7, shape))
    pixels[:, :32, :32] = 244
    return pixels


def trained(*strengths: float, mpp: float = 8.0) -> StainRange:
    images = np.concatenate([tissue(strength, count=10, seed=at) for at, strength in enumerate(strengths)])
    patients = np.repeat([f"patient_{at:03}" for at in range(len(strengths))], 10)
    found = measure_range(HeldPatches(images, np.zeros(images.shape[:3], np.uint8), mpp=mpp, patients=patients))
    assert found is not None
    return found


def warned(folder: Path, strength: float, known: StainRange | None) -> tuple[str, ...]:
    path = folder / "a.tif"
    tiles = [tissue(strength, seed=9)[0]] * 16
    write_pyramid(path, width=4 * SIDE, height=4 * SIDE, mpp=8.0, tiles=tiles, tile_size=SIDE)
    with Slide.open(path) as slide:
        frame = slide.frame_at(16.0)
        return stain_warnings(slide, Mask(frame=frame, array=np.ones(frame.shape, bool)), known)


def test_the_range_is_that_of_the_patients_quantiles_at_16_um() -> None:
    found = trained(0.8, 1.2)
    for strength, values in ((0.8, found.low), (1.2, found.high)):
        images = tissue(strength, count=10, seed=0 if strength == 0.8 else 1)
        halves = images.reshape(10, 32, 2, 32, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
        density = rgb_to_od(halves[halves.min(axis=3) < 200])
        np.testing.assert_allclose(values, np.quantile(density, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0), atol=0.02)


def test_a_slide_of_any_trained_centre_is_not_reported(tmp_path: Path) -> None:
    known = trained(0.7, 1.4)
    for strength in (0.7, 1.0, 1.4):
        assert warned(tmp_path, strength, known) == ()


@pytest.mark.parametrize("strength", [0.3, 2.6])
def test_a_slide_far_beyond_is_reported_with_the_numbers(tmp_path: Path, strength: float) -> None:
    (warning,) = warned(tmp_path, strength, trained(0.9, 1.1))
    assert warning.startswith("is stained unlike the training set: the ")
    assert " density of its tissue is " in warning


def test_only_what_lies_outside_by_more_than_the_limit_is_reported() -> None:
    known = trained(1.0)
    assert known.beyond(known.high + FARTHEST - 0.001) is None
    assert known.beyond(known.low - FARTHEST + 0.001) is None
    assert known.beyond(known.high + FARTHEST + 0.001) is not None
    assert known.beyond(known.low - FARTHEST - 0.001) is not None


def test_a_checkpoint_keeps_it_and_older_ones_keep_none(tmp_path: Path) -> None:
    known = trained(1.0)
    kept = StainRange.of_provenance(json.loads(json.dumps({PROVENANCE: known.to_json()})))
    assert kept is not None
    np.testing.assert_allclose(kept.low, known.low, atol=0.001)
    for other in ({}, {PROVENANCE: "dark"}, {PROVENANCE: {"low": [1], "high": [2]}}, {PROVENANCE: {"low": "x"}}):
        assert StainRange.of_provenance(other) is None
    assert warned(tmp_path, 2.6, None) == ()


def test_patches_without_stain_or_too_small_give_no_range() -> None:
    glass = np.full((20, SIDE, SIDE, 3), 244, np.uint8)
    assert measure_range(HeldPatches(glass, np.zeros(glass.shape[:3], np.uint8), mpp=8.0)) is None
    small = tissue(1.0, count=20)
    assert measure_range(HeldPatches(small, np.zeros(small.shape[:3], np.uint8), mpp=0.2)) is None
