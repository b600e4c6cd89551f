"""Patients' stages scored beyond one kappa: centre by centre, and two submissions against each other."""

from __future__ import annotations

from staging.cohorts.camelyon import StageTable, centre_of, score_kappa
from staging.cohorts.references import CENTRES
from staging.scores.kappa import KappaComparison, KappaScore, compare
from staging.stages.pn import PatientStage


def kappa_by_centre(
    reference: StageTable, submission: StageTable, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, KappaScore]:
    """The score of the patients of each centre that the reference has, in the centres' order.

    Patients whose number CAMELYON17 does not have belong to no centre and are left out.

    Raises:
        MissingPatientError: as score_kappa.
    """
    patients: dict[int, dict[str, PatientStage]] = {}
    for patient, stage in reference.stages.items():
        number = patient.partition("_")[2]
        if number.isdigit() and int(number) < 200:
            patients.setdefault(centre_of(int(number)), {})[patient] = stage
    return {
        CENTRES[centre]: score_kappa(
            StageTable(stages=stages, path=reference.path), submission, resamples=resamples, seed=seed
        )
        for centre, stages in sorted(patients.items())
    }


def compare_submissions(
    reference: StageTable,
    one: StageTable,
    other: StageTable,
    *,
    permutations: int = 10_000,
    resamples: int = 10_000,
    seed: int = 0,
) -> KappaComparison:
    """Whether two submissions agree with the reference equally well, patient by patient.

    Raises:
        TableError: the reference has no patient.
        MissingPatientError: a submission lacks patients of the reference.
    """
    for submission in (one, other):
        score_kappa(reference, submission, resamples=0)
    return compare(
        [stage.rank for stage in reference.stages.values()],
        [one.stages[patient].rank for patient in reference.stages],
        [other.stages[patient].rank for patient in reference.stages],
        classes=len(PatientStage),
        permutations=permutations,
        resamples=resamples,
        seed=seed,
    )
