"""``sentinode label``: slide labels from lesion sizes, or learned from heatmaps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from staging.commands.conditions import OnlyIf, only_with
from staging.commands.notices import heatmaps_notice, say, skipped_notice, unseen_notice
from staging.commands.options import (
    AllowPartial,
    SlideMpp,
    Smallest,
    Tolerance,
)
from staging.commands.outputs import Made, Output, guarded
from staging.errors import ConfigurationError
from staging.lesions.labels import SizeRule
from staging.lesions.settings import COVERAGE_TOLERANCE, NUCLEUS_UM
from wsi.outputs import OutputKind, json_file, picture, table

_BY_SIZE = OnlyIf(lambda given: not given["train"] and given["apply"] is None, "with --train or --apply")


def _kind(_: Path, given: Mapping[str, Any]) -> OutputKind:
    if given["train"]:
        return json_file("a model of labels", "sentinode slide classifier")
    return table("slide", "label", name="a table of labels")


def _beside(path: Path, given: Mapping[str, Any]) -> Made:
    if given["train"]:
        return [(path.with_suffix(".png"), picture(path.with_suffix(".png")))]
    if given["apply"] is not None:
        return []
    return [(path.with_suffix(".rule.json"), json_file("a rule of sentinode label", '"longest diameter"'))]


@guarded
def label(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="lesions.csv from lesions or run. With --apply: the folder of heatmaps. With --train: the "
            "folder of heatmaps and the table of true labels.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=_kind, beside=_beside),
        typer.Option("--output", "-o", help="labels.csv: slide,label. With --train: MODEL.json.", show_default=False),
    ],
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            help="Directory of heatmaps: it lists the slides without lesions, for a table that stands alone.",
            show_default=False,
        ),
    ] = None,
    smallest_um: Annotated[Smallest, _BY_SIZE] = 0.0,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Directory of slides: count the nuclei of lesions up to 0.2 mm; more than 200 make it micro.",
            show_default=False,
        ),
    ] = None,
    nucleus_um: Annotated[
        float, only_with("cells"), typer.Option(help="Diameter of a nucleus, for --cells.", min=1, max=50)
    ] = NUCLEUS_UM,
    slide_mpp: Annotated[SlideMpp, only_with("cells")] = None,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", help="Label by this model instead of by size.", metavar="MODEL.json"),
    ] = None,
    kind: Annotated[
        Literal["forest", "boosting"],
        only_with("train"),
        typer.Option(help="With --train: a random forest or gradient boosting."),
    ] = "forest",
    trees: Annotated[
        int, only_with("train"), typer.Option(help="With --train: number of trees.", min=1, max=10_000)
    ] = 300,
    hold_out: Annotated[
        Literal["patients", "centres"],
        only_with("train"),
        typer.Option(help="With --train: what cross-validation holds out: patients, or one centre at a time."),
    ] = "patients",
    folds: Annotated[
        int, only_with("train"), typer.Option(help="With --train: number of folds of patients.", min=2)
    ] = 5,
    seed: Annotated[int, only_with("train"), typer.Option(help="With --train: seed of trees and folds.")] = 0,
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_partial: AllowPartial = False,
    train: Annotated[bool, typer.Option("--train", help="Train a model on labelled slides.")] = False,
) -> None:
    """Label every slide by its largest lesion: over 2 mm macro, over 0.2 mm micro, else itc; or by a learned model.

    Slides without lesions have no row in lesions.csv: lesions and run list them in a file beside it. The rule that was
    applied is printed, and written beside the labels as labels.rule.json. Exit code 3: slides were left out, because
    too much of the tissue went unseen.

    Example: sentinode label lesions/lesions.csv -o labels.csv

    Learned: sentinode label --train results/heatmaps stage_labels.csv -o MODEL.json

    and then: sentinode label --apply MODEL.json other/heatmaps -o labels.csv
    """
    from staging.lesions.seen import SeenRule  # noqa: PLC0415  (slow import)

    wanted = 2 if train else 1
    if train and apply is not None:
        raise ConfigurationError(None, "--train and --apply exclude each other", mend="train first, then apply")
    if len(inputs) != wanted:
        what = (
            "the folder of heatmaps and the table of labels are"
            if train
            else "one table, or one folder with --apply, is"
        )
        raise ConfigurationError(None, f"got {len(inputs)} paths; {what} needed", mend="see --help")
    if (train or apply is not None) and (cells is not None or heatmaps is not None):
        raise ConfigurationError(
            None,
            "--cells and --heatmaps are for labels by size",
            mend="leave them out, or leave out --train and --apply",
        )
    seen_rule = SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial)
    skipped = heatmaps_notice([path for path in (*inputs, heatmaps) if path is not None])
    if train:
        from staging.learned_labels.labelling import train_on_heatmaps  # noqa: PLC0415  (slow import)
        from staging.learned_labels.training import Recipe  # noqa: PLC0415

        recipe = Recipe(kind=kind, trees=trees, folds=folds, split=hold_out, seed=seed)
        record = train_on_heatmaps(inputs[0], inputs[1], output, recipe, seen_rule)
    elif apply is not None:
        from staging.cohorts.training_patients import trained_on_text  # noqa: PLC0415  (slow import)
        from staging.learned_labels.labelling import label_heatmaps  # noqa: PLC0415

        record = label_heatmaps(apply, inputs[0], output, seen_rule)
        if record["trained_on"]:
            say(trained_on_text("classifier", record["trained_on"], record["slides"]))
    else:
        from staging.cohorts.camelyon import list_slides  # noqa: PLC0415  (slow import)
        from staging.lesions.size_labels import label_by_size  # noqa: PLC0415
        from staging.verifying import refuse_changed_run  # noqa: PLC0415

        refuse_changed_run(inputs[0])
        if cells is not None:
            listing = list_slides(cells)
            skipped_notice(listing)
        record = label_by_size(
            inputs[0],
            output,
            rule=SizeRule(smallest_um=smallest_um),
            heatmaps=heatmaps,
            seen_rule=seen_rule,
            slides=None if cells is None else {slide.name: slide.path for slide in listing.slides},
            nucleus_um=nucleus_um,
            mpp=slide_mpp,
        )
    typer.echo(json.dumps(record | skipped))
    unseen_notice(record)
