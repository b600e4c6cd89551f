"""``sentinode mil``: slides judged whole, by a head that learns from slide labels alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

from staging.commands.options import Device

EXIT_QUARANTINED = 3
_TWO = ("negative", "positive")
_JUDGED = "mil.json"
_COLUMNS = ("slide", "label", "probability")
"""Before the probability of each class; probability is that of anything but negative."""

app = typer.Typer(help="Judge whole slides by attention over the features of their tiles.", no_args_is_help=True)

Features = Annotated[
    list[Path], typer.Argument(help="Directories of features, as sentinode features writes.", show_default=False)
]


class JudgedSlide(Protocol):
    """What is needed of wsi.cnn.encoders.features.SlideFeatures."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


@app.callback()
def mil() -> None:
    """Judge whole slides by attention over the features of their tiles; one JSON object on stdout."""


@app.command()
def train(
    features: Features,
    reference: Annotated[
        Path,
        typer.Argument(help="CAMELYON16's reference.csv, stage_labels.csv or a CSV slide,label.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The head, .safetensors.", show_default=False)],
    *,
    classes: Annotated[
        Literal["2", "4"], typer.Option(help="negative or positive; or negative, itc, micro, macro.")
    ] = "2",
    patients: Annotated[
        Path | None,
        typer.Option(help="CSV slide,patient where names do not tell the patient.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often every slide is seen.", min=1)] = 40,
    folds: Annotated[int, typer.Option(help="Parts of the patients, each judged by a head without it.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal heads.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Folds trained at a time; the result does not depend on it.", min=1, show_default="one per core"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train an attention head on slide labels alone, and judge it on patients that it has not seen.

    Beside the head stands HEAD.unseen.csv: for each slide what a head says that has not seen the patient; it goes into
    sentinode score auc, and with 4 classes into sentinode stage. Slides whose name does not tell the patient count as
    patients of their own; the JSON says how many do.

    Example: sentinode mil train features stage_labels.csv -o head.safetensors
    """
    from staging.cohorts.names import patient_of, slide_key  # noqa: PLC0415  (slow import)
    from staging.errors import ConfigurationError  # noqa: PLC0415  (slow import)
    from staging.lesions.tables import csv_text  # noqa: PLC0415
    from staging.scores.roc import area_under_curve  # noqa: PLC0415
    from wsi.cnn.device import pick_device  # noqa: PLC0415  (loads torch)
    from wsi.cnn.encoders.mil import save_head  # noqa: PLC0415
    from wsi.cnn.encoders.mil_training import Bag, MilTraining, train_head  # noqa: PLC0415
    from wsi.store import atomic_text  # noqa: PLC0415

    pick_device(device)  # before anything is read
    if output.is_dir():
        raise ConfigurationError(output, "is a directory", mend="name a file, head.safetensors")
    names, labels = _labels(reference, classes)
    found, failures = _opened(features)
    bags, left_out, alone = [], {}, 0
    known = _patients(patients) if patients is not None else {}
    for slide in found:
        reason = _why_left_out(slide.name, labels)
        if reason is not None:
            left_out[slide.name] = reason
            continue
        patient = known.get(slide_key(slide.name)) or patient_of(slide.name)
        alone += patient is None
        bags.append(
            Bag(
                slide=slide.name,
                patient=patient or f"slide {slide_key(slide.name)}",
                label=labels[slide_key(slide.name)],
                load=slide.load,
            )
        )
    _check_some(bags, reference, failures)
    recipe = _recipe([slide for slide in found if slide.name not in left_out])
    result = train_head(
        bags,
        class_names=names,
        recipe=recipe,
        options=MilTraining(rounds=rounds, folds=folds, seed=seed),
        device=device,
        workers=workers,
        on_round=_tell,
    )
    save_head(output, result.head)
    truth = {bag.slide: bag.label for bag in bags}
    order = sorted(truth)
    rows = ((*_row(slide, names, result.unseen[slide]), names[truth[slide]], result.folds[slide]) for slide in order)
    table = output.with_suffix(".unseen.csv")
    atomic_text(table, csv_text((*_COLUMNS, *names, "reference", "fold"), rows))
    auc = area_under_curve(
        [truth[slide] > 0 for slide in order], [float(result.unseen[slide][1:].sum()) for slide in order]
    )
    typer.echo(
        json.dumps(
            {
                "head": str(output),
                "unseen": str(table),
                "auc_unseen": round(auc, 4),
                "folds": max(result.folds.values()) + 1,
                "slides": {name: sum(label == number for label in truth.values()) for number, name in enumerate(names)},
                "patients": len({bag.patient for bag in bags}),
                "slides_without_patient": alone,
                "left_out": left_out,
                "without_features": sorted(labels.keys() - {slide_key(slide.name) for slide in found}),
                "quarantined": failures,
            }
        )
    )
    if failures:
        raise typer.Exit(EXIT_QUARANTINED)


@app.command()
def apply(
    head: Annotated[Path, typer.Argument(help="A head, as mil train writes it.", show_default=False)],
    features: Features,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Directory: probabilities.csv and attention per slide.", show_default=False
        ),
    ],
    device: Device = "auto",
) -> None:
    """Judge slides: their probability of metastasis, and where the head looked (attention, which is no probability).

    probabilities.csv goes into sentinode score auc, and that of a head of 4 classes into sentinode stage. Exit code 0:
    all slides good; 3: some features could not be used.

    Example: sentinode mil apply head.safetensors features -o judged
    """
    from staging.lesions.tables import csv_text  # noqa: PLC0415
    from staging.runs.encoding import check_settings  # noqa: PLC0415  (slow import)
    from wsi.cnn.encoders.attention import AttentionMap, save_attention_png, write_attention  # noqa: PLC0415  (loads torch)
    from wsi.cnn.encoders.mil import load_head  # noqa: PLC0415
    from wsi.errors import CheckpointError, PathologyError, StorageError  # noqa: PLC0415
    from wsi.lock import OutputLock  # noqa: PLC0415
    from wsi.store import atomic_text, json_text, sweep  # noqa: PLC0415

    trained = load_head(head).to(device)
    digest = trained.digest
    settings = {"head": digest, "classes": list(trained.class_names), "recipe": dict(trained.recipe)}
    check_settings(output, settings, record=_JUDGED)
    found, failures = _opened(features)
    rows: list[tuple[str, ...]] = []
    with OutputLock(output):
        sweep(output / "attention")
        atomic_text(output / _JUDGED, json_text(settings))
        for slide in found:
            try:
                _check_recipe(slide, trained.recipe)
                _check_width(slide, trained.shape.width)
                verdict = trained.judge(slide.load())
            except (CheckpointError, StorageError):
                raise
            except PathologyError as error:
                failures[slide.name] = error.reason
                continue
            attention = AttentionMap.of(slide, verdict.attention)
            made_from = {"head": digest, "features": slide.provenance}
            write_attention(output / "attention" / f"{slide.name}.zarr", attention, made_from)
            save_attention_png(output / "attention" / f"{slide.name}.png", attention)
            rows.append(_row(slide.name, trained.class_names, verdict.probabilities))
        _forget(output / "attention", failures)
        table = output / "probabilities.csv"
        atomic_text(table, csv_text((*_COLUMNS, *trained.class_names), rows))
    seen = trained.provenance.get("slides")
    trained_on = sum(row[0] in seen for row in rows) if isinstance(seen, dict) else 0
    if trained_on:
        typer.echo(
            f"sentinode: the head was trained on {trained_on} of these {len(rows)} slides: how well it does on slides "
            "that it has not seen stands in the table that mil train wrote beside it",
            err=True,
        )
    typer.echo(
        json.dumps(
            {"probabilities": str(table), "slides": len(rows), "trained_on": trained_on, "quarantined": failures}
        )
    )
    if failures:
        raise typer.Exit(EXIT_QUARANTINED)


def _row(slide: str, names: Sequence[str], probabilities: Iterable[float]) -> tuple[str, ...]:
    """The slide, its likeliest class, the probability of anything but the first class, and that of each class."""
    _, *others = each = [float(value) for value in probabilities]
    likeliest = each.index(max(each))
    return slide, names[likeliest], f"{sum(others):.9g}", *(f"{value:.9g}" for value in each)


def _forget(folder: Path, slides: Iterable[str]) -> None:
    """Remove what an earlier call made of slides that cannot be judged now: the table no longer tells of them."""
    from wsi.store import storage  # noqa: PLC0415  (slow import)

    with storage(folder):
        for name in slides:
            if (folder / f"{name}.zarr").is_dir():
                shutil.rmtree(folder / f"{name}.zarr")
            (folder / f"{name}.png").unlink(missing_ok=True)


def _tell(done: int, total: int) -> None:
    """Say on stderr whenever another tenth of the training is done."""
    if done * 10 // total > (done - 1) * 10 // total:
        typer.echo(f"training: {done} of {total} rounds", err=True)


def _opened(folders: Sequence[Path]) -> tuple[list[Any], dict[str, str]]:
    """The features in folders by name, and why others cannot be used."""
    from staging.cohorts.names import slide_key  # noqa: PLC0415  (slow import)
    from staging.errors import DuplicateSlideError, NoSlidesError  # noqa: PLC0415  (slow import)
    from wsi.cnn.encoders.features import read_features  # noqa: PLC0415  (loads torch)
    from wsi.errors import ArtefactError  # noqa: PLC0415

    paths: dict[str, Path] = {}
    for folder in folders:
        inside = [folder] if folder.suffix == ".zarr" else sorted(folder.glob("*.zarr"))
        if not inside or not folder.is_dir():
            raise NoSlidesError(folder, "holds no features", mend="make them with sentinode features")
        for path in inside:
            if slide_key(path.name) in paths:
                raise DuplicateSlideError(path, f"has the name of {paths[slide_key(path.name)]}", mend="leave one out")
            paths[slide_key(path.name)] = path
    found, failures = [], {}
    for _, path in sorted(paths.items()):
        try:
            found.append(read_features(path))
        except ArtefactError as error:
            failures[path.stem] = error.reason
    return found, failures


def _recipe(found: Sequence[JudgedSlide]) -> dict[str, Any]:
    """What all features share: everything but the slide."""
    first = _shared(found[0])
    for slide in found:
        _check_recipe(slide, first)
    return first


def _shared(slide: JudgedSlide) -> dict[str, Any]:
    apart = {"slide", "slide_mpp", "on_bad_tile"}
    return {name: value for name, value in slide.provenance.items() if name not in apart}


def _check_recipe(slide: JudgedSlide, recipe: Mapping[str, Any]) -> None:
    from staging.runs.config import differences  # noqa: PLC0415  (slow import)
    from wsi.errors import ArtefactError  # noqa: PLC0415

    found = differences(_shared(slide), dict(recipe))
    if found:
        raise ArtefactError(
            slide.path, f"was made in another way: {'; '.join(found)}", mend="make all features with the same settings"
        )


def _check_width(slide: JudgedSlide, width: int) -> None:
    from wsi.errors import ArtefactError  # noqa: PLC0415  (slow import)

    if slide.width != width:
        raise ArtefactError(slide.path, f"holds {slide.width} features per tile, the head takes {width}")


def _labels(reference: Path, classes: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, and the number of each slide's class by the slide's key."""
    from staging.cohorts.camelyon import read_label_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.names import slide_key  # noqa: PLC0415
    from staging.cohorts.references import read_truth  # noqa: PLC0415
    from staging.lesions.labels import SlideLabel  # noqa: PLC0415

    if classes == "2":
        return _TWO, {slide: int(is_positive) for slide, is_positive in read_truth(reference).items()}
    names = tuple(label.value for label in SlideLabel)
    return names, {slide_key(slide): label.rank for slide, label in read_label_table(reference).items()}


def _why_left_out(slide: str, labels: Mapping[str, int]) -> str | None:
    from staging.cohorts.errata import OUT_OF_SLIDE_TASK  # noqa: PLC0415  (slow import)
    from staging.cohorts.names import slide_key  # noqa: PLC0415

    if slide_key(slide) in OUT_OF_SLIDE_TASK:
        return OUT_OF_SLIDE_TASK[slide_key(slide)]
    return None if slide_key(slide) in labels else "the reference has no label for it"


def _check_some(bags: Sequence[object], reference: Path, failures: Mapping[str, str]) -> None:
    from staging.errors import NoSlidesError, TableError  # noqa: PLC0415  (slow import)

    if not bags and failures:
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(failures.items()))
        raise NoSlidesError(None, f"no features can be used: {told:.500}", mend="make them again")
    if not bags:
        raise TableError(reference, "labels none of the slides that have features", mend="compare the names of both")


def _patients(path: Path) -> dict[str, str]:
    """Patient by slide of a CSV slide,patient, with or without this header.

    Raises:
        TableError: unreadable, or a row of another form.
        ConflictError: a slide has two patients.
    """
    from staging.cohorts.names import slide_key  # noqa: PLC0415  (slow import)
    from staging.csv_rows import read_rows  # noqa: PLC0415
    from staging.errors import ConflictError, TableError  # noqa: PLC0415

    found: dict[str, str] = {}
    for line, cells in read_rows(path):
        if line == 1 and [cell.lower() for cell in cells[:2]] == ["slide", "patient"]:
            continue
        if len(cells) < 2 or not all(cells[:2]):
            raise TableError(path, "the row is not slide,patient", where=f"line {line}", mend="give both")
        if found.setdefault(slide_key(cells[0]), cells[1]) != cells[1]:
            raise ConflictError(
                path, f"gives {cells[0]} to two patients", where=f"line {line}", mend="keep one of the rows"
            )
    return found
