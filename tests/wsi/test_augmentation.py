"""Each variation does what it says, and draws what it draws whatever others there are."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from small_training import TINY, fit

from wsi.cnn.augmentation import (
    FULL,
    LIGHT,
    Augmentation,
    Blur,
    Brightness,
    Focus,
    Jpeg,
    Macenko,
    Stain,
    Turns,
    Variation,
    blurred,
    laid,
    softened,
)
from wsi.cnn.cells import cell_targets
from wsi.cnn.jpeg_noise import compressed
from wsi.cnn.macenko import _REFERENCE, _REFERENCE_STRENGTH, normalise
from wsi.stain import StainJitter, od_to_rgb, rgb_to_od

EVERYTHING = Augmentation((Turns(), Macenko(0.5), Stain(), Focus(), Brightness(), Blur(), Jpeg(0.5)))


def stained(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Nuclei on eosin, with some white."""
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter(rng.random((count, side, side)), (0, 2, 2))
    nuclei = 1.6 * (spots > np.quantile(spots, 0.7)) + 0.1 * rng.random(spots.shape)
    eosin = 0.5 + 0.4 * ndimage.gaussian_filter(rng.random((count, side, side)), (0, 4, 4))
    images = od_to_rgb(nuclei[..., None] * (0.65, 0.70, 0.29) + eosin[..., None] * (0.30, 0.80, 0.45))
    images[:, : side // 8] = 245
    return images


def seeds_of(*numbers: int) -> NDArray[np.int64]:
    return np.array([(3, 1, number) for number in numbers], dtype=np.int64)


def varied(images: NDArray[np.uint8], seeds: NDArray[np.int64], augmentation: Augmentation | Variation) -> torch.Tensor:
    if isinstance(augmentation, Variation):
        augmentation = Augmentation((augmentation,))
    return augmentation(torch.from_numpy(images), np.zeros(images.shape[:3], np.uint8), seeds)[0]


def planes(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(
    "still",
    [
        Augmentation(()),
        Augmentation((Macenko(0), Focus(0, 0), Brightness(0), Blur(0), Jpeg(0))),
        Augmentation((Focus(-0.0, 0.0), Jpeg(0))),
    ],
)
def test_nothing_asked_for_changes_nothing(still: Augmentation) -> None:
    images = stained(2, 32)
    found = varied(images, seeds_of(1, 2), still)
    assert torch.equal(found, planes(images))
    assert found.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_patch_does_not_depend_on_its_batch(order: list[int], count: int) -> None:
    images, chosen = stained(6, 40), order[:count]
    alone = torch.cat([varied(images[index : index + 1], seeds_of(index), EVERYTHING) for index in chosen])
    together = varied(images[chosen], seeds_of(*chosen), EVERYTHING)
    assert torch.equal(alone, together)


def test_equal_seeds_give_equal_patches_and_others_others() -> None:
    images = stained(1, 40).repeat(2, axis=0)
    same, other = varied(images, seeds_of(5, 5), EVERYTHING), varied(images, seeds_of(5, 6), EVERYTHING)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(other[0], other[1])
    assert torch.equal(same[0], other[0])
    assert float(same.min()) >= 0
    assert float(same.max()) <= 255


@dataclass(frozen=True, slots=True)
class Idle(Variation):
    """Draws chances, and changes nothing."""

    name: ClassVar[str] = "idle"
    draws: ClassVar[int] = 5

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        assert chances.shape == (len(pixels), 5)
        return pixels


@pytest.mark.parametrize("augmentation", [LIGHT, FULL])
def test_another_variation_changes_what_no_other_draws(augmentation: Augmentation) -> None:
    """So that an augmentation can be added without changing an earlier result for a seed."""
    images, targets = torch.from_numpy(stained(4, 40)), np.arange(4 * 1600, dtype=np.uint8).reshape(4, 40, 40)
    expected, moved = augmentation(images, targets, seeds_of(1, 2, 3, 4))
    parts = augmentation.variations
    for number in range(len(parts) + 1):
        more = Augmentation((*parts[:number], Idle(), *parts[number:]))
        found, laid_out = more(images, targets, seeds_of(1, 2, 3, 4))
        assert torch.equal(found, expected)
        np.testing.assert_array_equal(laid_out, moved)


@pytest.mark.slow
def test_another_variation_changes_no_training() -> None:
    plain, idle = fit(epochs=2), fit(epochs=2, augmentation=Augmentation((Idle(), *LIGHT.variations)))
    assert idle.history == plain.history
    np.testing.assert_array_equal(idle.margins, plain.margins)


def test_variations_draw_apart_from_each_other() -> None:
    @dataclass(frozen=True, slots=True)
    class Other(Brightness):
        name: ClassVar[str] = "other"

    images = np.full((50, 4, 4, 3), 100, np.uint8)
    first, second = (varied(images, seeds_of(*range(50)), one)[:, 0, 0, 0] for one in (Brightness(), Other()))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5
    with pytest.raises(ValueError, match="one name"):
        Augmentation((Blur(), Blur(2.0)))


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    varied(stained(2, 32), seeds_of(1, 2), EVERYTHING)
    assert torch.equal(torch.rand(2), expected)


def turned(array: NDArray[np.uint8], way: int) -> NDArray[np.uint8]:
    """(side, side, ...) laid in one of the eight ways."""
    result = np.rot90(array, way % 4)
    return result[:, ::-1] if way >= 4 else result


def test_squares_are_laid_in_eight_ways() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
    found = laid(planes(images), np.arange(8)).permute(0, 2, 3, 1).numpy()
    for way in range(8):
        np.testing.assert_array_equal(found[way], turned(images[way], way))
    assert len({found[way].tobytes() for way in range(8)}) == 8
    same = images[:1].repeat(400, axis=0)
    seen = {one.tobytes() for one in varied(same, seeds_of(*range(400)), Turns()).numpy()}
    assert len(seen) == 8


@pytest.mark.parametrize("augmentation", [Augmentation((Turns(),)), LIGHT])
def test_images_and_targets_are_turned_together(augmentation: Augmentation) -> None:
    targets = (np.random.default_rng(0).random((16, 4, 4)) < 0.5).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    images = np.where(targets[..., None] == 1, 40, 220).astype(np.uint8).repeat(3, axis=3)
    shown, moved = augmentation(torch.from_numpy(images), targets, seeds_of(*range(16)))
    cells = cell_targets(moved, TINY)
    centres = shown[:, 0, 3:-3:4, 3:-3:4].numpy()
    assert shown.shape == (16, 3, 32, 32)
    assert centres[..., : cells.shape[2]].shape == cells.shape
    assert (centres[cells == 1] < 130).all()
    assert (centres[cells == 0] > 130).all()
    assert (cells != cell_targets(targets, TINY)).any()


def test_softening_is_the_binomial_blur_with_a_repeated_border() -> None:
    pixels = np.random.default_rng(0).random((2, 3, 9, 7)).astype(np.float32)
    found = softened(torch.from_numpy(pixels)).numpy()
    expected = ndimage.correlate1d(pixels, [0.25, 0.5, 0.25], axis=2, mode="nearest")
    expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=3, mode="nearest")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_focus_softens_and_sharpens_within_its_limits() -> None:
    images = stained(1, 32).repeat(200, axis=0)
    whole, soft = planes(images[:1]), softened(planes(images[:1]))
    np.testing.assert_allclose(varied(images[:1], seeds_of(0), Focus(1, 1)), soft, atol=1e-3)
    contrast = (varied(images, seeds_of(*range(200)), Focus()).std(dim=(1, 2, 3)) / whole.std()).numpy()
    assert float(soft.std() / whole.std()) - 1e-3 < contrast.min() < 0.99
    assert contrast.max() > 1.01


def test_blur_is_scipys_gaussian() -> None:
    image = np.random.default_rng(0).random((3, 20, 17)).astype(np.float32) * 255
    for sigma in (0.0, 0.4, 1.0, 2.0):
        found = blurred(torch.from_numpy(image)[None], np.array([sigma]))[0].numpy()
        expected = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest", radius=6) if sigma else image
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_stains_are_moved_as_the_jitter_says() -> None:
    jitter = StainJitter()
    images = stained(3, 24)
    draws = np.random.default_rng(1).uniform(-1, 1, (3, 11))
    mix, shift = jitter.moves(draws)
    expected = od_to_rgb(rgb_to_od(images).reshape(3, -1, 3) @ mix + shift).reshape(images.shape)
    found = Stain(jitter)(planes(images), (draws + 1) / 2)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=0.51)
    still = jitter.moves(np.zeros((1, 11)))
    np.testing.assert_allclose(still[0][0], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(still[1], 0, atol=1e-6)


def test_brightness_is_a_factor_within_its_limits() -> None:
    images = np.full((200, 8, 8, 3), 100, np.uint8)
    found = varied(images, seeds_of(*range(200)), Brightness(0.2))[:, 0, 0, 0] / 100
    assert np.exp(-0.2) <= float(found.min()) < 0.85
    assert 1.18 < float(found.max()) <= np.exp(0.2)


def test_jpeg_takes_its_share() -> None:
    images = stained(1, 32).repeat(200, axis=0)
    is_worn = (varied(images, seeds_of(*range(200)), Jpeg(0.3, (5, 20))) != planes(images)).any(dim=(1, 2, 3))
    assert 40 < int(is_worn.sum()) < 80


def through_a_file(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [15, 50, 80, 95])
def test_jpeg_noise_is_what_a_file_does(quality: int) -> None:
    image = stained(1, 90)[0]
    grey = image[..., :1].repeat(3, axis=2)
    found = compressed(planes(np.stack([image, grey])), torch.tensor([quality, quality])).permute(0, 2, 3, 1).numpy()
    coloured, plain = through_a_file(image, quality).astype(float), through_a_file(grey, quality).astype(float)
    # the library rounds between its steps, and colours weigh up to 1.8
    assert np.abs(found[1] - plain).mean() < 0.5
    noise = np.abs(coloured - image).mean()
    assert np.abs(found[0] - coloured).mean() < 0.35 * noise
    assert np.abs(found[0] - image).mean() == pytest.approx(noise, rel=0.15)


def macenko_of_the_paper(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(pixels, 3) optical density, normalised as the authors' example does it."""
    chosen = density[(density > 0.15).all(axis=1)]
    plane = np.linalg.eigh(np.cov(chosen.T))[1][:, 1:]
    plane = plane * np.where(plane[0] < 0, -1, 1)
    across = chosen @ plane
    angles = np.arctan2(across[:, 0], across[:, 1])
    ends = [plane @ np.array([np.sin(angle), np.cos(angle)]) for angle in np.percentile(angles, (1, 99))]
    stains = np.array(sorted(ends, key=lambda vector: -vector[0])).T
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    highest = np.percentile(np.linalg.lstsq(stains, chosen.T, rcond=None)[0], 99, axis=1)
    scaled = amounts * (np.array(_REFERENCE_STRENGTH) / highest)[:, None]
    result: NDArray[np.float64] = np.maximum(0, (np.array(_REFERENCE).T @ scaled).T)
    return result


def test_macenko_is_the_papers() -> None:
    images = stained(3, 48, seed=4)
    density = rgb_to_od(images)
    found = normalise(torch.from_numpy(density).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    for index in range(3):
        expected = macenko_of_the_paper(density[index].reshape(-1, 3).astype(np.float64))
        np.testing.assert_allclose(found[index].reshape(-1, 3), expected, atol=2e-3)


def test_normalised_stains_are_alike() -> None:
    images = stained(1, 64)
    moved = od_to_rgb(rgb_to_od(images) * np.array([0.8, 1.0, 1.15], np.float32) * 0.85)
    before = np.abs(rgb_to_od(images) - rgb_to_od(moved)).mean()
    pair = torch.from_numpy(rgb_to_od(np.concatenate([images, moved]))).permute(0, 3, 1, 2)
    first, second = normalise(pair).numpy()
    assert np.abs(first - second).mean() < 0.35 * before


@pytest.mark.parametrize("image", [np.full((1, 20, 20, 3), 240), np.full((1, 20, 20, 3), 90)])
def test_what_has_no_two_stains_stays_as_it_is(image: NDArray[np.int64]) -> None:
    density = torch.from_numpy(rgb_to_od(image.astype(np.uint8))).permute(0, 3, 1, 2)
    assert torch.isfinite(normalise(density)).all()
    assert torch.equal(normalise(density), density)


@pytest.mark.slow
def test_real_tissue_is_normalised_and_varied(real_data: Callable[[str], Path]) -> None:
    folder = real_data("patches") / "tumor"
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))[:6]])
    found = varied(images, seeds_of(*range(6)), Macenko(1))
    means = rgb_to_od(found.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()).mean(axis=(1, 2))
    before = rgb_to_od(images).mean(axis=(1, 2))
    hue, hue_before = means / means.sum(axis=1, keepdims=True), before / before.sum(axis=1, keepdims=True)
    assert hue.std(axis=0).sum() < hue_before.std(axis=0).sum()


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        (Macenko, (1.5,)),
        (Jpeg, (-0.1,)),
        (Brightness, (3,)),
        (Blur, (9,)),
        (Focus, (1, 0)),
        (Jpeg, (0.3, (90, 30))),
        (Jpeg, (0.3, (0, 9))),
    ],
)
def test_absurd_variations_are_refused(kind: type[Variation], odd: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        kind(*odd)
