from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slide_files import ArraySlide
from torch import nn
from torch.nn import functional

from wsi.cnn import inference
from wsi.cnn.architectures import NETWORKS, read_architecture
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.network import weight_shapes
from wsi.cnn.resnet import ResNet, ResNetArchitecture, ResNetName
from wsi.raster import Mask

NAMES: tuple[ResNetName, ...] = ("resnet18", "resnet34", "resnet50")
# torchvision's own counts of learned numbers, with the 1,000 classes of ImageNet
PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}
FIELDS = {"resnet18": 435, "resnet34": 899, "resnet50": 427}


def settled(network: ResNetName = "resnet18", **changes: Any) -> ResNet:
    """A network whose normalisations do something."""
    built = ResNetArchitecture(network=network, **changes).build(
        mean=(200.0, 150.0, 180.0), std=(30.0, 40.0, 35.0), seed=3
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in built.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            elif re.search(r"(bn\d|downsample\.1)\.(weight|bias)$", name):
                value.copy_(0.3 * torch.rand(value.shape, generator=generator) + 0.3)
            elif name == "fc.weight":
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return built.eval()


def noise(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def as_published(network: ResNet, images: torch.Tensor) -> torch.Tensor:
    """The logits at each place of the padded network of the paper, written from its description."""
    state = network.state_dict()

    def normed(features: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(features, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def convolved(features: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(features, weight, stride=stride, padding=weight.shape[-1] // 2)

    features = normed(convolved(network.normalised(images), "conv1", 2), "bn1").relu()
    features = functional.max_pool2d(features, 3, 2, 1)
    for group in (1, 2, 3, 4):
        blocks = {name.split(".")[1] for name in state if name.startswith(f"layer{group}.")}
        for block in range(len(blocks)):
            at = f"layer{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            is_bottleneck = f"{at}.conv3.weight" in state
            strides = (1, stride, 1) if is_bottleneck else (stride, 1)
            inner = features
            for number, step in enumerate(strides, 1):
                inner = normed(convolved(inner, f"{at}.conv{number}", step), f"{at}.bn{number}")
                inner = inner.relu() if number < len(strides) else inner
            if f"{at}.downsample.0.weight" in state:
                features = normed(convolved(features, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            features = (features + inner).relu()
    return functional.linear(features.permute(0, 2, 3, 1), state["fc.weight"], state["fc.bias"]).permute(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_and_numbers_of_weights_are_torchvisions(name: ResNetName) -> None:
    shapes = weight_shapes(ResNetArchitecture(network=name, classes=1000))
    learned = {key: shape for key, shape in shapes.items() if "running" not in key}
    assert sum(int(np.prod(shape)) for shape in learned.values()) == PARAMETERS[name]
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer4.0.downsample.0.weight"][0] == shapes["fc.weight"][1]
    assert {"bn1.running_mean", "layer1.0.bn1.bias", "layer2.1.conv2.weight", "fc.bias"} <= shapes.keys()
    assert ("layer1.0.downsample.0.weight" in shapes) == (name == "resnet50")


@pytest.mark.parametrize("name", NAMES)
def test_field_and_stride_are_those_of_the_architecture(name: ResNetName) -> None:
    architecture = NETWORKS[name]
    assert (architecture.receptive_field_px, architecture.stride_px) == (FIELDS[name] + 1, 32)
    assert (architecture.receptive_field_px - architecture.stride_px) % 2 == 0
    assert read_architecture(architecture.to_json()) == architecture


@pytest.mark.slow
def test_a_cell_sees_its_field_and_nothing_else() -> None:
    network = settled()
    field = network.architecture.receptive_field_px
    # a smooth stand-in for ReLU and the maximum, so that no path is shut by chance
    image = noise(field + 64).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "relu", lambda features, inplace: functional.softplus(features) + 0 * inplace)
        patch.setattr(functional, "max_pool2d", functional.avg_pool2d)
        logits = network(image)
    assert logits.shape == (1, 2, 3, 3)
    (gradient,) = torch.autograd.grad(logits[0, :, 1, 2].abs().sum(), image)
    touched = np.argwhere(gradient[0].abs().sum(0).numpy() > 0)
    assert touched.min(0).tolist() == [32, 64]
    assert touched.max(0).tolist() == [32 + field - 2, 64 + field - 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_away_from_the_edge_it_is_the_published_network(name: ResNetName) -> None:
    network = settled(name)
    side = network.architecture.receptive_field_px + 32
    image = noise(side)
    first = FIELDS[name] // 2  # the pixel in the middle of the first cell's field
    with torch.inference_mode():
        valid = network(image)
        # padded networks centre their places on pixels 0, 32, 64 of what they are given
        padded = as_published(network, image[..., first % 32 :, first % 32 :])
    skip = first // 32
    inside = padded[..., skip : skip + valid.shape[2], skip : skip + valid.shape[3]]
    torch.testing.assert_close(valid, inside, rtol=1e-3, atol=1e-3)
    assert float(valid.std()) > 0.01


@pytest.mark.slow
def test_the_average_of_places_is_that_of_their_logits() -> None:
    image = noise(436 + 32 * 3)
    with torch.inference_mode():
        single, pooled = settled()(image), settled(pooled=3)(image)
    assert pooled.shape == (1, 2, 2, 2)
    torch.testing.assert_close(pooled, functional.avg_pool2d(single, 3, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride", "pooled"), [("resnet18", 8, 1), ("resnet50", 16, 1), ("resnet18", 16, 2)])
def test_a_finer_stride_keeps_the_cells_of_the_coarse_one(name: ResNetName, stride: int, pooled: int) -> None:
    coarse, fine = settled(name, pooled=pooled), settled(name, stride_px=stride, pooled=pooled)
    fine.load_state_dict(coarse.state_dict())
    image = noise(coarse.architecture.receptive_field_px + 32)
    with torch.inference_mode():
        few, many = coarse(image), fine(image)
    step = 32 // stride
    assert many.shape[2] == step + 1 == fine.architecture.cells(image.shape[2])
    torch.testing.assert_close(many[..., ::step, ::step], few, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_keeps_the_function(name: ResNetName) -> None:
    network = settled(name, pooled=2)
    network.temperature = 1.5
    image = noise(network.architecture.receptive_field_px)
    with torch.inference_mode():
        plain, folded = network(image), network.folded()(image)
    torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-3)
    assert not [module for module in network.folded().modules() if isinstance(module, nn.BatchNorm2d)]
    assert isinstance(network.bn1, nn.BatchNorm2d)


@pytest.mark.slow
def test_windows_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BLOCK_CELLS", 4)
    checkpoint = Checkpoint(network=settled(), mpp=2.0)
    array = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    slide = ArraySlide(array)
    frame = slide.frame_at(2.0)
    tissue = Mask(frame=frame, array=np.ones(frame.shape, np.bool_))
    whole = inference.predict(checkpoint, array, device="cpu", workers=1)
    for window, workers, batch in ((128, 2, 1), (256, 1, 3)):
        heatmap = inference.infer(
            slide, checkpoint, tissue=tissue, window_px=window, workers=workers, batch=batch, device="cpu"
        )
        assert heatmap.array.shape == (5, 5)
        np.testing.assert_array_equal(heatmap.array, whole)
    assert whole.std() > 0


@pytest.mark.slow
def test_a_residual_checkpoint_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(network=settled(pooled=2, stride_px=16), mpp=0.5)
    save_checkpoint(tmp_path / "m", checkpoint)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.digest == checkpoint.digest
    assert loaded.architecture == checkpoint.architecture
    assert (loaded.stride_px, loaded.receptive_field_px) == (16, 468)


@pytest.mark.slow
def test_new_networks_depend_on_their_seed_only() -> None:
    torch.manual_seed(1)
    first = NETWORKS["resnet18"].build(seed=3).weights()
    torch.manual_seed(2)
    second, other = NETWORKS["resnet18"].build(seed=3).weights(), NETWORKS["resnet18"].build(seed=4).weights()
    assert all((first[name] == second[name]).all() for name in first)
    assert (first["conv1.weight"] != other["conv1.weight"]).any()
    assert (first["layer1.0.bn2.weight"] == 0).all()


@pytest.mark.parametrize(
    "odd", [{"network": "resnet101"}, {"classes": 1}, {"pooled": 0}, {"pooled": 2.0}, {"stride_px": 4}]
)
def test_absurd_residual_networks_are_refused(odd: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"network": "resnet18"}
    with pytest.raises(ValueError, match=r"network|classes|whole|stride"):
        ResNetArchitecture(**settings | odd)
