from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from slide_files import stained

from staging.lesions.nuclei import find_nuclei
from staging.phantom.cells import Canvas, Kind, cut_stamps
from staging.phantom.stain import E_UNIT, H_UNIT
from wsi.errors import ResolutionError
from wsi.geometry import Frame
from wsi.raster import Image, Mask

PIXEL_UM = 0.5


def picture(array: NDArray[np.uint8], *, pixel_um: float = PIXEL_UM) -> Image:
    frame = Frame(x=1000.0, y=2000.0, downsample=2.0, shape=array.shape[:2], mpp=pixel_um / 2)
    return Image(frame=frame, array=array)


def phantom(kind: Kind, *, apart_um: float, strength: float = 1.0) -> tuple[Image, NDArray[np.float64]]:
    """A field of the phantom's cells and where they were put, in px."""
    rng = np.random.default_rng(11)
    canvas = Canvas(size=400, pixel_um=PIXEL_UM)
    canvas.ground(h=0.12, e=0.5)
    steps = np.arange(10.0, 190.0, apart_um)
    positions = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    positions += rng.uniform(-0.12, 0.12, positions.shape) * apart_um
    canvas.put(cut_stamps(rng, kind, pixel_um=PIXEL_UM, count=12), positions)
    h, e = canvas.core()
    return picture(stained(h / H_UNIT * strength, e / E_UNIT * 0.3 * strength)), positions / PIXEL_UM


@pytest.mark.parametrize(
    ("kind", "apart_um"),
    [
        (Kind(nucleus_um=5.5), 9.0),
        (Kind(nucleus_um=6.2, body_um=7.5, basophilia=0.2), 10.0),
        (Kind(nucleus_um=8.5, chromatin=0.8, pallor=0.3, nucleoli=1), 13.0),
    ],
)
@pytest.mark.parametrize("strength", [0.6, 1.2])
def test_known_nuclei_are_found_where_they_are(kind: Kind, apart_um: float, strength: float) -> None:
    image, positions = phantom(kind, apart_um=apart_um, strength=strength)
    found = find_nuclei(image)
    assert len(found) == pytest.approx(len(positions), rel=0.1)
    rows, columns = image.frame.fractions(found[:, 0], found[:, 1])
    nearest = np.hypot(positions[:, :1] - columns, positions[:, 1:] - rows).min(axis=1)
    assert (nearest * PIXEL_UM < kind.nucleus_um / 2).mean() > 0.93


def test_nothing_is_found_without_nuclei() -> None:
    rng = np.random.default_rng(0)
    for shade in (250, 190, 120):
        noisy = (shade + rng.normal(0, 2, (200, 200, 3))).clip(0, 255).astype(np.uint8)
        assert len(find_nuclei(picture(noisy))) == 0


def test_only_what_the_mask_holds_counts() -> None:
    image, _ = phantom(Kind(), apart_um=10.0)
    everywhere = find_nuclei(image)
    coarse = Frame(x=1000.0, y=2000.0, downsample=80.0, shape=(5, 10), mpp=image.frame.mpp)
    upper = np.zeros((5, 10), dtype=np.bool_)
    upper[:, :5] = True
    left = find_nuclei(image, within=Mask(frame=coarse, array=upper))
    # the mask covers the upper half of the picture, and the left half of its width
    expected = everywhere[(everywhere[:, 0] < 1400) & (everywhere[:, 1] < 2400)]
    assert left.tolist() == expected.tolist()
    assert 0 < len(left) < len(everywhere)


def test_shifting_and_turning_moves_the_nuclei_with_it() -> None:
    image, _ = phantom(Kind(), apart_um=10.0)
    turned = picture(np.ascontiguousarray(np.rot90(image.array, 2)))
    assert len(find_nuclei(turned)) == pytest.approx(len(find_nuclei(image)), abs=2)


@pytest.mark.parametrize("centre", ["0_patient_006_node_1", "1_patient_024_node_2", "2_patient_056_node_1"])
def test_a_count_on_real_tissue_is_about_that_by_eye(centre: str, real_data: Callable[[str], Path]) -> None:
    with Pillow.open(real_data(f"centres/centre_{centre}.jpeg")) as tile:
        crop = np.array(tile.convert("RGB"))[700:956, 700:956].copy()
    # counted by eye: 60 to 90 nuclei in each of these crops of 62 um
    assert 55 <= len(find_nuclei(picture(crop, pixel_um=0.243))) <= 105


def test_misuse() -> None:
    image = picture(np.zeros((8, 8, 3), dtype=np.uint8), pixel_um=2.0)
    with pytest.raises(ResolutionError, match="too coarse to see nuclei"):
        find_nuclei(image)
    with pytest.raises(ValueError, match="diameter"):
        find_nuclei(image, nucleus_um=0.0)
