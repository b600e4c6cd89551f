"""How encoders are named and described, on the command line and in TOML files, and ``sentinode encoders``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from staging.cli import app
from staging.phantom import generate_cohort
from wsi.cnn.encoders.description import find_encoder, known_encoders
from wsi.cnn.encoders.vit import VitShape
from wsi.errors import CheckpointError

WIDTH = 48


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small vision transformer for tiles of 42 px, with timm's names."""
    shape = VitShape(
        patch_px=14, width=WIDTH, depth=2, heads=3, hidden=96, registers=4, grid=3, embedded=0, is_gated=False,
        is_scaled=True, has_qkv_bias=True, epsilon=1e-6,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=generator) * 0.1 for name, size in shape.weight_shapes().items()}
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


def test_how_an_encoder_is_given(tmp_path: Path) -> None:
    assert find_encoder("own.pt2") == (Path("own.pt2"), None)
    path, known = find_encoder("UNI2-h=weights/model.safetensors")
    assert (path, known) == (Path("weights/model.safetensors"), known_encoders()["uni2-h"])
    with pytest.raises(CheckpointError, match="given as 'uni3', which is no known encoder"):
        find_encoder("uni3=model.safetensors")
    with pytest.raises(CheckpointError, match=r"uni2-h is an encoder without its weights \(write uni2-h="):
        find_encoder("uni2-h")
    odd = tmp_path / "a=b.pt2"
    odd.touch()
    assert find_encoder(str(odd)) == (odd, None)


OWN = """
weights = "model.safetensors"
network = "vit"
heads = 3
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
mpp = 8
size_px = 42
"""


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('weights = "model.safetensors"', "", "names no file of weights"),
        ("heads = 3", "", "lacks heads"),
        ("mpp = 8", "", "lacks mpp"),
        ("mpp = 8", 'mpp = "8"', "mpp: is '8', and should be a number above 0"),
        ("heads = 3", "heads = 3.5", "heads: is '3.5', and should be a whole number"),
        ("heads = 3", "heads = true", "heads: is 'True', and should be a whole number"),
        ("heads = 3", 'heads = 3\npooling = "mean"', r"pooling: is 'mean', and should be cls or cls\+mean"),
        ("heads = 3", "heads = 3\nhead = 3", "has the unknown field 'head'"),
        ("[0.5, 0.5, 0.5]", "[0.5, 0.5]", "mean: is .* and should be three numbers"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [true, 0.5, 0.5]", "mean: is .* and should be three numbers"),
        ("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.5, 0]", "std: is .* and should be three numbers above 0"),
        ("heads = 3", "heads = ", "is no TOML file"),
    ],
)
def test_odd_descriptions_are_refused(tmp_path: Path, before: str, after: str, reason: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace(before, after, 1))
    with pytest.raises(CheckpointError, match=reason) as error:
        find_encoder(str(path))
    assert str(path) in str(error.value)


# --- the commands ---------------------------------------------------------------------------------------------------


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def test_features_of_a_described_encoder(small: Path, tmp_path: Path) -> None:
    generate_cohort(tmp_path / "c", patients=1, centres=(0,), seed=3, mpp=8.0, size_um=(4500, 3500))
    slides = sorted((tmp_path / "c" / "images").iterdir())[:1]
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace("model.safetensors", str(small)) + 'title = "Own"\nlicence = "MIT"\nsource = "here"\n')
    done = call("features", *slides, "-e", own, "-o", tmp_path / "f", "--workers", 1)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["width"], record["encoder"]["kind"], record["encoder"]["pooling"]) == (WIDTH, "vit", "cls")
    assert "Own: licence MIT; here has its terms" in done.stderr
    again = call("features", *slides, "-e", own, "-o", tmp_path / "f", "--workers", 1)
    assert json.loads(again.stdout)["made_before"] == 1
    own.write_text(own.read_text().replace("heads = 3", 'heads = 3\npooling = "cls+mean"'))
    other = call("features", *slides, "-e", own, "-o", tmp_path / "f", "--workers", 1)
    assert other.exit_code != 0
    assert "pooling" in str(other.exception)
    told = call("features", *slides, "-e", own, "-o", tmp_path / "g", "--workers", 1, "--mpp", 16)
    assert "Own expects 8.0 um per px, and gets 16.0" in told.stderr


def test_a_file_without_description_needs_its_tiles(tmp_path: Path) -> None:
    done = call("features", tmp_path, "-e", tmp_path / "e.pt2", "-o", tmp_path / "f", "--mpp", 0.5)
    assert "--size is missing" in str(done.exception)


def test_weights_without_a_name_say_how_to_give_one(small: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "f", "--mpp", 0.5, "--size", 42)
    assert "as in uni2-h=model.safetensors" in str(call("features", tmp_path, "-e", small, *words).exception)


def test_the_list_of_encoders() -> None:
    text = call("encoders").stdout.splitlines()
    assert len(text) == 1 + len(known_encoders())
    row = next(line for line in text if line.startswith("virchow2 "))
    assert row.split()[:6] == ["virchow2", "224", "0.5", "2560", "no", "CC-BY-NC-ND-4.0"]


def test_what_json_prints_is_what_a_toml_file_takes(tmp_path: Path) -> None:
    listed: Mapping[str, Any] = json.loads(call("encoders", "--json").stdout)
    assert listed.keys() == known_encoders().keys()
    for name, fields in listed.items():
        path = tmp_path / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        path.write_text("\n".join(['weights = "model.safetensors"', *lines]), encoding="utf-8")
        assert find_encoder(str(path)) == (tmp_path / "model.safetensors", known_encoders()[name])
