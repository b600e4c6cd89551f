"""One call of ``sentinode train``: rounds of training and of looking for mistakes, and all that is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from annotations.patch_store import PatchSet, join_patches, read_patches
from staging.camelyon import SlideFile, find_slides, read_stage_table
from staging.errors import ConfigurationError
from staging.patch_sources import PatchRecipe
from staging.progress import CohortProgress
from staging.sampling import sample_cohort
from wsi.cores import usable_cores
from wsi.store import storage

LEARNING_RATE = {"small": 4e-3}
_RESNET_LEARNING_RATE = 1e-3
_EASY = 1  # normal patch per slide beside the mistakes: a slide without any still gives one


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningPlan:
    """Where false positives are looked for between the rounds.

    Attributes:
        rounds: how often: after each the network is trained anew on all patches.
        slides: of the training cohort.
        annotations: directory of their contours.
        reference: table that says which are negative.
        hard: patches per slide and round.
        workers: processes.
    """

    rounds: int
    slides: tuple[Path, ...]
    annotations: Path
    reference: Path
    hard: int
    workers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What is trained and how.

    Attributes:
        patches: stores, joined.
        output: the checkpoint. Beside it lie ``.csv``, ``.learning.png`` and ``.calibration.png``, while training runs
            ``.progress``, and of the rounds of mining ``.round1.safetensors`` and ``.round1.zarr``.
        network: a name among ``wsi.cnn.architectures.NETWORKS``; the start's where there is a start.
        start: checkpoint to go on from.
        epochs, batch, seed, device, learning_rate, held_out: as for ``wsi.cnn.training.train``.
        schedule, average, patience, temperature, precision: as for ``wsi.cnn.method.Method``.
        full_augmentation: all variations, on the device, in place of turns, stains and focus on the CPU.
        compiled: use torch.compile.
        tensorboard: folder for its events.
        mining: rounds of hard negatives; None for none.
    """

    patches: tuple[Path, ...]
    output: Path
    network: str
    start: Path | None
    epochs: int
    batch: int
    seed: int
    device: str
    learning_rate: float | None
    held_out: float
    schedule: Literal["one-cycle", "cosine"]
    average: float
    patience: int | None
    temperature: bool
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    full_augmentation: bool
    compiled: bool
    tensorboard: Path | None
    mining: MiningPlan | None


def run_training(plan: TrainingPlan, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, look for mistakes, train again; write the checkpoint, the log and the pictures.

    Returns:
        What was made, for JSON.

    Raises:
        ConfigurationError: the patches do not suit the network or the start, or lack a class.
        PathologyError: a store, a slide or the checkpoint to start from is not good.
    """
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.ranks import is_first_process, is_one_of_several  # noqa: PLC0415

    if plan.mining is not None and is_one_of_several():
        raise ConfigurationError(
            None, "rounds of mining are not shared out between processes", mend="use --rounds 0 with torchrun"
        )
    found = join_patches([read_patches(path) for path in plan.patches])
    rounds = 0 if plan.mining is None else plan.mining.rounds
    progress: list[Path] = []
    for number in range(rounds + 1):
        is_last = number == rounds
        place = plan.output if is_last else _beside(plan.output, f".round{number + 1}.safetensors")
        progress.append(_beside(place, ".progress"))
        is_resumed = progress[-1].exists()
        if rounds:
            say(f"round {number + 1} of {rounds + 1}: {len(found.images)} patches")
        result = _fit(found, plan, place, say)
        if is_first_process():
            save_checkpoint(place, result.checkpoint)
            _draw(place, result)
        if plan.mining is not None and not is_last:
            mistakes = _beside(plan.output, f".round{number + 1}.zarr")
            if mistakes.exists() and not is_resumed:
                with storage(mistakes):
                    shutil.rmtree(mistakes)  # the mistakes of another network, from an earlier call
            _mine(plan.mining, place, mistakes, found, seed=plan.seed + number + 1, held_out=result.held_out)
            found = join_patches([found, read_patches(mistakes)])
    if is_first_process():
        for path in progress:
            path.unlink(missing_ok=True)
    best = result.history[result.best]
    return {
        "model": str(plan.output),
        "patches": len(found.images),
        "mpp": found.mpp,
        "network": plan.network if plan.start is None else None,
        "held_out": list(result.held_out),
        "held_out_auc": best.validation_auc,
        "temperature": result.checkpoint.temperature,
    }


def _fit(found: PatchSet, plan: TrainingPlan, place: Path, say: Callable[[str], None]) -> Any:  # noqa: ANN401  (a Training)
    from wsi.cnn.device_augmentation import Augmentation  # noqa: PLC0415  (loads torch)
    from wsi.cnn.method import Method  # noqa: PLC0415
    from wsi.cnn.ranks import is_first_process  # noqa: PLC0415
    from wsi.cnn.training import train  # noqa: PLC0415
    from wsi.cnn.training_log import TrainingLog  # noqa: PLC0415

    method = Method(
        schedule=plan.schedule,
        augmentation=Augmentation() if plan.full_augmentation else None,
        average=plan.average,
        patience=plan.patience,
        temperature=plan.temperature,
        precision=plan.precision,
        compiler="inductor" if plan.compiled else None,
    )
    rate = plan.learning_rate or LEARNING_RATE.get(plan.network, _RESNET_LEARNING_RATE)
    log = TrainingLog(_beside(place, ".csv"), tensorboard=plan.tensorboard) if is_first_process() else None

    def note(epoch: Any) -> None:  # noqa: ANN401  (an Epoch)
        if log is not None:
            log.note(epoch)
            say(str(epoch))

    try:
        return train(
            found.images,
            found.targets,
            mpp=found.mpp,
            groups=found.table["patient"],
            epochs=plan.epochs,
            batch=plan.batch,
            seed=plan.seed,
            device=plan.device,
            **_network(plan, found),
            learning_rate=rate,
            held_out=plan.held_out,
            method=method,
            resume=_beside(place, ".progress"),
            on_epoch=note,
        )
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ConfigurationError(plan.patches[0], str(error), mend="draw other patches") from error


def _network(plan: TrainingPlan, found: PatchSet) -> dict[str, Any]:
    """Architecture and checkpoint to start from, as train takes them."""
    from wsi.cnn.architectures import NETWORKS  # noqa: PLC0415  (loads torch)
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415

    start = None if plan.start is None else load_checkpoint(plan.start)
    architecture = NETWORKS[plan.network] if start is None else start.architecture
    if start is not None and start.mpp != found.mpp:
        raise ConfigurationError(
            plan.start,
            f"looks at {start.mpp} um/px, the patches have {found.mpp}",
            mend="draw patches with its --mpp, or import it with theirs",
        )
    if found.size_px < architecture.receptive_field_px:
        raise ConfigurationError(
            plan.patches[0],
            f"its patches of {found.size_px} px are smaller than the {architecture.receptive_field_px} px that one "
            "cell of the network sees",
            mend=f"draw them with --size {-(-architecture.receptive_field_px // 64) * 64} or take a smaller network",
        )
    return {"architecture": architecture, "start": start}


def _mine(plan: MiningPlan, model: Path, output: Path, found: PatchSet, *, seed: int, held_out: Sequence[str]) -> None:
    """Patches where the network takes normal tissue for tumour, of the slides whose patients it was trained on."""
    slides = [slide for slide in find_slides(plan.slides) if _patient(slide) not in set(held_out)]
    recipe = PatchRecipe(
        mpp=found.mpp, size_px=found.size_px, tumour=0, normal=_EASY, seed=seed, hard=plan.hard, model=model
    )
    with CohortProgress(len(slides), verb="slides searched", tiles=False) as progress:
        sample_cohort(
            slides,
            plan.annotations,
            read_stage_table(plan.reference),
            output,
            recipe=recipe,
            workers=plan.workers or usable_cores(),
            news=progress,
        )


def _patient(slide: SlideFile) -> str:
    return slide.patient or slide.name


def _draw(place: Path, result: Any) -> None:  # noqa: ANN401  (a Training)
    from wsi.cnn.curves import calibration_picture, learning_picture  # noqa: PLC0415  (loads torch)
    from wsi.render import save_png  # noqa: PLC0415

    save_png(_beside(place, ".learning.png"), learning_picture(result))
    save_png(_beside(place, ".calibration.png"), calibration_picture(result))


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name.removesuffix(".safetensors") + ending)
