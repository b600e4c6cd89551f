from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoint import TINY, fresh

from wsi.cnn.device import equal_convolutions, pick_device
from wsi.cnn.network import SMALL, Architecture, Layer, Network, weight_shapes
from wsi.errors import PathologyError


def test_small_has_the_promised_geometry() -> None:
    assert (SMALL.receptive_field_px, SMALL.stride_px, SMALL.margin_px, SMALL.centre_px) == (96, 8, 44, 47.5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=4),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 100),
)
def test_a_cell_sees_its_receptive_field_and_nothing_else(
    shapes: list[tuple[int, int, int]], row: int, column: int, seed: int
) -> None:
    try:
        architecture = Architecture(
            tuple(Layer(4, kernel, min(stride, kernel), dilation) for kernel, stride, dilation in shapes)
        )
    except ValueError:
        return  # cells off the pixel grid
    field, stride = architecture.receptive_field_px, architecture.stride_px
    size = field + 6 * stride
    network = Network(architecture, seed=seed).eval().double()
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 255
    image.requires_grad_()
    # a smooth stand-in for ReLU, so that no path is shut by chance
    for index, module in enumerate(network.body):
        if isinstance(module, torch.nn.ReLU):
            network.body[index] = torch.nn.Softplus()
    logits = network.head(network.body(image / 64 - 2))
    assert logits.shape == (1, 2, 7, 7) == (1, 2, architecture.cells(size), architecture.cells(size))
    (gradient,) = torch.autograd.grad(logits[0, :, row, column].abs().sum(), image)
    touched = np.argwhere(gradient[0].abs().sum(0).numpy() > 0)
    low, high = touched.min(0), touched.max(0)
    assert low.tolist() == [row * stride, column * stride]
    assert high.tolist() == [row * stride + field - 1, column * stride + field - 1]
    assert ((low + high) / 2 == np.array([row, column]) * stride + architecture.centre_px).all()


def test_changing_a_pixel_changes_exactly_the_cells_that_see_it() -> None:
    network = fresh(SMALL).network.folded()
    image = torch.randint(0, 256, (1, 3, 256, 256), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        before = network(image)
        image[0, :, 140, 165] += 100
        changed = np.argwhere((network(image) != before).any(dim=1)[0].numpy())
    rows = [i for i in range(21) if i * 8 <= 140 < i * 8 + 96]
    columns = [j for j in range(21) if j * 8 <= 165 < j * 8 + 96]
    assert changed.min(0).tolist() == [rows[0], columns[0]]
    assert changed.max(0).tolist() == [rows[-1], columns[-1]]


def test_folding_keeps_the_function() -> None:
    network = fresh(SMALL).network
    image = torch.randint(0, 256, (2, 3, 136, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        plain, folded = network(image), network.folded()(image.float())
    assert folded.shape == plain.shape == (2, 2, 6, 9)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Architecture(()),
        lambda: Architecture((Layer(4, 3, 2),)),  # field 3, stride 2: cells off the grid
        lambda: Architecture((Layer(4, 3),), classes=1),
        lambda: Layer(0, 3),
        lambda: Layer(4, 2, 3),
        lambda: Layer(4, 3, dilation=0),
        lambda: Layer(4, 10**9),
        lambda: Layer(4.0, 3),  # type: ignore[arg-type]
        lambda: Architecture((Layer(1, 1),) * 100),
    ],
)
def test_absurd_architectures_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build()


def test_new_networks_depend_on_their_seed_only() -> None:
    torch.manual_seed(1)
    first = Network(TINY, seed=3).weights()
    torch.manual_seed(2)
    second, other = Network(TINY, seed=3).weights(), Network(TINY, seed=4).weights()
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    assert {name: array.shape for name, array in first.items()} == weight_shapes(TINY)


def test_absent_devices_are_named() -> None:
    with pytest.raises(PathologyError, match="tpu"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"


def test_equal_convolutions_are_made_by_cudnn() -> None:
    def flags() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32

    before = flags()
    with equal_convolutions():
        assert flags() == (True, True, False, False)
    assert flags() == before


@pytest.mark.slow
def test_only_the_network_loads_torch() -> None:
    code = "import sys, wsi, wsi.tiles, wsi.stain; sys.exit('torch' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
