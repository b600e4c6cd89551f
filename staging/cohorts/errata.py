"""Slides of the public cohorts that are known to be wrong, each list with its source."""

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
"""CAMELYON16 slides with unannotated tumour: tissue outside their outlines is not known to be normal.

Source: CAMELYON16's readme, and Litjens et al., GigaScience 7 (2018) giy065.
"""

OUT_OF_SLIDE_TASK = MappingProxyType({"test_049": "it is a duplicate of another slide"})
"""CAMELYON16 slides that the organisers leave out of the slide task (ROC), and why. Source: CAMELYON16's readme."""

OUT_OF_LESION_TASK = MappingProxyType({**OUT_OF_SLIDE_TASK, "test_114": "not all of its tumour is annotated"})
"""CAMELYON16 slides that the organisers leave out of the lesion task (FROC), and why. Source: CAMELYON16's readme."""

ANNOTATED_NEGATIVES = MappingProxyType(
    dict.fromkeys(
        ("patient_022_node_4", "patient_038_node_2", "patient_086_node_0", "patient_086_node_4"),
        "CAMELYON17's slide of this name has annotated tumour, but is labelled negative",
    )
)
"""CAMELYON17 slides of which either the annotations or the label are wrong.

Source: the organisers' stage_labels.csv beside the 50 files of their lesion_annotations.zip.
"""

EXCLUDED = MappingProxyType(
    {
        **OUT_OF_SLIDE_TASK,
        **ANNOTATED_NEGATIVES,
        "normal_086": "it is tumor_111",
        "normal_144": "its label is doubtful",
    }
)
"""Slides that nothing is learnt from, neither as tumour nor as normal, and why.

Source: CAMELYON16's readme; ANNOTATED_NEGATIVES; normal_144: left out by several teams of the challenge.
"""


def is_partly_annotated(slide: str) -> bool:
    """Return whether a slide has unannotated tumour; the name is without suffix, in any case."""
    return slide.lower() in PARTLY_ANNOTATED
