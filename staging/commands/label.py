"""``sentinode label``: slide labels from lesion sizes, or learned from heatmaps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from staging.commands.options import SlideMpp

if TYPE_CHECKING:
    from staging.learned_labels.training import Recipe


def label(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="lesions.csv, as lesions or run write it. With --apply: the folder of heatmaps. With --train: the "
            "folder of heatmaps and the table of true labels.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="labels.csv: slide,label. With --train: MODEL.json.", show_default=False),
    ],
    slides: Annotated[
        Path | None,
        typer.Option(help="Directory of heatmaps: slides without a lesion are labelled negative.", show_default=False),
    ] = None,
    smallest_um: Annotated[float, typer.Option(help="Shorter lesions count as noise.", min=0)] = 0.0,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the slides: count the nuclei of lesions up to 0.2 mm; more than 200 make micro.",
            show_default=False,
        ),
    ] = None,
    nucleus_um: Annotated[float, typer.Option(help="Diameter of a nucleus, for --cells.", min=1, max=50)] = 6.5,
    slide_mpp: SlideMpp = None,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", help="Label by this model instead of by size.", metavar="MODEL.json"),
    ] = None,
    kind: Annotated[
        Literal["forest", "boosting"], typer.Option(help="With --train: random forest or gradient boosting.")
    ] = "forest",
    trees: Annotated[int, typer.Option(help="With --train: how many trees.", min=1, max=10_000)] = 300,
    split: Annotated[
        Literal["patients", "centres"],
        typer.Option(help="With --train: what cross-validation holds out: patients, or one centre after the other."),
    ] = "patients",
    folds: Annotated[int, typer.Option(help="With --train: folds over patients.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="With --train: of trees and folds.")] = 0,
    *,
    train: Annotated[bool, typer.Option("--train", help="Train a model on labelled slides.")] = False,
) -> None:
    """Label every slide by its largest lesion: over 2 mm macro, over 0.2 mm micro, else itc. Or learn the label.

    A slide without lesions has no row in lesions.csv; name the heatmaps so that it is not forgotten. The rule that was
    applied stands in the result and, beside the labels, in labels.rule.json.

    Example: sentinode label lesions/lesions.csv --slides results/heatmaps -o labels.csv

    Learned: sentinode label --train results/heatmaps stage_labels.csv -o MODEL.json

    and then: sentinode label --apply MODEL.json other/heatmaps -o labels.csv
    """
    from staging.errors import ConfigurationError  # noqa: PLC0415  (slow import)

    wanted = 2 if train else 1
    if train and apply is not None:
        raise ConfigurationError(None, "--train and --apply exclude each other", mend="train first, then apply")
    if len(inputs) != wanted:
        what = "the folder of heatmaps and the table of labels" if train else "one table, or one folder with --apply"
        raise ConfigurationError(None, f"got {len(inputs)} paths where {what} is wanted", mend="see --help")
    if (train or apply is not None) and (cells is not None or slides is not None):
        raise ConfigurationError(
            None, "--cells and --slides belong to labels by size", mend="leave them out, or --train and --apply"
        )
    if train:
        from staging.learned_labels.training import Recipe  # noqa: PLC0415  (slow import)

        recipe = Recipe(kind=kind, trees=trees, folds=folds, split=split, seed=seed)
        record = _train(inputs[0], inputs[1], output, recipe)
    elif apply is not None:
        record = _apply(apply, inputs[0], output)
    else:
        record = _by_size(
            inputs[0],
            output,
            slides=slides,
            smallest_um=smallest_um,
            cells=cells,
            nucleus_um=nucleus_um,
            mpp=slide_mpp,
        )
    typer.echo(json.dumps(record))


def _by_size(
    table: Path,
    output: Path,
    *,
    slides: Path | None,
    smallest_um: float,
    cells: Path | None,
    nucleus_um: float,
    mpp: float | None,
) -> dict[str, Any]:
    from staging.cohorts.camelyon import find_slides  # noqa: PLC0415  (slow import)
    from staging.lesions.cell_counts import count_cells, counted_label_table  # noqa: PLC0415
    from staging.lesions.labels import SizeRule  # noqa: PLC0415
    from staging.lesions.tables import label_table, read_lesion_table  # noqa: PLC0415
    from wsi.store import atomic_text, json_text  # noqa: PLC0415

    found = read_lesion_table(table)
    if slides is not None:
        found = {path.stem: [] for path in sorted(slides.glob("*.zarr"))} | found
    rule = SizeRule(min_um=smallest_um)
    record: dict[str, Any] = {
        "labels": str(output),
        "slides": len(found),
        "rule": {"size": "longest diameter", **asdict(rule), "lesions": _settings_beside(table)},
    }
    atomic_text(output.with_suffix(".rule.json"), json_text(record["rule"]))
    if cells is None:
        atomic_text(output, label_table(found, rule))
        return record
    files = {slide.name: slide.path for slide in find_slides(cells)}
    counts = count_cells(found, table, files, rule=rule, nucleus_um=nucleus_um, mpp=mpp)
    atomic_text(output, counted_label_table(found, counts, rule))
    return record | {"cells": counts, "nucleus_um": nucleus_um}


def _settings_beside(table: Path) -> Any:  # noqa: ANN401  (what a JSON file holds)
    """With which settings the lesions of a table were found, where the files beside it tell."""
    for name, key in (("lesions.json", "settings"), ("run.json", None)):
        try:
            record = json.loads((table.parent / name).read_text(encoding="utf-8"))
            return record[key] if key else {one: record[one] for one in ("threshold", "peak", "merge_gap_um", "rule")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _train(heatmaps: Path, reference: Path, output: Path, recipe: Recipe) -> dict[str, Any]:
    from staging.cohorts.camelyon import read_label_table  # noqa: PLC0415  (slow import)
    from staging.learned_labels.importance_picture import importance_picture  # noqa: PLC0415
    from staging.learned_labels.labelling import find_heatmaps  # noqa: PLC0415
    from staging.learned_labels.training import gather, train_classifier  # noqa: PLC0415
    from staging.learned_labels.trees import write_classifier  # noqa: PLC0415
    from wsi.render import save_png  # noqa: PLC0415

    slides = gather(find_heatmaps(heatmaps), read_label_table(reference), split=recipe.split, reference=reference)
    model = train_classifier(slides, recipe)
    write_classifier(output, model)
    picture = output.with_suffix(".png")
    title = f"What the {recipe.kind} looks at: {len(slides.names)} slides"
    save_png(picture, importance_picture(model.features, model.importances, title=title))
    limits = dict(zip(("itc", "micro", "macro"), model.limits, strict=True))
    return {"model": str(output), "importances": str(picture), "limits": limits, **model.provenance}


def _apply(model: Path, heatmaps: Path, output: Path) -> dict[str, Any]:
    from staging.learned_labels.labelling import find_heatmaps, learned_label_table  # noqa: PLC0415
    from staging.learned_labels.trees import read_classifier  # noqa: PLC0415  (slow import)
    from wsi.store import atomic_text  # noqa: PLC0415

    classifier, found = read_classifier(model), find_heatmaps(heatmaps)
    atomic_text(output, learned_label_table(classifier, found, model=model))
    limits = dict(zip(("itc", "micro", "macro"), classifier.limits, strict=True))
    return {"labels": str(output), "slides": len(found), "model": str(model), "limits": limits}
