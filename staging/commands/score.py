"""``sentinode score``: how well a submission agrees with a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from staging.commands.conditions import only_with
from staging.commands.everywhere import is_quiet
from staging.commands.help_texts import Group
from staging.commands.notices import files_notice, say, warnings_notice
from staging.commands.options import Patients
from staging.commands.outputs import Output, guarded
from staging.commands.reference_option import TakesReference
from staging.errors import ConfigurationError, listed
from staging.scores.texts import (
    difference_lines,
    froc_line,
    froc_text,
    label_line,
    label_text,
    roc_line,
    stage_line,
    stage_text,
)
from wsi.outputs import picture as picture_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from staging.scores.differences import Difference

app = typer.Typer(
    cls=Group, help="Score a submission against a reference; one JSON object on stdout.", no_args_is_help=True
)

Resamples = Annotated[int, typer.Option(help="Bootstrap resamples; 0 for none.", min=0, metavar="N")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Slides read at a time; it does not change the result.",
        min=1,
        metavar="N",
        show_default="one per core",
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed: equal seeds give equal intervals.", min=0, metavar="N")]
Picture = Annotated[
    Path | None,
    Output(kind=lambda path, _: picture_kind(path)),
    typer.Option(help="Also draw it: PNG, JPEG, TIFF or PDF.", show_default=False),
]
Against = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        help="Another submission: adds the paired difference. Several adjust the p-values for their number.",
        show_default=False,
    ),
]
Table = Annotated[bool, typer.Option("--table", help="Also print it as text, on stderr.")]
AllSlides = Annotated[
    bool,
    typer.Option("--all-slides", help="Also score the slides that the organisers leave out (test_049, test_114)."),
]


@app.callback()
def score() -> None:
    """Score a submission against a reference; one JSON object on stdout."""


@app.command(cls=TakesReference)
@guarded
def kappa(
    reference: Annotated[
        Path, typer.Argument(help="The organisers' stage_labels.csv; also as -r.", show_default=False)
    ],
    submission: Annotated[Path, typer.Argument(help="A table in the same format.", show_default=False)],
    *,
    against: Against = None,
    permutations: Annotated[
        int,
        only_with("against"),
        typer.Option(
            help="Permutations sampled for the p-value when there are too many to try all.", min=100, metavar="N"
        ),
    ] = 10_000,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    table: Table = False,
    picture: Picture = None,
) -> None:
    """Quadratic weighted kappa of pN-stages (CAMELYON17): interval, confusion matrix, kappa per centre.

    Example: sentinode score kappa stage_labels.csv stages.csv --against other.csv
    """
    from staging.cohorts.camelyon import read_stage_table  # noqa: PLC0415  (slow import)
    from staging.scores.patients import score_stages  # noqa: PLC0415

    score = score_stages(
        read_stage_table(reference),
        read_stage_table(submission, submission=True),
        against=[read_stage_table(other, submission=True) for other in _others(against)],
        permutations=permutations,
        resamples=resamples,
        seed=seed,
    )
    record = score.to_json()
    for warning in record["warnings"]:
        say(warning)
    _tell(stage_line(record), stage_text(record) if table else None)
    _tell_differences(record)
    if picture is not None:
        from staging.scores.pictures import stage_picture  # noqa: PLC0415

        _save(picture, stage_picture(score))
    _show(record)


@app.command(cls=TakesReference)
@guarded
def labels(
    reference: Annotated[
        Path, typer.Argument(help="stage_labels.csv, or a CSV with header slide,label; also as -r.", show_default=False)
    ],
    submission: Annotated[
        Path, typer.Argument(help="A table in either format, such as labels.csv of a run.", show_default=False)
    ],
    *,
    against: Against = None,
    patients: Patients = None,
    table: Table = False,
    picture: Picture = None,
) -> None:
    """Slide labels (negative, itc, micro, macro): confusion matrix, accuracy, recall per class, each centre.

    Example: sentinode score labels stage_labels.csv results/labels.csv
    """
    from staging.cohorts.camelyon import read_label_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415
    from staging.scores.slides import compare_labels, score_labels  # noqa: PLC0415

    truth, nodes = read_label_table(reference), nodes_of(patients)
    _tell_swapped(reference)
    score = score_labels(truth, read_label_table(submission), nodes=nodes, source=submission)
    others = {
        str(other): score_labels(truth, read_label_table(other), nodes=nodes, source=other)
        for other in _others(against)
    }
    record = score.to_json() | _against({name: compare_labels(score, one) for name, one in others.items()})
    _tell_differences(record)
    _tell_strangers(score.without_patient)
    _tell(label_line(record), label_text(record) if table else None)
    if picture is not None:
        from staging.scores.pictures import label_picture  # noqa: PLC0415

        _save(picture, label_picture(score))
    _show(record)


@app.command(cls=TakesReference)
@guarded
def auc(
    reference: Annotated[
        Path,
        typer.Argument(
            help="CAMELYON16's reference.csv, stage_labels.csv or a CSV slide,label; also as -r.",
            show_default=False,
        ),
    ],
    predictions: Annotated[
        Path,
        typer.Argument(
            help="Rows slide,probability, or a CSV with these columns (labels.csv of a run).", show_default=False
        ),
    ],
    *,
    against: Against = None,
    all_slides: AllSlides = False,
    patients: Patients = None,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    table: Table = False,
    picture: Picture = None,
) -> None:
    """Area under the ROC curve of slide probabilities (CAMELYON16's slide task): intervals, each centre.

    Example: sentinode score auc reference.csv predictions.csv --picture roc.png
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415
    from staging.cohorts.references import read_predictions, read_truth  # noqa: PLC0415  (slow import)
    from staging.scores.slides import compare_areas, score_auc  # noqa: PLC0415

    truth, found, nodes = read_truth(reference), read_predictions(predictions), nodes_of(patients)
    _tell_swapped(reference)
    score = score_auc(
        truth,
        found,
        with_errata=not all_slides,
        resamples=resamples,
        seed=seed,
        nodes=nodes,
        source=predictions,
    )
    differences = {
        str(other): {
            "auc": compare_areas(
                truth, found, read_predictions(other), with_errata=not all_slides, nodes=nodes, source=other
            )
        }
        for other in _others(against)
    }
    record = score.to_json() | _against(differences)
    _tell_differences(record)
    _tell_strangers(score.without_patient)
    for warning in record["warnings"]:
        say(warning)
    _tell(roc_line(record), roc_line(record) if table else None)
    if picture is not None:
        from staging.scores.pictures import roc_picture  # noqa: PLC0415

        _save(picture, roc_picture(score))
    _show(record)


@app.command(cls=TakesReference)
@guarded
def froc(
    masks: Annotated[
        Path,
        typer.Argument(
            help="Folder of masks: TIFF pyramids, level-5 TIFF or PNG, or annotations; also as -r.",
            show_default=False,
        ),
    ],
    detections: Annotated[
        Path,
        typer.Argument(
            help="Folder with one CSV per slide: rows probability,x,y in level-0 px, no header; empty for none.",
            show_default=False,
        ),
    ],
    *,
    against: Against = None,
    normal_list: Annotated[
        Path | None,
        typer.Option(
            help="Slides without tumour, which need no mask: one name per line, or reference.csv.", show_default=False
        ),
    ] = None,
    missing_mask_is_normal: Annotated[
        bool,
        typer.Option("--missing-mask-is-normal", help="Treat slides without a mask, or with a blank one, as normal."),
    ] = False,
    tumour_value: Annotated[
        int | None,
        typer.Option(
            help="Value of tumour pixels: 255 in CAMELYON16, 1 as ASAP writes it, 2 in the object store.",
            min=0,
            max=255,
            metavar="N",
            show_default="detected if unambiguous",
        ),
    ] = None,
    level: Annotated[
        int, typer.Option(help="Level of the pyramid to score at; the organisers' is 5.", min=3, max=8, metavar="N")
    ] = 5,
    of_slides_um: Annotated[
        float | None,
        typer.Option(
            "--slide-mpp",
            help="um per pixel of the slides' finest level, in which detections and annotations are.",
            min=0.01,
            max=100,
            show_default="what a mask says, else 0.243",
        ),
    ] = None,
    all_slides: AllSlides = False,
    patients: Patients = None,
    workers: Workers = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    table: Table = False,
    picture: Picture = None,
) -> None:
    """FROC score of detected lesions (CAMELYON16's lesion task), as the organisers compute it and corrected.

    Example: sentinode score froc masks detections --normal-list reference.csv --picture froc.png
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415
    from staging.cohorts.references import read_normal_slides  # noqa: PLC0415
    from staging.scores.lesion_task import compare_scores, score_folders  # noqa: PLC0415  (slow import)

    nodes = nodes_of(patients)
    scored = partial(
        score_folders,
        masks,
        normal_slides=frozenset() if normal_list is None else read_normal_slides(normal_list),
        missing_mask_is_normal=missing_mask_is_normal,
        tumour_value=tumour_value,
        pyramid_level=level,
        slide_mpp=of_slides_um,
        with_errata=not all_slides,
        workers=workers,
        nodes=nodes,
        seed=seed,
    )
    score = scored(detections, resamples=resamples)
    others = {str(other): compare_scores(score, scored(other, resamples=0), nodes=nodes) for other in _others(against)}
    record = score.to_json() | _against(others)
    _tell_differences(record)
    warnings_notice(record["warnings"])
    if of_slides_um is None and "outlines" in record["tumour_values"]:
        say("the slides of the annotations are taken to have 0.243 um/px, as CAMELYON16's; --slide-mpp says otherwise")
    skipped = files_notice("detections", [detections], {".csv"})
    _tell(froc_line(record), froc_text(record) if table else None)
    if picture is not None:
        from staging.scores.pictures import froc_picture  # noqa: PLC0415

        _save(picture, froc_picture(score))
    _show({**record, **skipped})


def _tell(line: str, table: str | None) -> None:
    """Print the table that was asked for, else the score as one line unless the command is quiet; both on stderr."""
    if table is not None:
        typer.echo(table, err=True)
    elif not is_quiet():
        say(line)


def _save(path: Path, drawn: NDArray[np.uint8]) -> None:
    from wsi.render import save_picture  # noqa: PLC0415  (slow import)

    save_picture(path, drawn)


def _others(against: list[Path] | None) -> list[Path]:
    """Return the other submissions.

    Raises:
        ConfigurationError: one is given twice, which would count as another comparison.
    """
    others = against or []
    for at, other in enumerate(others):
        if other.resolve() in {one.resolve() for one in others[:at]}:
            raise ConfigurationError(other, "is given twice to --against", mend="give it once")
    return others


def _against(differences: Mapping[str, Mapping[str, Difference]]) -> dict[str, Any]:
    """Return the comparisons with other submissions for the command's JSON; nothing without any."""
    from staging.scores.several import with_adjusted  # noqa: PLC0415  (slow import)

    found = [
        {"submission": name, "score": score, **one.to_json()}
        for name, of_scores in differences.items()
        for score, one in of_scores.items()
    ]
    return {"against": with_adjusted(found)} if found else {}


def _tell_differences(record: Mapping[str, Any]) -> None:
    """Say how the submission differs from others."""
    for line in difference_lines(record.get("against", ())):
        say(line)


def _tell_swapped(reference: Path) -> None:
    """Say that the reference is what a network found, if it is."""
    from staging.lesions.tables import read_seen  # noqa: PLC0415  (slow import)

    if read_seen(reference):
        say(f"{reference} says how much was looked at, as the table of a run does: is it the reference?")


def _tell_strangers(slides: Sequence[str]) -> None:
    """Say which slides count as patients of their own although they may not be; CAMELYON16's are."""
    from staging.cohorts.names import is_camelyon16  # noqa: PLC0415  (slow import)

    others = [slide for slide in slides if not is_camelyon16(slide)]
    if others:
        say(f"{len(others)} slides of no known patient count as independent ({listed(others)}): give --patients")


def _show(record: dict[str, Any]) -> None:
    typer.echo(json.dumps(record, allow_nan=False))
