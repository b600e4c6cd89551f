from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from slide_files import stained

from wsi.stain import STAIN_VECTORS, StainJitter, od_to_rgb, rgb_to_od, separate

ALL_GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def test_optical_density_is_undone_exactly_for_every_grey() -> None:
    density = rgb_to_od(ALL_GREYS)
    assert density.dtype == np.float32
    assert density[255].tolist() == [0, 0, 0]
    np.testing.assert_allclose(density[:, 0], -np.log((np.arange(256) + 1) / 256), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(od_to_rgb(density), ALL_GREYS)


def test_densities_beyond_black_and_white_are_clipped() -> None:
    assert od_to_rgb(np.array([-3.0, 0.0, 50.0])).tolist() == [255, 255, 0]


def test_od_to_rgb_leaves_its_argument_alone() -> None:
    density = np.full((2, 3), 0.5, np.float32)
    od_to_rgb(density)
    assert (density == 0.5).all()


@given(st.floats(0.1, 1.5), st.floats(0.1, 1.5))
def test_stains_laid_over_each_other_come_apart_again(haematoxylin: float, eosin: float) -> None:
    image = stained(np.full((2, 2), haematoxylin), np.full((2, 2), eosin))
    found = separate(image)
    # grey values are whole numbers: near black one of them is a large step in density
    tolerance = 6 / (int(image.min()) + 1)
    np.testing.assert_allclose(found[0], haematoxylin, atol=tolerance)
    np.testing.assert_allclose(found[1], eosin, atol=tolerance)


def test_separation_is_the_inverse_of_the_published_vectors() -> None:
    unit = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
    image = np.array([[200, 120, 180], [90, 60, 140]], np.uint8)
    expected = np.linalg.solve(unit.T, rgb_to_od(image).T.astype(np.float64))
    np.testing.assert_allclose(np.stack(separate(image)), expected[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nuclei_are_haematoxylin_and_stroma_is_eosin_on_real_tissue(real_data: Callable[[str], Path]) -> None:
    folder = real_data("centres")
    for path in sorted(folder.glob("*.jpeg")):
        image = np.asarray(Image.open(path).convert("RGB"))[:512, :512]
        haematoxylin, _ = separate(image)
        darkest_red = image[..., 0] <= np.quantile(image[..., 0], 0.05)
        assert haematoxylin[darkest_red].mean() > 2 * np.median(haematoxylin[~darkest_red]), path.name


STILL = {"sigma": 0.0, "strength": 0.0, "hue": 0.0, "bias": 0.0, "exposure": 0.0}


@pytest.mark.slow
@given(hnp.arrays(np.uint8, (3, 4, 5, 3)), st.integers(0, 2**32))
def test_no_jitter_changes_nothing(images: np.ndarray, seed: int) -> None:
    moved = StainJitter(**STILL)(images, np.random.default_rng(seed))
    assert np.abs(moved.astype(int) - images).max() <= 1


def test_jitter_draws_for_each_image_and_repeats_for_a_seed() -> None:
    images = np.full((6, 8, 8, 3), (190, 120, 170), np.uint8)
    jitter = StainJitter()
    first = jitter(images, np.random.default_rng(3))
    np.testing.assert_array_equal(first, jitter(images, np.random.default_rng(3)))
    assert len({tuple(image[0, 0]) for image in first}) == 6
    assert all((image == image[0, 0]).all() for image in first)
    assert (images == (190, 120, 170)).all()


def moved_densities(**limits: float) -> tuple[np.ndarray, np.ndarray]:
    """Optical density before and after a jitter: (200, 3) each."""
    images = np.broadcast_to(stained(np.array(0.8), np.array(0.5)), (200, 1, 1, 3)).copy()
    moved = StainJitter(**STILL | limits)(images, np.random.default_rng(0))
    return rgb_to_od(images)[:, 0, 0].astype(float), rgb_to_od(moved)[:, 0, 0].astype(float)


def test_stains_are_scaled_each_for_itself_within_bounds() -> None:
    before, after = moved_densities(sigma=0.2)
    unit = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
    factors = (after @ np.linalg.inv(unit))[:, :2] / (before @ np.linalg.inv(unit))[:, :2]
    assert 0.78 < factors.min() < 0.85
    assert 1.17 < factors.max() < 1.26
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.3


def test_strength_scales_all_channels_alike_and_hue_each_its_own() -> None:
    before, after = moved_densities(strength=0.4)
    factors = after / before
    np.testing.assert_allclose(factors, np.repeat(factors[:, :1], 3, axis=1), rtol=0.05)
    assert factors.min() < 0.7
    assert factors.max() > 1.45
    before, after = moved_densities(hue=0.3)
    assert (np.abs(np.corrcoef((after / before).T) - np.eye(3)) < 0.3).all()


def test_bias_and_exposure_reach_the_glass() -> None:
    glass = np.full((300, 1, 1, 3), 240, np.uint8)
    moved = StainJitter(**STILL | {"exposure": 0.05})(glass, np.random.default_rng(0))[:, 0, 0].astype(int)
    assert np.ptp(moved, axis=1).max() == 0
    assert 226 <= moved.min() < 231
    assert 249 < moved.max() <= 253
    tinted = StainJitter(**STILL | {"bias": 0.05})(glass, np.random.default_rng(0))[:, 0, 0].astype(int)
    assert np.ptp(tinted, axis=1).max() > 5


@pytest.mark.parametrize("odd", [{"sigma": 2.0}, {"strength": -0.1}, {"bias": -1.0}, {"exposure": float("nan")}])
def test_absurd_jitter_is_refused(odd: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="stain jitter"):
        StainJitter(**odd)
