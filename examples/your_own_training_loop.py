"""Your own network and training loop on a patch table: the pixels come straight from the slides.

Run: python examples/your_own_training_loop.py TABLE.parquet [PASSES]

TABLE is from `sentinode patches SLIDES ANNOTATIONS -o TABLE.parquet`. Nothing is extracted: each pass reads the patches
in another order, every tile once per block, while the network learns from the previous block.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from annotations import read_patch_table
from wsi import PatchStream


def main(path: Path, passes: int = 2) -> None:
    """Print the loss and the number of correctly classified patches, pass by pass."""
    table = read_patch_table(path)
    table = table.rows((table["split"] == "train") & (table["class"] != "unknown"))
    stream = PatchStream(table.positions(path.parent), table.labels, batch=16, seed=0)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, stride=3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for number in range(passes):
        stream.set_epoch(number)
        losses, right = 0.0, 0
        for images, labels, _ in stream:  # uint8 (n, side, side, 3), int64 (n,), rows of the table
            logits = network(images.permute(0, 3, 1, 2).float() / 255)
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses += float(loss.detach()) * len(labels)
            right += int((logits.argmax(dim=1) == labels).sum())
        print(f"pass {number + 1}: loss {losses / len(table):.3f}, {right} of {len(table)} patches right")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
