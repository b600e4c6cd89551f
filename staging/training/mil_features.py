"""The features that attention heads learn from: found, opened, and grouped by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staging.cohorts.names import slide_key
from staging.errors import DuplicateSlideError, NoSlidesError
from staging.lesions.seen import Seen, SeenRule
from staging.runs.config import differences
from staging.stages.pn import SlideNodes
from wsi.errors import ArtefactError

if TYPE_CHECKING:
    from wsi.cnn.encoders.features import SlideFeatures
    from wsi.cnn.encoders.mil_training import Bag

_OF_THE_SLIDE = frozenset({"slide", "slide_mpp", "on_bad_tile"})
"""Keys in which the provenance of features may differ."""


def open_features(folders: Sequence[Path], rule: SeenRule) -> tuple[list[SlideFeatures], dict[str, str]]:
    """Open the features in folders, by name, and give the reason for those that cannot be used."""
    from wsi.cnn.encoders.features import read_features  # noqa: PLC0415  (loads torch)

    paths: dict[str, Path] = {}
    for folder in folders:
        inside = [folder] if folder.suffix == ".zarr" else sorted(folder.glob("[!.]*.zarr"))
        if not inside or not folder.is_dir():
            raise NoSlidesError(folder, "contains no features", mend="make them with sentinode features")
        for path in inside:
            other = paths.setdefault(slide_key(path.name), path)
            if other is not path:
                raise DuplicateSlideError(path, f"has the same name as {other}", mend="leave one out")
    found, quarantined = [], {}
    for _, path in sorted(paths.items()):
        try:
            slide = read_features(path)
        except ArtefactError as error:
            quarantined[path.stem] = error.reason
            continue
        fault = rule.fault(slide.coverage)
        if fault is None:
            found.append(slide)
        else:
            quarantined[path.stem] = fault
    return found, quarantined


def usable_features(features: Path, seen_rule: SeenRule | None = None) -> frozenset[str]:
    """Return the slides, by slide_key, of whose features a directory has some that can be used.

    Raises:
        NoSlidesError: there are no features.
        DuplicateSlideError: a slide has features twice.
    """
    return frozenset(slide_key(slide.name) for slide in open_features([features], seen_rule or SeenRule())[0])


def seen_features(features: Sequence[Path], seen_rule: SeenRule) -> tuple[dict[str, Seen], dict[str, str]]:
    """Return how much of the tissue usable features show, by slide name, and why the others cannot be used.

    Raises:
        NoSlidesError: there are no features.
        DuplicateSlideError: a slide has features twice.
    """
    found, quarantined = open_features(features, seen_rule)
    return {slide.name: seen_rule.judge(slide.coverage) for slide in found}, quarantined


def bags_of(slides: Sequence[SlideFeatures], labels: Mapping[str, int], nodes: SlideNodes) -> list[Bag]:
    """Give slides their class, by slide_key, and their patient; one of an unknown patient is its own."""
    from wsi.cnn.encoders.mil_training import Bag  # noqa: PLC0415  (loads torch)

    return [
        Bag(
            slide=slide.name,
            patient=nodes.patient(slide.name) or alone(slide.name),
            label=labels[slide_key(slide.name)],
            load=slide.load,
        )
        for slide in slides
    ]


def alone(slide: str) -> str:
    """Return a patient of this slide only."""
    return f"slide {slide_key(slide)}"


def recipe_of(found: Sequence[SlideFeatures]) -> dict[str, Any]:
    """Return what all features share: everything but the slide."""
    first = _shared(found[0])
    for slide in found:
        check_recipe(slide, first)
    return first


def _shared(slide: SlideFeatures) -> dict[str, Any]:
    return {name: value for name, value in slide.provenance.items() if name not in _OF_THE_SLIDE}


def check_recipe(slide: SlideFeatures, recipe: Mapping[str, Any]) -> None:
    """Refuse features that were made otherwise.

    Raises:
        ArtefactError: they were.
    """
    found = differences(_shared(slide), recipe)
    if found:
        raise ArtefactError(
            slide.path,
            f"was made with other settings: {'; '.join(found)}",
            mend="make all features with the same settings",
        )
