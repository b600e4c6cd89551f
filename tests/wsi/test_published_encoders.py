"""Public encoders from their weights, against transformers' programs on small random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from wsi.cnn.encoders.description import Description, known_encoders
from wsi.cnn.encoders.encoder import load_encoder
from wsi.cnn.encoders.published import load_published
from wsi.cnn.encoders.weights import read_weights, timm_names
from wsi.errors import CheckpointError

pytestmark = pytest.mark.slow  # transformers takes seconds to import

CPU = torch.device("cpu")
WIDTH, HEADS, DEPTH, PATCH, GRID = 48, 3, 2, 14, 3
SIZE = PATCH * GRID

# name: features, mean of red, registers, patch, um/px; from the encoders' model cards
PUBLISHED = {
    "uni": (1024, 0.485, 0, 16, 0.5),
    "uni2-h": (1536, 0.485, 8, 14, 0.5),
    "virchow": (2560, 0.485, 0, 14, 0.5),
    "virchow2": (2560, 0.485, 4, 14, 0.5),
    "h-optimus-0": (1536, 0.707223, 4, 14, 0.5),
    "h-optimus-1": (1536, 0.707223, 4, 14, 0.5),
    "h0-mini": (1536, 0.707223, 4, 14, 0.5),
    "prov-gigapath": (1536, 0.485, 0, 16, 0.5),
    "phikon": (768, 0.485, 0, 16, 0.5),
    "phikon-v2": (1024, 0.485, 0, 16, 0.5),
    "hibou-b": (768, 0.7068, 4, 14, 0.5),
    "hibou-l": (1024, 0.7068, 4, 14, 0.5),
    "midnight-12k": (3072, 0.5, 0, 14, 0.5),
    "openmidnight": (1536, 0.485, 4, 14, 0.5),
    "kaiko-s8": (384, 0.5, 0, 8, 0.5),
    "kaiko-s16": (384, 0.5, 0, 16, 0.5),
    "kaiko-b8": (768, 0.5, 0, 8, 0.5),
    "kaiko-b16": (768, 0.5, 0, 16, 0.5),
    "kaiko-l14": (1024, 0.5, 4, 14, 0.5),
    "lunit-s8": (384, 0.70322989, 0, 8, 0.5),
    "lunit-s16": (384, 0.70322989, 0, 16, 0.5),
    "gpfm": (1024, 0.485, 0, 14, 0.5),
    "retccl": (2048, 0.485, None, None, 1.0),
    "lunit-bt": (2048, 0.70322989, None, None, 0.5),
    "lunit-swav": (2048, 0.70322989, None, None, 0.5),
    "lunit-moco": (2048, 0.70322989, None, None, 0.5),
}


def described(**changed: Any) -> Description:
    plain = Description(
        name="small", network="vit", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mpp=0.5, size_px=SIZE, heads=HEADS
    )
    return replace(plain, **changed)


def random_weights(network: torch.nn.Module) -> None:
    """Fill a network so that no part of it is without influence."""
    generator = torch.Generator().manual_seed(7)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


def tiles(size: int = SIZE) -> torch.Tensor:
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(1))


def dinov2(*, registers: int = 0, is_gated: bool = False, patch: int = PATCH) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": patch * GRID,
        "patch_size": patch,
        "use_swiglu_ffn": is_gated,
    }
    made: Any = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes))
        if registers
        else Dinov2Model(Dinov2Config(**sizes))
    )
    random_weights(made)
    return made.eval()


def vit() -> Any:
    made: Any = ViTModel(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            image_size=SIZE,
            patch_size=PATCH,
        ),
        add_pooling_layer=False,
    )
    random_weights(made)
    return made.eval()


def pooled(model: Any, images: torch.Tensor, registers: int, pooling: str, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        tokens: torch.Tensor = model(images, **options).last_hidden_state
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(dim=1)], dim=1)


def found(path: Path, description: Description, images: torch.Tensor) -> torch.Tensor:
    network = load_published(path, description, size_px=images.shape[-1], device=CPU)
    with torch.inference_mode():
        return network(images)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """Save a model as its library publishes it."""

    def save(model: Any) -> Path:
        folder = tmp_path_factory.mktemp("published")
        model.save_pretrained(folder)
        return folder / "model.safetensors"

    return save


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize(("registers", "is_gated"), [(0, False), (0, True), (4, False), (4, True), (8, True)])
def test_dinov2_of_transformers(
    saved: Callable[[Any], Path], registers: int, is_gated: Any, patch: int, pooling: Any
) -> None:
    model, images = dinov2(registers=registers, is_gated=is_gated, patch=patch), tiles(patch * GRID)
    path = saved(model)
    wanted = pooled(model, images, registers, pooling)
    got = found(path, described(pooling=pooling, registers=registers, patch_px=patch), images)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_vit_of_transformers(saved: Callable[[Any], Path]) -> None:
    model = vit()
    got = found(saved(model), described(epsilon=1e-12), tiles())
    torch.testing.assert_close(got, pooled(model, tiles(), 0, "cls"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("grid", [2, 5])
def test_tiles_of_another_size(saved: Callable[[Any], Path], registers: int, grid: int) -> None:
    model, images = dinov2(registers=registers), tiles(PATCH * grid)
    path = saved(model)
    wanted = pooled(model, images, registers, "cls+mean")
    # transformers resamples with anti-aliasing where there are registers, and else without
    ways = [found(path, described(pooling="cls+mean", resampling=way), images) for way in ("plain", "antialiased")]
    torch.testing.assert_close(ways[registers > 0], wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ways[registers == 0], wanted, rtol=1e-5, atol=1e-5)


def as_timm(path: Path, *, embedded: int, registers: int) -> dict[str, torch.Tensor]:
    """The weights of a model of transformers with timm's names, and its kinds of position embeddings."""
    named = timm_names(read_weights(path))
    if embedded == 0:
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    elif embedded == 1 + registers and registers:
        of_registers = torch.randn((1, registers, WIDTH), generator=torch.Generator().manual_seed(2))
        named["reg_token"] = named["reg_token"] - of_registers
        named["pos_embed"] = torch.cat([named["pos_embed"][:, :1], of_registers, named["pos_embed"][:, 1:]], dim=1)
    return named


@pytest.mark.parametrize(("registers", "embedded"), [(0, 1), (4, 0), (4, 5), (8, 0), (0, 0)])
def test_names_and_embeddings_of_timm(
    saved: Callable[[Any], Path], tmp_path: Path, registers: int, embedded: int
) -> None:
    model = dinov2(registers=registers, is_gated=True)
    named = as_timm(saved(model), embedded=embedded, registers=registers)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: one.contiguous() for name, one in named.items()}, path)
    got = found(path, described(pooling="cls+mean"), tiles())
    torch.testing.assert_close(got, pooled(model, tiles(), registers, "cls+mean"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_names_of_dinov2_itself_in_a_training_checkpoint(
    saved: Callable[[Any], Path], tmp_path: Path, is_chunked: Any
) -> None:
    model = dinov2(registers=4, is_gated=True)
    own = {"backbone.mask_token": torch.zeros(1, WIDTH), "dino_head.last_layer.weight": torch.zeros(3, 3)}
    for name, tensor in timm_names(read_weights(saved(model))).items():
        given = name.replace("reg_token", "register_tokens").replace("fc1", "w12").replace("fc2", "w3")
        own[f"backbone.{given.replace('blocks.', 'blocks.0.') if is_chunked else given}"] = tensor
    path = tmp_path / "teacher.pth"
    torch.save({"teacher": own}, path)
    got = found(path, described(registers=4), tiles())
    torch.testing.assert_close(got, pooled(model, tiles(), 4, "cls"), rtol=1e-5, atol=1e-5)


def test_a_network_without_biases_and_scales(saved: Callable[[Any], Path], tmp_path: Path) -> None:
    model = dinov2()
    named = timm_names(read_weights(saved(model)))
    with torch.inference_mode():
        for block in range(DEPTH):
            named[f"blocks.{block}.attn.qkv.bias"].zero_()
            for scale in ("ls1", "ls2"):
                named[f"blocks.{block}.{scale}.gamma"].fill_(1)
    path, whole = tmp_path / "bare.safetensors", tmp_path / "whole.safetensors"
    safetensors.torch.save_file(named, whole)
    bare = {name: one for name, one in named.items() if "qkv.bias" not in name and "gamma" not in name}
    safetensors.torch.save_file(bare, path)
    torch.testing.assert_close(found(path, described(), tiles()), found(whole, described(), tiles()))


def test_resnet50_of_transformers(tmp_path: Path) -> None:
    model: Any = ResNetModel(ResNetConfig(layer_type="bottleneck", downsample_in_bottleneck=False))
    random_weights(model)
    names: dict[str, str] = {}
    for part, own in (("convolution", "conv"), ("normalization", "bn")):
        names[f"embedder.embedder.{part}"] = f"{own}1"
        for stage in range(4):
            names[f"encoder.stages.{stage}.layers.0.shortcut.{part}"] = (
                f"layer{stage + 1}.0.downsample.{0 if own == 'conv' else 1}"
            )
            for block in range(6):
                for layer in range(3):
                    there = f"encoder.stages.{stage}.layers.{block}.layer.{layer}.{part}"
                    names[there] = f"layer{stage + 1}.{block}.{own}{layer + 1}"
    weights = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if kind == "running_var":
            tensor.abs_().add_(0.5)
        if kind == "weight" and "convolution" in layer:
            tensor.mul_(0.2)
        weights[f"{names[layer]}.{kind}"] = tensor
    path = tmp_path / "resnet.safetensors"
    safetensors.torch.save_file(weights | {"fc.weight": torch.zeros(5, 2048), "fc.bias": torch.zeros(5)}, path)
    images = tiles(96)
    with torch.inference_mode():
        wanted = model.eval()(images).pooler_output.flatten(1)
    got = found(path, described(network="resnet50"), images)
    assert got.shape == (2, 2048)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    safetensors.torch.save_file({**weights, "layer5.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"layer5\.0\.conv1\.weight is no weight of a ResNet-50"):
        found(path, described(network="resnet50"), images)
    del weights["layer2.1.bn2.running_mean"]
    safetensors.torch.save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"there is no weight layer2\.1\.bn2\.running_mean"):
        found(path, described(network="resnet50"), images)


def test_the_table_is_what_was_published() -> None:
    known = known_encoders()
    assert known.keys() == PUBLISHED.keys()
    for name, one in known.items():
        assert (one.features, one.mean[0], one.registers, one.patch_px, one.mpp) == PUBLISHED[name], name
        assert one.source.startswith("https://")
        assert one.licence
        assert one.network == "resnet50" or (one.width or 0) % (one.heads or 0) == 0
        assert one.patch_px is None or one.size_px % one.patch_px == 0


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(saved: Callable[[Any], Path]) -> Path:
    return saved(dinov2(registers=4))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"registers": 8}, "its registers is 4 and not 8"),
        ({"depth": 24}, "its depth is 2 and not 24"),
        ({"width": 1536}, "its width is 48 and not 1536"),
        ({"patch_px": 16}, "its patch_px is 14 and not 16"),
        ({"heads": 5}, "cannot be divided among 5 heads"),
        ({"network": "resnet50"}, "there is no weight conv1"),
    ],
)
def test_weights_of_another_network_are_refused(small: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        found(small, described(**changed), tiles())
    assert str(small) in str(error.value)


def test_wrong_pooling_heads_and_mean_change_the_features(small: Path) -> None:
    right = found(small, described(pooling="cls+mean"), tiles())
    assert found(small, described(), tiles()).shape != right.shape
    assert not torch.allclose(found(small, described(pooling="cls+mean", heads=6), tiles()), right, atol=1e-3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    one, other = (
        load_encoder(small, size_px=SIZE, mean=mean, description=described(), device="cpu").encode(pixels)
        for mean in ((0.5, 0.5, 0.5), (0.6, 0.5, 0.5))
    )
    assert not np.allclose(one, other, atol=1e-3)


def changed_weights(small: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = safetensors.torch.load_file(small)
    change(weights)
    path = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.update(surprise=torch.zeros(1)), "1 weights are of no plain vision transformer, as surprise"),
        (lambda one: one.pop("layernorm.weight"), r"there is no weight norm\.weight"),
        (
            lambda one: one.pop("encoder.layer.1.attention.attention.key.bias"),
            r"blocks\.1\.attn\.qkv\.bias is there twice, or only as query and value",
        ),
        (
            lambda one: one.update({"encoder.layer.1.mlp.fc2.bias": torch.zeros(3)}),
            r"blocks\.1\.mlp\.fc2\.bias has the shape \(3,\) and not \(48,\)",
        ),
        (lambda one: one.update({"blocks.0.norm1.weight": torch.zeros(3)}), "and another weight are both"),
        (
            lambda one: one.update({"encoder.layer.0.attention.attention.key.weight": torch.zeros(3)}),
            r"blocks\.0\.attn\.qkv\.weight is there in parts of different shapes",
        ),
        (lambda one: one.update({"blocks.999999999.x": torch.zeros(1)}), r"there is no weight blocks\.2\."),
        (lambda one: one.update({"blocks.x.y": torch.zeros(1)}), r"there is no weight blocks\.2\."),
        (
            lambda one: one.update({"embeddings.position_embeddings": torch.zeros(1, 0, WIDTH)}),
            "0 tokens, which are no square grid",
        ),
        (
            lambda one: one.update({"embeddings.position_embeddings": torch.zeros(1, 12, WIDTH)}),
            "12 tokens, which are no square grid",
        ),
        (lambda one: one.clear(), "there is no weight patch_embed"),
    ],
)
def test_odd_weights_are_named_and_refused(
    small: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        found(changed_weights(small, tmp_path, change), described(), tiles())


def test_tiles_of_no_whole_patches_are_refused(small: Path) -> None:
    with pytest.raises(CheckpointError, match="tiles of 40 px are no multiple of its patches of 14 px"):
        load_encoder(small, size_px=40, description=described(), device="cpu")


class Harmful:
    """What must not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_files_that_could_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"cls_token": Harmful()}, path)
    with pytest.raises(CheckpointError, match="is no file of weights alone"):
        load_encoder(tmp_path, size_px=SIZE, description=described(), device="cpu")
    assert not Path("harmed").exists()
    for content in (b"", b"PK\x03\x04", b"\x80\x04", b"12345678{not json", b"text"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is no file of weights alone|cannot be read"):
            load_encoder(path, size_px=SIZE, description=described(), device="cpu")
    torch.save({"cls_token": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds more than named tensors"):
        load_encoder(path, size_px=SIZE, description=described(), device="cpu")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        load_encoder(tmp_path, size_px=SIZE, description=described(), device="cpu")
