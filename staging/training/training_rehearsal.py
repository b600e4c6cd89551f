"""What training would do, and how much room and time it would take, without doing it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from staging.training.plan import TrainingPlan, check_plan, network_of, open_sources, unfit
from staging.training.sources import PatchRecipe
from wsi.patches.feeding import HeldPatches

if TYPE_CHECKING:
    from annotations.patches.training_set import TrainingSet
    from wsi.cnn.method import Method
    from wsi.cnn.training_data import TrainingData

_STEPS = 4
_LEARNT, _JUDGED = "learnt", "judged"


def rehearse_training(plan: TrainingPlan) -> dict[str, Any]:
    """Open the patches, hold out the judges, and make a few steps on a few patches; nothing is written to the output.

    Returns:
        ``patches``, ``patients``, ``learnt`` (patches learnt from), ``held_out`` and ``left_out`` (patients),
        ``streamed``, ``mpp``, ``rounds`` (trainings in all), ``sampled`` (patches), and by these ``seconds`` of all
        passes and ``bytes`` of the checkpoints and the file to resume from. Looking for hard patches and learning the
        peak are not in the seconds, nor hard patches in the passes.

    Raises:
        PathologyError: as run_training before its first pass.
        ValueError: the patches of the plan are still to be drawn.
    """
    from wsi.cnn.checkpoint import Checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.training_data import TrainingData, UnfitPatchesError  # noqa: PLC0415

    check_plan(plan)
    if isinstance(plan.patches, PatchRecipe):
        raise ValueError("only patches that exist can be looked at")  # noqa: TRY004  (of the plan, not of a type)
    found = open_sources(plan, plan.patches)
    network = network_of(plan, found)
    architecture = network.architecture if isinstance(network, Checkpoint) else network
    try:
        data = TrainingData.split(
            found.patches,
            judges=found.judges or plan.held_out,
            architecture=architecture,
            rng=np.random.default_rng(plan.method.seed),
        )
        step_s, judged_s, stored, sampled = _tried(plan, found, data)
    except UnfitPatchesError as error:
        raise unfit(plan, error) from error
    mining = plan.mining
    early = 0 if mining is None else mining.rounds
    passes = plan.method.epochs + (0 if mining is None else early * (mining.epochs or plan.method.epochs))
    return {
        "patches": len(found.patches),
        "patients": len(np.unique(found.patches.patients)),
        "learnt": len(data.learning),
        "held_out": list(data.judges),
        "left_out": sorted(found.left_out),
        "streamed": found.is_streamed,
        "mpp": found.patches.mpp,
        "rounds": early + 1,
        "sampled": sampled,
        "seconds": round(passes * (len(data.learning) * step_s + len(data.shown) * judged_s), 1),
        "bytes": stored["checkpoint"] * (early + 1) + stored["progress"],
    }


def _tried(plan: TrainingPlan, found: TrainingSet, data: TrainingData) -> tuple[float, float, dict[str, int], int]:
    """(seconds per patch learnt from, and per patch judged, bytes of the files, patches), from a few steps."""
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.resuming import Progress  # noqa: PLC0415
    from wsi.cnn.training import train  # noqa: PLC0415

    size = min(plan.method.batch, len(data.learning))
    learnt = _some(data, _STEPS * size)
    judged = data.shown[: 2 * size]
    begun = time.perf_counter()
    sample = _held(found, learnt, judged)
    reading_s = (time.perf_counter() - begun) / (len(learnt) + len(judged)) if found.is_streamed else 0.0
    steps: list[float] = []
    with TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        ends: list[float] = []
        result = train(
            sample,
            _short(plan.method),
            network=network_of(plan, found),
            judges=(_JUDGED,) if len(judged) else 0.0,
            device=plan.device,
            resume=Progress(progress),
            on_step=lambda _done, _total: steps.append(time.perf_counter()),
            on_epoch=lambda _: ends.append(time.perf_counter()),
        )
        save_checkpoint(Path(folder) / "model.safetensors", result.checkpoint)
        stored = {
            "checkpoint": (Path(folder) / "model.safetensors").stat().st_size,
            "progress": progress.stat().st_size,
        }
    # the first step loads libraries and picks algorithms
    step_s = (steps[-1] - steps[0]) / ((len(steps) - 1) * size) if len(steps) > 1 else 0.0
    judged_s = (ends[0] - steps[-1]) / len(judged) if len(judged) else 0.0
    return step_s + reading_s, judged_s + reading_s, stored, len(sample)


def _some(data: TrainingData, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Patches learnt from, some of them with each class."""
    with_class = [
        data.learning[(data.cells[data.learning] == kind).any(axis=(1, 2))][: count // 2 or 1] for kind in (0, 1)
    ]
    first = np.unique(np.concatenate(with_class))
    others = np.setdiff1d(data.learning, first)
    return np.concatenate([first, others])[: max(count, len(first))]


def _held(
    found: TrainingSet,
    learnt: np.ndarray[Any, np.dtype[np.int64]],
    judged: np.ndarray[Any, np.dtype[np.int64]],
) -> HeldPatches:
    chosen = np.concatenate([learnt, judged])
    (images,) = found.patches.images([chosen])
    roles = np.array([_LEARNT] * len(learnt) + [_JUDGED] * len(judged))
    return HeldPatches(images.copy(), found.patches.targets(chosen), mpp=found.patches.mpp, patients=roles)


def _short(method: Method) -> Method:
    return replace(method, epochs=1, patience=None, temperature=False, threshold=False)
