"""A network while it learns: gradients of a batch, the optimiser's steps, and all of its state.

On a CPU a batch is cut into shards of equal size, each with its own copy of the normalisation's statistics. Threads
take shards, and the gradients are added in the order of the shards: the result does not depend on the threads. Several
processes divide the shards of a batch among them and add their gradients.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsi.cnn.cells import IGNORE, cell_targets
from wsi.cnn.device import equal_convolutions
from wsi.cnn.method import Method
from wsi.cnn.network import DenseNetwork
from wsi.cnn.ranks import Ranks
from wsi.cnn.schedule import pace
from wsi.cnn.training_data import TrainingData, blocks_of
from wsi.errors import PathologyError

_SHARD = 8
_AHEAD = 16  # blocks waiting for the network
_FIRST_SCALE = 65536.0
_LAST_SCALE = 2.0
_SCALE_GROWS_AFTER = 1000


class DivergedError(PathologyError, ArithmeticError):
    """A loss or a weight is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """Patches, their pixels, and the pass."""

    chosen: NDArray[np.int64]
    images: NDArray[np.uint8]
    number: int


class Learner:
    """Network, its average, optimiser and schedule.

    Args:
        network: to be trained in place.
        data: what it learns from.
        method: how it learns.
        device: where it computes.
        pool: threads that each compute alone.
        ranks: this process among those that train together.
        steps: of the whole training.
    """

    def __init__(
        self,
        network: DenseNetwork,
        data: TrainingData,
        *,
        method: Method,
        device: torch.device,
        pool: ThreadPoolExecutor,
        ranks: Ranks,
        steps: int,
    ) -> None:
        network.to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.eval()
        self._average = copy.deepcopy(network) if method.average else None
        self._device, self._data, self._method = device, data, method
        self._pool, self._ranks = pool, ranks
        self._weights = torch.tensor(data.class_weights, dtype=torch.float32, device=device)
        self._copies: list[DenseNetwork] = []
        self._parameters = list(network.parameters())
        self._highest = method.learning_rate_of(data.architecture)
        self._adam = torch.optim.AdamW(self._parameters, lr=self._highest, weight_decay=method.weight_decay)
        self._steps = steps
        self._done = 0
        self._dtype = _autocast(method, device)
        self._scale = _FIRST_SCALE if self._dtype == torch.float16 else 1.0
        self._calm = 0

    @property
    def judged(self) -> DenseNetwork:
        """The network whose weights are evaluated and kept: the average, if there is one."""
        return self._network if self._average is None else self._average

    def shards(self, size: int) -> Sequence[NDArray[np.int64]]:
        """Indices in a batch that are computed together: one part for each GPU, or 8 for each thread of a CPU."""
        return blocks_of(np.arange(size), -(-size // self._ranks.world) if self._device.type == "cuda" else _SHARD)

    def owners(self, size: int) -> NDArray[np.int64]:
        """The process that computes each patch of a batch: int64 (size,)."""
        owners = np.empty(size, np.int64)
        for number, shard in enumerate(self.shards(size)):
            owners[shard] = number % self._ranks.world
        return owners

    def step(self, chosen: NDArray[np.int64], images: NDArray[np.uint8], number: int) -> float:
        """Learn from a batch; its loss.

        Args:
            chosen: which patches.
            images: uint8 (m, side, side, 3), of those that this process owns.
            number: of the pass.

        Raises:
            DivergedError: the loss is not finite, or, in fp16, the gradients even at the smallest scale.
            PathologyError: the GPU's memory is too small.
        """
        shards = [chosen[positions] for positions in self.shards(len(chosen))]
        mine = range(self._ranks.rank, len(shards), self._ranks.world)
        while len(self._copies) < len(shards):
            self._copies.append(self._copy())
        share = 1 / max(1, int(np.count_nonzero(self._data.cells[chosen] != IGNORE)))
        pixels = np.split(images, np.cumsum([len(shards[index]) for index in mine]))
        jobs = [
            (self._copies[index], _Shard(chosen=shards[index], images=part, number=number))
            for index, part in zip(mine, pixels, strict=False)
        ]
        with _computing():
            results = list(self._pool.map(lambda job: self._gradients(*job, share=share), jobs))
        for index, parameter in enumerate(self._parameters):
            parts = [gradients[index] for _, gradients in results]
            total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(parameter)
            if self._ranks.world > 1:
                # processes add raw memory: its layout has to be the same in all of them
                total = self._ranks.add(torch.empty_like(parameter).copy_(total))
            parameter.grad = total
        loss = sum(loss for loss, _ in results)
        if self._ranks.world > 1:
            loss = float(self._ranks.add(torch.tensor(loss, dtype=torch.float64, device=self._device)))
        if self._scale == 1 and not math.isfinite(loss):
            raise diverged("the loss")
        self._optimise()
        return loss

    def settle(self) -> None:
        """Set the network's statistics to the mean of its copies'.

        Raises:
            DivergedError: a weight or a statistic is not finite.
        """
        kept = [dict(network.named_buffers()) for network in self._copies]
        self._share_statistics()
        for name, buffer in self._network.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([buffers[name] for buffers in kept]).mean(dim=0))
                if self._average is not None:
                    self._average.get_buffer(name).copy_(buffer)
        held = [value for value in self.judged.state_dict().values() if value.is_floating_point()]
        if not bool(torch.stack([torch.isfinite(value).all() for value in held]).all()):
            raise diverged("a weight")

    def margins(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logit of tumour minus logit of normal for each cell of the chosen patches: float64 (n, i, j)."""
        patches, count = self._data.patches, self._data.architecture.cells(self._data.patches.size_px)
        blocks = blocks_of(patches.reading_order(chosen), _SHARD)[self._ranks.rank :: self._ranks.world]
        whole = np.zeros((len(chosen), count, count))

        def judge(images: NDArray[np.uint8]) -> NDArray[np.float64]:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
                logits = self._forward(self.judged, pixels.float()).cpu().double()
            return np.asarray(logits[:, 1] - logits[:, 0])

        judging: deque[tuple[NDArray[np.int64], Future[NDArray[np.float64]]]] = deque()

        def take(most: int) -> None:
            while len(judging) > most:
                block, result = judging.popleft()
                whole[block] = result.result()

        with _computing(), closing(patches.images([chosen[block] for block in blocks])) as images:
            for block, pixels in zip(blocks, images, strict=True):
                judging.append((block, self._pool.submit(judge, pixels)))
                take(_AHEAD)
            take(0)
        if self._ranks.world == 1:
            return whole
        return self._ranks.add(torch.from_numpy(whole).to(self._device)).cpu().numpy()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that determines the next steps: tensors by name, and values that JSON can hold."""
        self._share_statistics()
        tensors = {f"network/{name}": value for name, value in self._network.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average/{name}": value for name, value in self._average.state_dict().items()}
        for number, network in enumerate(self._copies):
            tensors |= {f"copy/{number}/{name}": value for name, value in network.named_buffers()}
        for number, parameter in enumerate(self._parameters):
            tensors |= {f"adam/{number}/{name}": value for name, value in self._adam.state[parameter].items()}
        record = {"done": self._done, "copies": len(self._copies), "scale": self._scale, "calm": self._calm}
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}, record

    def restore(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned.

        Raises:
            KeyError, RuntimeError, ValueError, TypeError: it belongs to another network.
        """
        self._done, self._calm = int(record["done"]), int(record["calm"])
        self._scale = float(record["scale"])
        self._network.load_state_dict(_below(tensors, "network"))
        if self._average is not None:
            self._average.load_state_dict(_below(tensors, "average"))
        while len(self._copies) < int(record["copies"]):
            self._copies.append(self._copy())
        for number, network in enumerate(self._copies):
            for name, buffer in network.named_buffers():
                buffer.copy_(tensors[f"copy/{number}/{name}"])
        for number, parameter in enumerate(self._parameters):
            held = _below(tensors, f"adam/{number}")
            # the optimiser counts its steps on the CPU, wherever its means are
            self._adam.state[parameter] = {
                name: value.clone()
                if name == "step"
                else value.to(self._device).clone(memory_format=torch.preserve_format)
                for name, value in held.items()
            }

    def _copy(self) -> DenseNetwork:
        """The same weights (shared), its own statistics."""
        shared: dict[int, Any] = {id(parameter): parameter for parameter in self._parameters}
        network = copy.deepcopy(self._network, shared).train()
        if self._method.compiler is not None:
            network.compile(backend=self._method.compiler)
        return network

    def _gradients(
        self, network: DenseNetwork, shard: _Shard, *, share: float
    ) -> tuple[float, tuple[torch.Tensor, ...]]:
        """Augment a shard; return its part of the batch's loss and gradients."""
        images, cells = self._varied(shard)
        truth = torch.from_numpy(cells.astype(np.int64)).to(self._device)
        logits = self._forward(network, images)
        loss = share * functional.cross_entropy(
            logits, truth, weight=self._weights, ignore_index=IGNORE, reduction="sum"
        )
        gradients = torch.autograd.grad(loss if self._scale == 1 else loss * self._scale, self._parameters)
        return float(loss.detach()), gradients

    def _varied(self, shard: _Shard) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        """Float32 (n, 3, side, side), and the targets of the cells."""
        data, method, chosen = self._data, self._method, shard.chosen
        seeds = np.stack([np.full_like(chosen, method.seed), np.full_like(chosen, shard.number), chosen], axis=1)
        images = torch.from_numpy(shard.images).to(self._device)
        pixels, targets = method.augmentation(images, data.patches.targets(chosen), seeds)
        return pixels, cell_targets(targets, data.architecture)

    def _optimise(self) -> None:
        if self._scale != 1 and not self._is_finite():
            if self._scale == _LAST_SCALE and not self._calm:
                raise diverged("a gradient")
            # fp16 overflowed: this batch is skipped, the next one is scaled less
            self._scale, self._calm, self._done = max(_LAST_SCALE, self._scale / 2), 0, self._done + 1
            return
        now = pace(
            self._method.schedule,
            self._done,
            steps=self._steps,
            highest=self._highest,
            warm_up=self._method.warm_up,
        )
        for group in self._adam.param_groups:
            group["lr"], group["betas"] = now.learning_rate, (now.momentum, 0.999)
        self._adam.step()
        self._done += 1
        if self._scale != 1:
            self._calm += 1
            if self._calm % _SCALE_GROWS_AFTER == 0:
                self._scale = min(_FIRST_SCALE, self._scale * 2)
        if self._average is not None:
            kept = min(self._method.average, (1 + self._done) / (10 + self._done))
            with torch.no_grad():
                for mean, parameter in zip(self._average.parameters(), self._parameters, strict=True):
                    mean.lerp_(parameter, 1 - kept)

    def _is_finite(self) -> bool:
        """Undo the scaling of the gradients; return whether all of them are finite."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad /= self._scale
        gradients: Sequence[torch.Tensor] = [p.grad for p in self._parameters if p.grad is not None]
        return bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all())

    def _share_statistics(self) -> None:
        """Broadcast each copy's statistics from the process that owns it."""
        if self._ranks.world == 1:
            return
        for number, network in enumerate(self._copies):
            is_mine = number % self._ranks.world == self._ranks.rank
            for _, buffer in network.named_buffers():
                if not is_mine:
                    buffer.zero_()
                self._ranks.add(buffer)

    def _forward(self, network: DenseNetwork, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            logits: torch.Tensor = network(images.to(self._device))
        return logits.float()


def _autocast(method: Method, device: torch.device) -> torch.dtype:
    if method.precision == "auto":
        # older GPUs only emulate bf16, slower than fp32
        is_there = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_there else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[method.precision]


@contextmanager
def _computing() -> Iterator[None]:
    """The context shared by all computing threads.

    Raises:
        PathologyError: the GPU's memory is too small.
    """
    try:
        with equal_convolutions():
            yield
    except torch.OutOfMemoryError as error:
        raise PathologyError(
            None, "the GPU's memory is too small for a batch", mend="use fewer patches per step, or the device cpu"
        ) from error


def diverged(what: str) -> DivergedError:
    """The error that names what is not finite."""
    return DivergedError(None, f"training has diverged: {what} is not finite", mend="use a lower learning rate")


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
