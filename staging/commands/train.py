"""``sentinode train``: a checkpoint from labelled patches."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from staging.commands.conditions import OnlyIf, only_with
from staging.commands.notices import cohort_notices, foretold_notice
from staging.commands.options import Device, DryRun, OnBadTile, Patients, SlideMpp, Smallest, Workers
from staging.commands.outputs import Made, Output, always, guarded
from staging.lesions.settings import SMALLEST_UM
from wsi.outputs import FileKind, OutputKind, begins, picture, table, weights

_CHECKPOINT = weights("a checkpoint", "sentinode checkpoint")
_LOG = table("epoch", "loss", name="a log of training")
_HELD_OUT = table("slide", "centre", "patches", name="a table of held-out slides")
_PATCHES = FileKind(name="a table of patches", suffixes=(".parquet",), is_one=begins(b"PAR1"))


def _beside(path: Path, given: Mapping[str, Any]) -> Made:
    """List what training writes beside the checkpoint, and the same for each round of mining."""
    name = path.name.removesuffix(".safetensors")
    rounds = [f"{name}.round{number}" for number in range(1, 1 + given["rounds"])]
    kinds: dict[str, OutputKind] = {f"{one}.csv": _LOG for one in (name, *rounds)}
    for one in (name, *rounds):
        for curve in ("learning", "calibration"):
            drawn = path.with_name(f"{one}.{curve}.png")
            kinds[drawn.name] = picture(drawn)
    kinds[f"{name}.held_out.csv"] = _HELD_OUT
    kinds |= {f"{one}.safetensors": _CHECKPOINT for one in rounds} | {f"{one}.parquet": _PATCHES for one in rounds}
    return [(path.with_name(one), kind) for one, kind in kinds.items()]


def _was_interrupted(path: Path, _: Mapping[str, Any]) -> bool:
    """Return whether a killed call left its progress, or its lock, beside the checkpoint."""
    name = path.name.removesuffix(".safetensors")
    return any(
        re.fullmatch(rf"{re.escape(name)}(\.round\d+)?\.progress|\.{re.escape(name)}\.training", one.name)
        for one in path.absolute().parent.glob("*")
    )


@guarded
def train(
    patches: Annotated[list[Path], typer.Argument(help="Stores or tables from sentinode patches; several are joined.")],
    output: Annotated[
        Path,
        Output(kind=always(_CHECKPOINT), beside=_beside, resumes=_was_interrupted),
        typer.Option("--output", "-o", help="The checkpoint, model.safetensors.", show_default=False),
    ],
    network: Annotated[
        Literal["small", "resnet18", "resnet34", "resnet50"],
        OnlyIf(lambda given: given["start"] is None, "with --start"),
        typer.Option(help="Architecture; one cell sees 96, 436, 900 or 428 px."),
    ] = "small",
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from, instead of --network.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the patches.", min=1)] = 12,
    batch: Annotated[int, typer.Option(help="Patches per step.", min=1)] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate.", min=1e-7, max=1, show_default="0.004 for small, 0.001 for the others"),
    ] = None,
    schedule: Annotated[
        Literal["one-cycle", "cosine"], typer.Option(help="Learning-rate schedule; cosine starts with a warm-up.")
    ] = "one-cycle",
    augment: Annotated[
        Literal["light", "full"],
        typer.Option(
            help="light: rotation, stain, focus. full: Macenko stain, brightness, blur and JPEG instead of focus."
        ),
    ] = "light",
    average: Annotated[float, typer.Option(help="Decay of the running mean of the weights; 0 for none.", min=0)] = 0.0,
    patience: Annotated[
        int | None,
        OnlyIf(lambda given: given["held_out"] > 0, "with --held-out 0"),
        typer.Option(
            help="Stop after this many epochs without improvement on held-out patients.", min=1, show_default=False
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of patients to validate on, unless a split names validation patients.", min=0, max=0.9
        ),
    ] = 0.2,
    fold: Annotated[
        int | None,
        typer.Option(help="Fold to leave out, if patients were split into folds.", min=0, show_default=False),
    ] = None,
    on_bad_tile: OnBadTile = "raise",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto: bf16 on a GPU that has it, else fp32.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.", min=0)] = 0,
    device: Device = "auto",
    rounds: Annotated[
        int, typer.Option(help="Rounds of hard-negative mining; the network is retrained after each.", min=0)
    ] = 0,
    slides: Annotated[
        list[Path] | None,
        typer.Option(help="Slides of the patches: for --rounds, and to learn the peak of lesions.", show_default=False),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", "-a", help="Their annotations.", show_default=False)
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="Their labels, like stage_labels.csv.", show_default=False)
    ] = None,
    smallest_um: Annotated[Smallest, only_with("slides")] = SMALLEST_UM,
    slide_mpp: Annotated[SlideMpp, only_with("slides")] = None,
    patients: Annotated[Patients, only_with("slides")] = None,
    hard: Annotated[int, only_with("rounds"), typer.Option(help="False positives per slide and round.", min=1)] = 24,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard events.", show_default=False)] = None,
    workers: Workers = None,
    *,
    dry_run: DryRun = False,
    temperature: Annotated[
        bool, typer.Option(help="Calibrate the probabilities on held-out patients (temperature scaling).")
    ] = True,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile: pays for long training on a GPU.")
    ] = False,
) -> None:
    """Train a network on patches and keep the best epoch on held-out patients.

    Patients of the test split are left out. Sets too large for memory are read from the slides during training. A
    killed call resumes when it is repeated. On several GPUs: torchrun --nproc-per-node 4 -m staging train ... A log
    (.csv), the held-out slides one by one (.held_out.csv), and learning and calibration curves (.png) are written
    beside the checkpoint.

    Example: sentinode train patches -o model.safetensors --epochs 12
    """
    from staging.cohorts.camelyon import list_slides, read_stage_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.patients import nodes_of, with_patients  # noqa: PLC0415
    from staging.errors import ConfigurationError  # noqa: PLC0415  (keeps --help quick)
    from staging.training.labelled_cohort import LabelledCohort  # noqa: PLC0415
    from staging.training.mining import MiningPlan  # noqa: PLC0415
    from staging.training.plan import TrainingPlan  # noqa: PLC0415
    from staging.training.rounds import run_training  # noqa: PLC0415
    from staging.training.training_progress import TrainingProgress  # noqa: PLC0415
    from wsi.cnn.augmentation import FULL, LIGHT  # noqa: PLC0415  (loads torch)
    from wsi.cnn.method import Method  # noqa: PLC0415
    from wsi.cnn.ranks import is_first_process  # noqa: PLC0415

    cohort = None
    notices: dict[str, object] = {}
    if slides and annotations is not None and reference is not None:
        listing = with_patients(list_slides(slides), nodes_of(patients))
        cohort = LabelledCohort(slides=listing.slides, annotations=annotations, reference=read_stage_table(reference))
        if is_first_process():
            notices = cohort_notices(listing, mpp=slide_mpp, annotations=annotations)
    elif rounds or slides or annotations is not None or reference is not None:
        raise ConfigurationError(
            None,
            "rounds need the training slides" if rounds else "the peak is learnt from labelled slides",
            mend="give --slides, --annotations and --reference",
        )
    if not average < 1:
        raise ConfigurationError(None, f"--average is a decay below 1, got {average}", mend="try 0.999")
    plan = TrainingPlan(
        patches=tuple(patches),
        output=output,
        method=Method(
            epochs=epochs,
            batch=batch,
            seed=seed,
            learning_rate=learning_rate,
            schedule=schedule,
            augmentation=FULL if augment == "full" else LIGHT,
            average=average,
            patience=patience,
            temperature=temperature,
            precision=precision,
            compiler="inductor" if compiled else None,
        ),
        held_out=held_out,
        network=network,
        start=start,
        cohort=cohort,
        mining=MiningPlan(rounds=rounds, hard=hard) if rounds else None,
        fold=fold,
        on_bad_tile=on_bad_tile,
        smallest_um=smallest_um,
        slide_mpp=slide_mpp,
        device=device,
        workers=workers,
        tensorboard=tensorboard,
    )
    if dry_run:
        from staging.training.training_rehearsal import rehearse_training  # noqa: PLC0415

        foretold = rehearse_training(plan)
        if is_first_process():
            foretold_notice(foretold, what=f"{foretold['learnt']} patches to learn from")
            typer.echo(json.dumps(foretold | notices))
        return
    with TrainingProgress(is_silent=not is_first_process()) as progress:
        made = run_training(plan, news=progress)
    if is_first_process():
        typer.echo(json.dumps({**made, **notices}))
