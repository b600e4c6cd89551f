from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional
from typer.testing import CliRunner

from staging.commands.model import app
from wsi.cnn.checkpoint import load_checkpoint
from wsi.cnn.imports import LAYOUTS, Layout, import_weights
from wsi.cnn.resnet import ResNet, ResNetArchitecture, ResNetName
from wsi.errors import CheckpointError

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
Tensors = dict[str, torch.Tensor]


@cache
def torchvision_state(network: ResNetName = "resnet18", classes: int = 1000) -> Tensors:
    """A state_dict as torchvision saves it, with the counters of batches."""
    state = ResNetArchitecture(network=network, classes=classes).build(seed=7).state_dict()
    assert "bn1.num_batches_tracked" in state
    return dict(state)


def in_sequential(state: Tensors, body: str, head: str) -> Tensors:
    """The children of torchvision's network in a Sequential, as MONAI's and TIAToolbox's classes hold them."""
    renamed = {}
    for name, value in state.items():
        child, _, rest = name.partition(".")
        renamed[f"{head}.{rest}" if child == "fc" else f"{body}.{CHILDREN[child]}.{rest}"] = value
    return renamed


def monai_state() -> Tensors:
    state = in_sequential(torchvision_state(classes=2), "features", "fc")
    weight = torch.randn((1, 512, 1, 1), generator=torch.Generator().manual_seed(2))
    return state | {"fc.weight": weight, "fc.bias": torch.tensor([0.3])}


def tiatoolbox_state(network: ResNetName = "resnet18", classes: int = 2) -> Tensors:
    return in_sequential(torchvision_state(network, classes), "feat_extract", "classifier")


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def image(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_weights_of_torchvision_keep_their_features(tmp_path: Path, name: ResNetName) -> None:
    state = torchvision_state(name)
    checkpoint = import_weights(saved(tmp_path / "w.pth", OrderedDict(state)), "torchvision", mpp=0.25)
    assert checkpoint.architecture == ResNetArchitecture(network=name)
    assert checkpoint.mpp == 0.25
    assert checkpoint.network.mean == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
    assert checkpoint.network.std == pytest.approx((0.229 * 255, 0.224 * 255, 0.225 * 255))
    found = checkpoint.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items() if not key.startswith("fc."))
    assert checkpoint.provenance["head"] == "untrained"
    field = checkpoint.receptive_field_px
    with torch.inference_mode():
        assert checkpoint.network(image(field)).softmax(dim=1).tolist() == [[[[0.5]], [[0.5]]]]


@pytest.mark.slow
def test_the_tumour_bundle_of_monai_judges_as_its_sigmoid(tmp_path: Path) -> None:
    state = monai_state()
    checkpoint = import_weights(saved(tmp_path / "model.pt", {"model": state}), "monai")
    assert checkpoint.architecture == ResNetArchitecture(network="resnet18", pooled=7)
    assert (checkpoint.mpp, checkpoint.provenance["head"]) == (0.25, "imported")
    pixels = image(checkpoint.receptive_field_px)
    network = checkpoint.network
    assert isinstance(network, ResNet)
    # MONAI's ScaleIntensityRange to -1..1, features, average over 7 x 7, a convolution of one output, sigmoid
    torch.testing.assert_close(network.normalised(pixels), pixels / 255 * 2 - 1)
    single = ResNetArchitecture(network="resnet18").build(mean=network.mean, std=network.std).eval()
    single.load_state_dict(network.state_dict())
    with torch.inference_mode():
        single.fc = torch.nn.Linear(512, 512)
        single.fc.weight.copy_(torch.eye(512))
        single.fc.bias.zero_()
        features = functional.avg_pool2d(single(pixels), 7, 1)
        logit = functional.conv2d(features, state["fc.weight"], state["fc.bias"])
        found = network(pixels).softmax(dim=1)[:, 1:]
    torch.testing.assert_close(found, logit.sigmoid(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tumour", [0, 1])
def test_pcam_weights_of_tiatoolbox_keep_their_head(tmp_path: Path, tumour: int) -> None:
    state = {f"module.{name}": value for name, value in tiatoolbox_state("resnet50").items()}
    checkpoint = import_weights(saved(tmp_path / "resnet50-pcam.pth", state), "tiatoolbox", tumour=tumour, stride_px=16)
    assert checkpoint.architecture == ResNetArchitecture(network="resnet50", pooled=3, stride_px=16)
    assert (checkpoint.mpp, checkpoint.network.mean, checkpoint.network.std) == (1.0, (0, 0, 0), (255, 255, 255))
    weight = checkpoint.network.state_dict()["fc.weight"]
    assert torch.equal(weight[1], state["module.classifier.weight"][tumour])
    assert torch.equal(weight[0], state["module.classifier.weight"][1 - tumour])


def test_safetensors_and_half_precision_are_read(tmp_path: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in torchvision_state().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    found = import_weights(tmp_path / "w.safetensors", "torchvision").network.state_dict()
    assert torch.equal(found["conv1.weight"], state["conv1.weight"].float())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def without(state: Tensors, *names: str) -> Tensors:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("layout", "content", "message"),
    [
        ("monai", tiatoolbox_state, "not part of monai's layout"),
        ("tiatoolbox", torchvision_state, "not part of tiatoolbox's layout"),
        ("torchvision", tiatoolbox_state, "not a ResNet-18, 34 or 50"),
        ("torchvision", lambda: {"features.0.weight": torch.zeros(3)}, "not a ResNet-18, 34 or 50"),
        ("torchvision", lambda: without(torchvision_state(), "layer2.0.bn1.bias"), r"layer2\.0\.bn1\.bias.*is missing"),
        ("torchvision", lambda: torchvision_state() | {"aux.weight": torch.zeros(2)}, r"aux\.weight.*not belong"),
        ("torchvision", lambda: torchvision_state() | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, r"\(64, 4, 7, 7\)"),
        ("torchvision", lambda: torchvision_state() | {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "NaN"),
        ("torchvision", lambda: torchvision_state() | {"bn1.running_var": -torch.ones(64)}, "negative variance"),
        ("torchvision", lambda: torchvision_state() | {"conv1.weight": torch.zeros(2, dtype=torch.int8)}, "int8"),
        ("torchvision", lambda: torchvision_state() | {"epoch": 3}, "epoch: is not a tensor"),
        (
            "torchvision",
            lambda: torchvision_state() | {"fc.weight": torch.zeros(2, 512, 3, 3)},
            "not a layer that classifies",
        ),
        ("torchvision", lambda: torchvision_state(classes=2) | {"fc.bias": torch.zeros(5)}, "biases for 2"),
        ("torchvision", lambda: without(torchvision_state(), "fc.weight"), "not a layer that classifies"),
        ("torchvision", lambda: [torch.zeros(3)], "no table of tensors"),
        ("torchvision", Bomb, "no code in it was run"),
        ("torchvision", lambda: {"state_dict": Bomb()}, "no code in it was run"),
        ("torchvision", lambda: ResNetArchitecture(network="resnet18").build(), "no code in it was run"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, content: Callable[[], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "w.pth", content())
    with pytest.raises(CheckpointError, match=message) as caught:
        import_weights(path, layout)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read|not a PyTorch file"),
        (b"PK\x03\x04" + bytes(200), "cannot be read|not a PyTorch file"),
        (bytes(8) + b"{}" + bytes(40), "cannot be read"),
        (pickle.dumps({"a": Bomb()}, protocol=2), "not a PyTorch file|no code"),
        (b"\x89HDF\r\n\x1a\n" + bytes(300), "cannot be read|not a PyTorch file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        import_weights(tmp_path / "w.pth", "torchvision")
    assert not (tmp_path / "exploded").exists()


def test_no_file_and_no_layout(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        import_weights(tmp_path / "absent", "monai")
    layout: Any = "timm"
    with pytest.raises(ValueError, match="torchvision, monai, tiatoolbox"):
        import_weights(tmp_path / "absent", layout)
    assert set(LAYOUTS) == {"torchvision", "monai", "tiatoolbox"}


@pytest.mark.slow
def test_the_command_writes_a_checkpoint(tmp_path: Path) -> None:
    weights, model = saved(tmp_path / "w.pth", tiatoolbox_state()), tmp_path / "model.safetensors"
    done = CliRunner().invoke(app, ["import", str(weights), "--layout", "tiatoolbox", "-o", str(model), "--mpp", "0.5"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["network"], told["mpp"], told["head"], told["receptive_field_px"]) == (
        "resnet18",
        0.5,
        "imported",
        500,
    )
    assert load_checkpoint(model).mpp == 0.5
    done = CliRunner().invoke(app, ["import", str(weights), "--layout", "keras", "-o", str(model)])
    assert done.exit_code == 2


@pytest.mark.slow
def test_importing_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", monai_state())
    first, second = (import_weights(path, "monai") for _ in range(2))
    assert first.digest == second.digest
    assert np.isfinite(first.network.weights()["fc.weight"]).all()
