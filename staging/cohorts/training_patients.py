"""Slides of patients that a model was trained on: how well it does on them says nothing about others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from staging.stages.pn import SlideNodes

PATIENTS = "patients"
"""In the provenance of a checkpoint: the patients whose patches it learnt from or was chosen by; a slide of no known
patient is its own."""


def training_patients(provenance: Mapping[str, Any]) -> frozenset[str]:
    """Return the patients that a checkpoint records, none if it records none."""
    found = provenance.get(PATIENTS)
    return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


def trained_on(slides: Iterable[str], patients: Collection[str], nodes: SlideNodes) -> list[str]:
    """Return those of the slides that are of one of these patients."""
    return [name for name in slides if (nodes.patient(name) or name) in patients]


def trained_on_text(model: str, count: int, total: int) -> str:
    """Say it in a line."""
    return (
        f"the {model} was trained on patients of {count} of these {total} slides: "
        "how well it does on them says nothing about others"
    )
