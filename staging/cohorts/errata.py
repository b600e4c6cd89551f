"""Slides of the public cohorts that are known to be wrong.

Source: the readme files of CAMELYON16 and CAMELYON17 and the CAMELYON data paper (Litjens et al., GigaScience 2018).
"""

from __future__ import annotations

from types import MappingProxyType

PARTLY_ANNOTATED = frozenset(
    {
        *(
            f"tumor_{number:03d}"
            for number in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
        ),
        "test_114",
    }
)
"""CAMELYON16 slides with unannotated tumour: tissue outside their outlines is not known to be normal."""

OUT_OF_SLIDE_TASK = MappingProxyType({"test_049": "it is a duplicate of another slide"})
"""CAMELYON16 slides that the organisers leave out of the slide task (ROC), and why."""

OUT_OF_LESION_TASK = MappingProxyType({**OUT_OF_SLIDE_TASK, "test_114": "not all of its tumour is annotated"})
"""CAMELYON16 slides that the organisers leave out of the lesion task (FROC), and why."""

EXCLUDED = MappingProxyType(
    {**OUT_OF_SLIDE_TASK, "normal_086": "it is tumor_111", "normal_144": "its label is doubtful"}
)
"""CAMELYON16 slides not used for training, and why: from the organisers' readme; normal_144 from several teams."""


def is_partly_annotated(slide: str) -> bool:
    """Return whether a slide has unannotated tumour; the name is without suffix, in any case."""
    return slide.lower() in PARTLY_ANNOTATED
