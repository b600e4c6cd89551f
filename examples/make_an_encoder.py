"""Write a small convolutional encoder as a torch.export file, as you would your own.

Its weights are random: it shows the format, and what it finds means nothing.

Run: python examples/make_an_encoder.py ENCODER.pt2
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

SIZE_PX, FEATURES = 224, 32


def main(target: Path) -> None:
    """Export a network that maps float32 (batch, 3, size, size) to (batch, features)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, FEATURES)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    example = torch.zeros(2, 3, SIZE_PX, SIZE_PX)
    batch = torch.export.Dim.DYNAMIC  # tiles come in batches of any size
    program = torch.export.export(encoder, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, target)
    print(f"{target}: tiles of {SIZE_PX} px to {FEATURES} features")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
