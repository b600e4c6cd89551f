"""What torch can compute with on this machine, and how fast a network is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch

from wsi.cnn.network import SMALL

_SECONDS = 0.5  # of a measurement


def describe_gpus() -> tuple[str, list[dict[str, Any]], str | None]:
    """The build of torch, the GPUs that it can use, and why it uses none."""
    build = torch.__version__
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        if torch.version.cuda is None:
            reason = "torch is a build for CPUs: " + (
                "the GPU is not used; install torch with CUDA" if driver else "a GPU would not be used"
            )
        else:
            reason = "torch finds no GPU" + (": check the driver" if driver else "")
        return build, [], reason
    gpus = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": about.name,
                "memory_gb": round(about.total_memory / 1e9, 1),
                "capability": f"{about.major}.{about.minor}",
                "bf16": about.major >= 8,
            }
        )
    return build, gpus, None


def network_speed(device: str) -> float:
    """Megapixels per second of the small network, on one core or one GPU."""
    network = SMALL.build().eval().folded().to(device)
    side = SMALL.receptive_field_px + 63 * SMALL.stride_px
    images = torch.zeros(1 if device == "cpu" else 16, 3, side, side, device=device)
    images = images.to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:

        def compute() -> None:
            with torch.inference_mode():
                network(images)
            if device != "cpu":
                torch.cuda.synchronize()

        compute()
        return round(calls_per_second(compute) * len(images) * side**2 / 1e6, 2)
    finally:
        torch.set_num_threads(before)


def calls_per_second(work: Callable[[], object]) -> float:
    """How often something can be called in a second, measured for half of one after a first call."""
    work()
    begun, count = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < _SECONDS:
        work()
        count += 1
    return count / took
