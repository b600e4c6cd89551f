"""Processes that train one network together, started by torchrun; a single process needs nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from wsi.cnn.device import pick_device
from wsi.errors import PathologyError

_PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: their number.
        on_machine: the number of them that share this machine's cores.
        waiting: the process group in which the others wait for the first, for days if necessary.
    """

    rank: int = 0
    world: int = 1
    on_machine: int = 1
    waiting: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the common result."""
        return self.rank == 0

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place; the same bits in each of them."""
        if self.world > 1:
            with _errors_of_others():
                distributed.all_reduce(values)
        return values

    def first_alone(self, work: Callable[[], None]) -> None:
        """Let the first process do something while the others wait.

        Raises:
            PathologyError: in the others, if the first failed; in the first, whatever ``work`` raises.
        """
        error: BaseException | None = None
        if self.is_first:
            try:
                work()
            except BaseException as caught:  # noqa: BLE001  (raised below, when the others know)
                error = caught
        if self.world > 1:
            # on the CPU, where the others may wait for days
            has_failed = torch.tensor([error is not None], dtype=torch.uint8)
            with _errors_of_others():
                distributed.broadcast(has_failed, src=0, group=self.waiting)
            if has_failed.item() and error is None:
                raise PathologyError(None, "the first process failed", mend="see its error")
        if error is not None:
            raise error


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, for as long as the outermost call lasts; NCCL between GPUs, else Gloo.

    Args:
        device: as for ``pick_device``; with several processes, ``auto`` and ``cuda`` give each its own GPU.

    Yields:
        This process's rank and its device.

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
    waiting = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        ranks = Ranks(
            rank=distributed.get_rank(),
            world=distributed.get_world_size(),
            on_machine=max(1, _number("LOCAL_WORLD_SIZE", 1)),
            waiting=waiting,
        )
        yield ranks, target
    finally:
        distributed.destroy_process_group(None if is_ours else waiting)


@contextmanager
def _errors_of_others() -> Iterator[None]:
    """Report in one error that another process has ended; that process has reported why."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # without the location in the library's source and everything after the first sentence
        reason = re.sub(r"^\[[^\]]*\] ", "", str(error)).split("\n")[0].split(". ")[0]
        raise PathologyError(
            None, f"a process that trains together with this one has ended: {reason}", mend="see its error"
        ) from error


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise PathologyError(None, f"{name} is not a number: {text!r:.40}", mend="start with torchrun")
    return int(text or otherwise)


def is_first_process() -> bool:
    """Whether this process writes the results: the first of those that torchrun started."""
    return _number("RANK", 0) == 0
