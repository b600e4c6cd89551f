"""``sentinode patches``: labelled training patches from slides and their annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from staging.commands.notices import cohort_notices, foretold_notice, say, warnings_notice
from staging.commands.options import SOURCE, AllowEmpty, Device, DryRun, Patients, SlideMpp, Upsample, Workers
from staging.commands.outputs import Made, Output, guarded
from staging.errors import ConfigurationError
from wsi.outputs import ArtefactKind, FileKind, FolderKind, OutputKind, begins, picture

if TYPE_CHECKING:
    from annotations.patches.labels import LabelRule
    from annotations.patches.splits import Split


def _kind(path: Path, given: Mapping[str, Any]) -> OutputKind:
    suffix = {"zarr": ".zarr", "table": ".parquet"}.get(given["form"] or "", path.suffix.lower())
    if suffix == ".zarr":
        return ArtefactKind(kind="patch store")
    if suffix == ".parquet":
        return FileKind(name="a table of patches", suffixes=(".parquet",), is_one=begins(b"PAR1"))
    return FolderKind(record=".parts/made_from.json")


def _beside(path: Path, given: Mapping[str, Any]) -> Made:
    sheet = path.with_name(f"{path.stem}_contact_sheet.png")
    is_beside = given["contact_sheet"] and not isinstance(_kind(path, given), FolderKind)
    return [(sheet, picture(sheet))] if is_beside else []


@guarded
def patches(
    slides: Annotated[
        list[Path],
        typer.Argument(
            help="A directory of slides, or slides; without -a the last one is the annotations.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=_kind, beside=_beside, resumes=lambda path, _: path.with_name(f".{path.name}.parts").is_dir()),
        typer.Option(
            "--output",
            "-o",
            help="A folder, NAME.zarr for Zarr, or NAME.parquet for the table alone.",
            show_default=False,
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            "-a",
            help="Directory of annotations (XML, GeoJSON, HALO), one file per slide.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "-r",
            help="Table of slide labels (stage_labels.csv): which slides without annotations are negative.",
            show_default=False,
        ),
    ] = None,
    mpp: Annotated[float, typer.Option(help="um per pixel of the patches.", min=0.1, max=16)] = 2.0,
    size: Annotated[int, typer.Option(help="Side of a patch in px.", min=32, max=4096)] = 192,
    tumour: Annotated[int, typer.Option(help="Patches with tumour per slide with annotations.", min=0)] = 64,
    normal: Annotated[int, typer.Option(help="Patches without tumour per slide.", min=0)] = 32,
    per_class: Annotated[
        int | None,
        typer.Option(
            help="Patches of each class in total, shared equally among centres and their slides, "
            "instead of --tumour and --normal.",
            min=1,
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        Literal["lesion", "uniform", "border"],
        typer.Option(
            help="Where tumour is sampled: from each lesion in turn, uniformly over the tumour, or on outlines only."
        ),
    ] = "lesion",
    label: Annotated[
        str,
        typer.Option(
            help="What makes a patch tumour: any pixel, its centre, or this share of its area: any, centre, area:0.5."
        ),
    ] = "any",
    hard: Annotated[
        int, typer.Option(help="Extra normal patches per slide where --model or --heatmaps see tumour.", min=0)
    ] = 0,
    hard_choice: Annotated[
        Literal["worst", "even"] | None,
        typer.Option(
            help="Which of these: the most probable, at least half a patch apart, or any of at least 0.5 alike.",
            show_default="worst",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="A checkpoint whose false positives are sampled; runs on --device.",
            show_default=False,
        ),
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(help="Directory of SLIDE.zarr heatmaps, instead of --model.", show_default=False)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split the patients: patient:0.7,0.15,0.15 or centre:4 or folds:5.", show_default="all in train"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="What is written: sparse slides with only the tiles needed (their bytes copied, nothing decoded), "
            "the table alone, or an export for other tools (zarr, webdataset, hdf5, png, jpeg).",
            metavar="NAME",
            show_default="sparse, or by the output's name",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            help="JPEG quality: of tiles that cannot be copied (90), of jpeg (95), of webdataset (else PNG).",
            min=1,
            max=100,
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        SOURCE,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="What annotation groups mean: camelyon16, camelyon17 or a TOML file.",
            show_default="the known ones",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal patches.", min=0)] = 0,
    slide_mpp: SlideMpp = None,
    patients: Patients = None,
    device: Device = "auto",
    workers: Workers = None,
    *,
    allow_empty: AllowEmpty = False,
    upsample: Upsample = False,
    dry_run: DryRun = False,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet/--no-contact-sheet", help="Write a PNG with some patches of every kind.")
    ] = True,
) -> None:
    """Sample labelled patches; slides without annotations are normal only if labelled negative.

    Slides known to be wrong or only partly annotated are left out. An interrupted call resumes when it is repeated.
    Prints the counts as JSON.

    --device is for --model alone. On a GPU one process does all the work with one reading thread per core, unless
    --workers says how many processes share the GPU, each with its own copy of the network in GPU memory.

    Example: sentinode patches cohort/images cohort/annotations -r cohort/stage_labels.csv -o patches --per-class 1000
    """
    from annotations.groups import group_map  # noqa: PLC0415  (slow import)
    from annotations.patches.batch import HARD_CHOICE  # noqa: PLC0415
    from staging.cohorts.camelyon import StageTable, list_slides, read_label_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.patients import nodes_of, with_patients  # noqa: PLC0415
    from staging.training.patch_progress import PatchProgress  # noqa: PLC0415
    from staging.training.sampling import PatchRecipe, sample_cohort  # noqa: PLC0415

    where, drawn = _apart(slides, annotations)
    rule, parts = _parsed(label, split)
    _check_hard(hard, hard_choice, model, heatmaps, device)
    if model is not None:
        from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

        load_checkpoint(model)
    listing = with_patients(list_slides(where), nodes_of(patients))
    found = listing.slides
    processes, threads = _shared_out(workers, model, device)
    recipe = PatchRecipe(
        mpp=mpp,
        size_px=size,
        tumour=tumour,
        normal=normal,
        seed=seed,
        per_class=per_class,
        strategy=strategy,
        rule=rule,
        hard=hard,
        hard_choice=hard_choice or HARD_CHOICE,
        model=model,
        heatmaps=heatmaps,
        split=parts,
        slide_mpp=slide_mpp,
        groups={} if groups is None else group_map(groups),
        device=device,
        threads=threads,
        upsample=upsample,
        allows_empty=allow_empty,
    )
    notices = cohort_notices(listing, mpp=slide_mpp, annotations=drawn)
    table = StageTable() if reference is None else StageTable(labels=read_label_table(reference))
    if dry_run:
        from staging.training.patch_rehearsal import rehearse_patches  # noqa: PLC0415

        foretold = rehearse_patches(
            found, drawn, table, output, recipe=recipe, workers=processes, form=form, quality=quality
        )
        foretold_notice(foretold, what=f"about {foretold['count']} patches of {foretold['slides']} slides")
        typer.echo(json.dumps(foretold | notices))
        return
    with PatchProgress(len(found)) as progress:
        counts = sample_cohort(
            found,
            drawn,
            table,
            output,
            recipe=recipe,
            workers=processes,
            news=progress,
            form=form,
            quality=quality,
            has_contact_sheet=contact_sheet,
        )
    warnings_notice(counts["warnings"])
    for name, reasons in counts["remade"].items():
        say(f"{name}: made again: {'; '.join(reasons)}")
    of_slides, odd = notices["warnings"], counts["warnings"]
    warnings = {name: [*of_slides.get(name, ()), *odd.get(name, ())] for name in sorted({*of_slides, *odd})}
    typer.echo(json.dumps({"patches": str(output), **counts, **notices, "warnings": warnings}))


def _apart(slides: list[Path], annotations: Path | None) -> tuple[list[Path], Path]:
    """Separate slides and annotations, which may be the last argument."""
    if annotations is not None:
        return slides, annotations
    if len(slides) < 2 or not slides[-1].is_dir():
        raise ConfigurationError(
            slides[-1], "is not a directory of annotations", mend="give it after the slides, or with --annotations"
        )
    return slides[:-1], slides[-1]


def _parsed(label: str, split: str | None) -> tuple[LabelRule, Split | None]:
    from annotations.patches.labels import LabelRule  # noqa: PLC0415  (slow import)
    from annotations.patches.splits import Split  # noqa: PLC0415

    try:
        rule = LabelRule.parse(label)
    except ValueError as error:
        raise ConfigurationError(None, f"--label: {error}", mend="give any, centre or area:0.5") from error
    try:
        return rule, None if split is None else Split.parse(split)
    except ValueError as error:
        mend = "give patient:0.7,0.15,0.15 or centre:4 or folds:5"
        raise ConfigurationError(None, f"--split: {error}", mend=mend) from error


def _check_hard(hard: int, choice: str | None, model: Path | None, heatmaps: Path | None, device: str) -> None:
    """Refuse options that would be silently ignored.

    Raises:
        ConfigurationError: options that need each other, or exclude each other.
    """
    given = (model is not None) + (heatmaps is not None)
    if hard and given != 1:
        raise ConfigurationError(None, "--hard needs either --model or --heatmaps", mend="give one of them")
    if given and not hard:
        raise ConfigurationError(None, "--model and --heatmaps are for --hard", mend="say how many with --hard")
    if choice is not None and not hard:
        raise ConfigurationError(None, "--hard-choice is for --hard", mend="say how many with --hard")
    if device != "auto" and model is None:
        raise ConfigurationError(None, "--device is for --model alone", mend="leave it out")


def _shared_out(workers: int | None, model: Path | None, device: str) -> tuple[int, int]:
    from wsi.cores import usable_cores  # noqa: PLC0415  (slow import)

    if model is None:
        return workers or usable_cores(), 1
    from wsi.cnn.device import shared_out  # noqa: PLC0415  (loads torch)

    return shared_out(device, workers)
