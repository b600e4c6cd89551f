from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from wsi.cnn.encoders.encoder import load_encoder
from wsi.cnn.encoders.exported import load_exported
from wsi.errors import CheckpointError, PathologyError

pytestmark = pytest.mark.slow  # its fixtures take seconds

SIZE = 32
has_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")),
    reason="onnxruntime and onnx are not installed: the extra onnx is optional",
)


class Convolutional(nn.Module):
    """With what networks of this kind hold: batch norm, changes in place, a skip connection, a constant."""

    def __init__(self, features: int = 6, *, groups: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Conv2d(3, features, 3, 2, 1, bias=False, groups=groups)
        self.norm = nn.BatchNorm2d(features)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        with torch.no_grad():
            for value in self.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape, generator=generator) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        y = self.second(x)
        y += x
        return nn.functional.adaptive_avg_pool2d(y, 1).flatten(1) * torch.tensor(0.5)


class Transformer(nn.Module):
    """With what vision transformers hold: patches, a class token, positions, fused attention, shapes from the batch."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16, generator=generator))
        self.position = nn.Parameter(torch.randn(1, 17, 16, generator=generator))
        self.register_buffer("scale", torch.full((16,), 0.5), persistent=False)
        self.three = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        for parameter in (*self.patch.parameters(), *self.three.parameters()):
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        batch, tokens, width = x.shape
        q, k, v = self.three(self.norm(x)).reshape(batch, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return nn.functional.gelu(x + mixed)[:, 0] * self.scale


def export(path: Path, module: nn.Module, *, dynamic: bool = True, size: int = SIZE, **options: Any) -> Path:
    shape: Any = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    example = (torch.zeros(2, 3, size, size, dtype=options.get("dtype", torch.float32)),)
    program = torch.export.export(module, example, dynamic_shapes=shape)
    torch.export.save(program.run_decompositions() if options.get("decomposed") else program, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("encoders") / "plain.pt2", Convolutional().eval())


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with other members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name.partition("/")[2], old.read(name))
            if data is not None:
                new.writestr(f"{target.stem}/{name.partition('/')[2]}", data)
    return target


def with_model(source: Path, target: Path, change: Callable[[Any], object]) -> Path:
    def edit(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        model = json.loads(data)
        change(model)
        return json.dumps(model).encode()

    return rewritten(source, target, edit)


def noise(count: int, size: int = SIZE, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.mark.parametrize("module", [Convolutional(), Transformer()], ids=["convolutional", "transformer"])
@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_network_computes_what_the_module_does(
    tmp_path: Path, module: nn.Module, *, decomposed: bool
) -> None:
    network = load_exported(export(tmp_path / "e.pt2", module.eval(), decomposed=decomposed))
    assert network.input_shape == (None, 3, SIZE, SIZE)
    for count in (1, 2, 5):
        batch = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            torch.testing.assert_close(network(batch), module(batch), rtol=1e-5, atol=1e-5)


def test_pixels_are_normalised_as_said(exported: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    encoder = load_encoder(exported, size_px=SIZE, mean=mean, std=std, device="cpu")
    pixels = noise(4)
    given = (pixels.astype(np.float64) / 255 - mean) / std
    with torch.inference_mode():
        expected = Convolutional().eval()(torch.from_numpy(given).permute(0, 3, 1, 2).float()).numpy()
    np.testing.assert_allclose(encoder.encode(pixels), expected, rtol=1e-4, atol=1e-5)
    assert (encoder.kind, encoder.width) == ("torch.export", 6)
    assert encoder.to_json()["mean"] == [0.1, 0.2, 0.3]
    assert load_encoder(exported, size_px=SIZE, device="cpu").mean == (0.485, 0.456, 0.406)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_code_in_an_archive_never_runs(exported: Path, tmp_path: Path) -> None:
    """torch.export.load itself does run it: that is why it is not used without being told to."""
    marker = tmp_path / "exploded"
    bomb = tmp_path / "bomb.pt"
    torch.save((Bomb(marker),), bomb)

    def sample(name: str, data: bytes) -> bytes:
        return bomb.read_bytes() if name.startswith("data/sample_inputs/") else data

    def weights(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return bomb.read_bytes() if name.startswith("data/weights/weight_") else data

    sampled = rewritten(exported, tmp_path / "sampled.pt2", sample)
    assert load_encoder(sampled, size_px=SIZE, device="cpu").width == 6
    with pytest.raises(CheckpointError, match=r"first.weight.*pickled.*--trust-model"):
        load_encoder(rewritten(exported, tmp_path / "weights.pt2", weights), size_px=SIZE, device="cpu")
    text = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def expression(model: Any) -> None:
        for value in model["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    load_encoder(with_model(exported, tmp_path / "shape.pt2", expression), size_px=SIZE, device="cpu")
    assert not marker.exists()
    load_encoder(sampled, size_px=SIZE, device="cpu", trust=True)  # the safe reader is enough: trust is not used up
    assert not marker.exists()
    with contextlib.suppress(TypeError):  # its warning that it has just done so has a wrong format
        torch.export.load(sampled)
    assert marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.relu.out",
        "torch.ops.aten.relu.__init__",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.load_library",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.trunc",
        "builtins.eval",
        "#handler.x",
        "",
    ],
)
def test_operations_that_are_not_listed_are_refused(exported: Path, tmp_path: Path, target: str) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["target"] = target

    with pytest.raises(CheckpointError, match="harmless"):
        load_exported(with_model(exported, tmp_path / "e.pt2", change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model["schema_version"].update(major=9), "schema version 9"),
        (lambda model: model["graph_module"]["graph"]["nodes"].clear(), "KeyError|fails"),
        (lambda model: model.pop("graph_module"), "not a readable torch.export file"),
        (lambda model: model["graph_module"]["signature"]["output_specs"].clear(), "0 outputs"),
        (
            lambda model: model["graph_module"]["signature"]["input_specs"][0].clear(),
            "not a readable torch.export file",
        ),
    ],
)
def test_damaged_archives_are_named(
    exported: Path, tmp_path: Path, change: Callable[[Any], object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_encoder(with_model(exported, tmp_path / "e.pt2", change), size_px=SIZE, device="cpu")
    assert "e.pt2" in str(caught.value)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if key not in {"metadata", "tensor_values"}:
            yield (*path, key)
            yield from paths_in(one, (*path, key))


ODD_VALUES = [None, True, -1, 0, 7, 2**63, "", "Infinity", [], {}, 1e308, [1, 2], {"as_int": 5}, {"as_none": True}]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from(ODD_VALUES))
def test_whatever_is_changed_ends_in_one_error(exported: Path, tmp_path: Path, where: int, odd: Any) -> None:
    def change(model: Any) -> None:
        within = model["graph_module"]
        paths = list(paths_in(within))
        *path, last = paths[where % len(paths)]
        for key in path:
            within = within[key]
        within[last] = odd

    archive = with_model(exported, tmp_path / "e.pt2", change)
    try:
        encoder = load_encoder(archive, size_px=SIZE, device="cpu")
    except CheckpointError as error:
        assert "e.pt2" in str(error)  # noqa: PT017  (either end is good)
    else:
        assert np.isfinite(encoder.encode(noise(2))).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**7), st.sampled_from([0, 1, 8, 12, 14, 255]))
@example(50, 255)  # a name that is no text
@example(10, 8)  # read as if it were compressed
@example(10, 14)
def test_whatever_byte_is_changed_ends_in_one_error(exported: Path, tmp_path: Path, where: int, value: int) -> None:
    data = bytearray(exported.read_bytes())
    with zipfile.ZipFile(exported) as archive:
        first = archive.start_dir
    changed = [bytes(data[:at] + bytes([value]) + data[at + 1 :]) for at in (where % len(data), first + where % 64)]
    for one in changed:
        (tmp_path / "changed.pt2").write_bytes(one)
        with contextlib.suppress(CheckpointError):
            load_encoder(tmp_path / "changed.pt2", size_px=SIZE, device="cpu")


def test_weights_reach_no_further_than_their_bytes(exported: Path, tmp_path: Path) -> None:
    def longer(name: str, data: bytes) -> bytes:
        return data.replace(b'{"as_int": 27}', b'{"as_int": 9999999}') if name.endswith("config.json") else data

    with pytest.raises(CheckpointError, match="extends beyond"):
        load_exported(rewritten(exported, tmp_path / "e.pt2", longer))
    (tmp_path / "cut.pt2").write_bytes(exported.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(tmp_path / "cut.pt2", size_px=SIZE, device="cpu")


class Odd(nn.Module):
    memory: torch.Tensor

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.register_buffer("memory", torch.ones(4))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x) if self.function is not remember else self.memory.add_(1) * x.mean((2, 3))[:, :1]


def remember(_: torch.Tensor) -> None:
    """Only a mark: the module that is given it adds to its own memory instead."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.mean(3), "not .batch, features"),
        (lambda x: x.flatten(1)[:, :5] / 0, "NaN"),
        (lambda x: (x.mean((2, 3)), x.amax((2, 3))), "2 outputs"),
        (lambda x: x.mean((2, 3)) - x.mean(), "neighbours"),
        (lambda x: (x.mean((2, 3)) > 0).long(), "floats"),
        (lambda x: x.mean((2, 3)) + torch.rand(3), "harmless"),
        (remember, "changes its own weights"),
    ],
    ids=["shape", "nan", "two", "neighbours", "whole numbers", "random", "memory"],
)
def test_what_is_no_encoder_is_refused_at_once(
    tmp_path: Path, function: Callable[[torch.Tensor], Any], words: str
) -> None:
    path = export(tmp_path / "e.pt2", Odd(function).eval())
    with pytest.raises(CheckpointError, match=words):
        load_encoder(path, size_px=SIZE, device="cpu")


def test_other_images_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="32 x 32 px, not of 64"):
        load_encoder(exported, size_px=64, device="cpu")
    with pytest.raises(CheckpointError, match="batches of 2"):
        load_encoder(export(tmp_path / "b.pt2", Convolutional().eval(), dynamic=False), size_px=SIZE, device="cpu")
    double = export(tmp_path / "d.pt2", Convolutional().eval().double(), dtype=torch.float64)
    with pytest.raises(CheckpointError, match="float64"):
        load_encoder(double, size_px=SIZE, device="cpu")
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder(tmp_path / "absent.pt2", size_px=SIZE)
    with pytest.raises(ValueError, match="positive"):
        load_encoder(exported, size_px=SIZE, std=(0.0, 1.0, 1.0))


def test_pickles_are_named_and_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    torch.save({"model": Bomb(marker)}, tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    (tmp_path / "m.bin").write_bytes(b"\0" * 100)
    for name, words in {"model.pt": "pickled code", "model.pkl": "pickle", "m.bin": "known kind"}.items():
        for trust in (False, True):
            with pytest.raises(CheckpointError, match=words):
                load_encoder(tmp_path / name, size_px=SIZE, trust=trust)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_needs_trust(tmp_path: Path) -> None:
    module = Convolutional().eval()
    tracing: Any = torch.jit.trace
    tracing(module, torch.zeros(2, 3, SIZE, SIZE)).save(str(tmp_path / "e.pt"))
    with pytest.raises(CheckpointError, match="--trust-model"):
        load_encoder(tmp_path / "e.pt", size_px=SIZE)
    encoder = load_encoder(tmp_path / "e.pt", size_px=SIZE, mean=(0, 0, 0), std=(1, 1, 1), device="cpu", trust=True)
    images = torch.from_numpy(noise(3)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        np.testing.assert_allclose(encoder.encode(noise(3)), module(images).numpy(), rtol=1e-4)
    assert encoder.kind == "torchscript"


class Conditional(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = torch.special.bessel_j0(x)
        return x.mean((2, 3))


def test_archives_with_unknown_parts_need_trust(tmp_path: Path) -> None:
    path = export(tmp_path / "e.pt2", Conditional())
    with pytest.raises(CheckpointError, match="--trust-model"):
        load_encoder(path, size_px=SIZE, device="cpu")
    assert load_encoder(path, size_px=SIZE, device="cpu", trust=True).width == 3


def onnx_file(path: Path, *, batch: int | str = "batch", outside: bool = False) -> tuple[Path, np.ndarray]:
    onnx: Any = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("x", kind, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", kind, [batch, 4])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=outside, location="weights.bin", size_threshold=0)
    return path, weight


@has_onnx
def test_onnx_computes_what_torch_does(tmp_path: Path) -> None:
    path, weight = onnx_file(tmp_path / "e.onnx")
    encoder = load_encoder(path, size_px=SIZE, mean=(0, 0, 0), std=(1, 1, 1), device="cpu")
    images = torch.from_numpy(noise(3)).permute(0, 3, 1, 2).float() / 255
    expected = nn.functional.conv2d(images, torch.from_numpy(weight), stride=2).mean((2, 3))
    np.testing.assert_allclose(encoder.encode(noise(3)), expected.numpy(), rtol=1e-4, atol=1e-6)
    assert (encoder.kind, encoder.width) == ("onnx", 4)


@has_onnx
def test_onnx_files_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="batches of 2"):
        load_encoder(onnx_file(tmp_path / "b.onnx", batch=2)[0], size_px=SIZE)
    with pytest.raises(CheckpointError, match="not of 64"):
        load_encoder(onnx_file(tmp_path / "s.onnx")[0], size_px=64)
    with pytest.raises(CheckpointError, match="external data"):
        load_encoder(onnx_file(tmp_path / "o.onnx", outside=True)[0], size_px=SIZE)
    (tmp_path / "d.onnx").write_bytes(b"\x08\x09 no network")
    with pytest.raises(CheckpointError, match="onnxruntime"):
        load_encoder(tmp_path / "d.onnx", size_px=SIZE)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is installed")
def test_without_onnxruntime_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.onnx").write_bytes(b"\x08\x09")
    with pytest.raises(PathologyError, match=r"sentinode\[onnx\]"):
        load_encoder(tmp_path / "e.onnx", size_px=SIZE)
