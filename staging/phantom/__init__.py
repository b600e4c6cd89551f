"""A synthetic CAMELYON17 cohort with exactly known truth."""

from __future__ import annotations

from staging.phantom.cohort import (
    CohortTruth,
    LesionTruth,
    SlideTruth,
    drawn_slides,
    forget_cohort,
    generate_cohort,
    render_slide,
)
from staging.phantom.plan import Difficulty, LesionPlan, PatientPlan, SlidePlan, plan_cohort

__all__ = [
    "CohortTruth",
    "Difficulty",
    "LesionPlan",
    "LesionTruth",
    "PatientPlan",
    "SlidePlan",
    "SlideTruth",
    "drawn_slides",
    "forget_cohort",
    "generate_cohort",
    "plan_cohort",
    "render_slide",
]
