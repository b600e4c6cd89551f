"""Processes that train one network together, as torchrun starts them; one process alone needs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from wsi.cnn.device import pick_device
from wsi.errors import PathologyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them made."""
        return self.rank == 0

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place; the same bits in each of them."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started; NCCL between GPUs, Gloo between CPUs.

    Args:
        device: as for ``pick_device``; where there are several processes, ``auto`` and ``cuda`` give each its own GPU.

    Yields:
        This process's place, and what it computes on.

    Raises:
        PathologyError: there is no such device, or torchrun's variables are incomplete.
    """
    world = _number("WORLD_SIZE", 1)
    if world < 2:
        yield Ranks(), pick_device(device)
        return
    has_gpu = device in {"auto", "cuda"} and torch.cuda.is_available()
    target = pick_device(f"cuda:{_number('LOCAL_RANK', 0)}" if has_gpu else device)
    is_ours = not distributed.is_initialized()
    if is_ours:
        try:
            distributed.init_process_group("nccl" if target.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise PathologyError(
                None, f"the processes cannot find each other: {str(error).splitlines()[0]}", mend="start with torchrun"
            ) from error
    if target.type == "cuda":
        torch.cuda.set_device(target)
    try:
        yield Ranks(rank=distributed.get_rank(), world=distributed.get_world_size()), target
    finally:
        if is_ours:
            distributed.destroy_process_group()


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise PathologyError(None, f"{name} is no number: {text!r:.40}", mend="start with torchrun")
    return int(text or otherwise)


def is_first_process() -> bool:
    """Whether this process writes what is made: of those that torchrun started, the first one."""
    return _number("RANK", 0) == 0


def is_one_of_several() -> bool:
    """Whether torchrun started other processes, too."""
    return _number("WORLD_SIZE", 1) > 1
