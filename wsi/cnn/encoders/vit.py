"""A plain vision transformer, as nearly all public encoders of pathology are: read from its weights' shapes.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; layer scale and SwiGLU as in DINOv2 (M. Oquab et al.,
TMLR 2024); registers as in T. Darcet et al., "Vision Transformers Need Registers", ICLR 2024. Names of the weights are
timm's, to which ``wsi.cnn.encoders.weights`` brings those of other programs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Pooling = Literal["cls", "cls+mean"]
"""What describes a tile: the class token, or it and the mean of the patches' tokens, side by side. Registers are
dropped."""

Resampling = Literal["antialiased", "plain"]
"""How position embeddings reach another grid: bicubic with anti-aliasing as in timm and in networks with registers, or
without, as in transformers' DINOv2 (whose cubics also have another slope)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """Everything about a vision transformer but its weights.

    Attributes:
        patch_px: side of the square that becomes one token.
        width: of a token.
        depth: number of blocks.
        heads: of the attention, each of width / heads.
        hidden: values in the middle of a block's perceptron, of which SwiGLU multiplies one half with the other.
        registers: further tokens that describe nothing.
        grid: side of the grid of position embeddings.
        embedded: how many of class token and registers have a position embedding: 0, 1 or all.
        is_gated: SwiGLU in place of GELU.
        is_scaled: each branch of a block is multiplied by learnt factors.
        has_qkv_bias: queries, keys and values have biases.
        epsilon: of the normalisations.
    """

    patch_px: int
    width: int
    depth: int
    heads: int
    hidden: int
    registers: int
    grid: int
    embedded: int
    is_gated: bool
    is_scaled: bool
    has_qkv_bias: bool
    epsilon: float

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by timm's name."""
        width, found = self.width, dict[str, tuple[int, ...]]()
        found["cls_token"] = (1, 1, width)
        if self.registers:
            found["reg_token"] = (1, self.registers, width)
        found["pos_embed"] = (1, self.grid**2 + self.embedded, width)
        found["patch_embed.proj.weight"] = (width, 3, self.patch_px, self.patch_px)
        found["patch_embed.proj.bias"] = (width,)
        for block in range(self.depth):
            of_block: dict[str, tuple[int, ...]] = {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.qkv.weight": (3 * width, width),
                **({"attn.qkv.bias": (3 * width,)} if self.has_qkv_bias else {}),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                **({"ls1.gamma": (width,), "ls2.gamma": (width,)} if self.is_scaled else {}),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (self.hidden, width),
                "mlp.fc1.bias": (self.hidden,),
                "mlp.fc2.weight": (width, self.hidden // 2 if self.is_gated else self.hidden),
                "mlp.fc2.bias": (width,),
            }
            found |= {f"blocks.{block}.{name}": shape for name, shape in of_block.items()}
        return found | {"norm.weight": (width,), "norm.bias": (width,)}


def shape_of(weights: Mapping[str, torch.Tensor], *, heads: int, epsilon: float = 1e-6) -> VitShape:
    """Read the shape of a vision transformer from its weights.

    Args:
        weights: by timm's names; further ones are not looked at.
        heads: of the attention, which no shape tells.
        epsilon: of the normalisations, likewise.

    Raises:
        ValueError: a weight is missing, or their shapes are those of no such network; says which.
    """

    def sides(name: str, count: int) -> tuple[int, ...]:
        if name not in weights:
            raise ValueError(f"there is no weight {name}")
        shape = tuple(weights[name].shape)
        if len(shape) != count:
            raise ValueError(f"{name} has the shape {shape}")
        return shape

    width, _, patch_px, _ = sides("patch_embed.proj.weight", 4)
    # counted, not read from a number, of which a file may name any
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    hidden = sides("blocks.0.mlp.fc1.weight", 2)[0]
    registers = sides("reg_token", 3)[1] if "reg_token" in weights else 0
    positions = sides("pos_embed", 3)[1]
    embedded = next((one for one in (0, 1, 1 + registers) if _is_square(positions - one)), None)
    if embedded is None:
        raise ValueError(f"pos_embed is for {positions} tokens, which are no square grid")
    if heads < 1 or width % heads:
        raise ValueError(f"tokens of {width} values cannot be divided among {heads} heads")
    shape = VitShape(
        patch_px=patch_px,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        registers=registers,
        grid=math.isqrt(positions - embedded),
        embedded=embedded,
        is_gated=sides("blocks.0.mlp.fc2.weight", 2)[1] * 2 == hidden,
        is_scaled="blocks.0.ls1.gamma" in weights,
        has_qkv_bias="blocks.0.attn.qkv.bias" in weights,
        epsilon=epsilon,
    )
    for name, wanted in shape.weight_shapes().items():
        if name not in weights:
            raise ValueError(f"there is no weight {name}")
        if tuple(weights[name].shape) != wanted:
            raise ValueError(f"{name} has the shape {tuple(weights[name].shape)} and not {wanted}")
    return shape


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


class VisionTransformer(nn.Module):
    """The network, for tiles of one size.

    Args:
        shape: of its weights.
        weights: by timm's names; those of ``shape.weight_shapes()`` are used and not copied.
        size_px: side of the tiles, a multiple of the patches' side; position embeddings of another grid are resampled.
        pooling: what describes a tile.
        resampling: how position embeddings are resampled.

    Raises:
        ValueError: tiles do not consist of whole patches.
    """

    def __init__(
        self,
        shape: VitShape,
        weights: Mapping[str, torch.Tensor],
        *,
        size_px: int,
        pooling: Pooling = "cls",
        resampling: Resampling = "antialiased",
    ) -> None:
        super().__init__()
        if size_px % shape.patch_px or size_px < shape.patch_px:
            raise ValueError(f"tiles of {size_px} px are no multiple of its patches of {shape.patch_px} px")
        self.shape, self.pooling = shape, pooling
        grid, width = size_px // shape.patch_px, shape.width
        with torch.device("meta"):
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
            if shape.registers:
                self.reg_token = nn.Parameter(torch.empty(1, shape.registers, width))
            self.pos_embed = nn.Parameter(torch.empty(1, grid**2 + shape.embedded, width))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, shape.patch_px, shape.patch_px)})
            self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
            self.norm = nn.LayerNorm(width, shape.epsilon)
        used = {name: weights[name].float() for name in shape.weight_shapes()}
        used["pos_embed"] = _resampled(used["pos_embed"], shape, grid, resampling)
        self.load_state_dict(used, assign=True)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Describe tiles: float (n, 3, size, size), normalised, to (n, width) or, with cls+mean, (n, 2 x width)."""
        tokens = self.patch_embed["proj"](tiles).flatten(2).transpose(1, 2)
        count, embedded = len(tiles), self.shape.embedded
        before = [self.cls_token.expand(count, -1, -1)]
        if self.shape.registers:
            before.append(self.reg_token.expand(count, -1, -1))
        prefix = torch.cat(before, dim=1)
        tokens = tokens + self.pos_embed[:, embedded:]
        if embedded:
            prefix = torch.cat([prefix[:, :embedded] + self.pos_embed[:, :embedded], prefix[:, embedded:]], dim=1)
        tokens = torch.cat([prefix, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        described: torch.Tensor = tokens[:, 0]
        if self.pooling == "cls":
            return described
        return torch.cat([described, tokens[:, 1 + self.shape.registers :].mean(dim=1)], dim=1)


class _Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, shape.epsilon)
        self.attn = _Attention(shape)
        self.ls1 = _Scale(shape.width) if shape.is_scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, shape.epsilon)
        self.mlp = _Perceptron(shape)
        self.ls2 = _Scale(shape.width) if shape.is_scaled else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        found: torch.Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return found


class _Attention(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.has_qkv_bias)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        images, count, width = tokens.shape
        parts = self.qkv(tokens).reshape(images, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        found: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(images, count, width))
        return found


class _Perceptron(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.is_gated = shape.is_gated
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden // 2 if shape.is_gated else shape.hidden, shape.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values = self.fc1(tokens)
        if self.is_gated:
            gate, values = values.chunk(2, dim=-1)
            values = functional.silu(gate) * values
        else:
            values = functional.gelu(values)
        found: torch.Tensor = self.fc2(values)
        return found


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.gamma


def _resampled(positions: torch.Tensor, shape: VitShape, grid: int, resampling: Resampling) -> torch.Tensor:
    """Bring the position embeddings of patches to a grid of another side; those of other tokens stay."""
    if grid == shape.grid:
        return positions
    prefix, patches = positions[:, : shape.embedded], positions[:, shape.embedded :]
    image = patches.reshape(1, shape.grid, shape.grid, shape.width).permute(0, 3, 1, 2)
    image = functional.interpolate(
        image, size=(grid, grid), mode="bicubic", align_corners=False, antialias=resampling == "antialiased"
    )
    return torch.cat([prefix, image.permute(0, 2, 3, 1).reshape(1, grid**2, shape.width)], dim=1)
