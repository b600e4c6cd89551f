"""Score patients' stages as a whole and centre by centre, and compare two submissions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from staging.cohorts.camelyon import StageTable
from staging.cohorts.names import CENTRES, centre_of_patient
from staging.cohorts.official_format import faults_of_stages
from staging.errors import MissingPatientError, TableError, listed
from staging.scores.intervals import FEW, heterogeneity
from staging.scores.kappa import FEWEST_PATIENTS, KappaComparison, KappaScore, compare, score
from staging.scores.several import with_adjusted
from staging.stages.pn import PatientStage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageScore:
    """Stages against a reference.

    Attributes:
        whole: the score of all patients.
        centres: the score of each centre's patients.
        against: the comparison with each other submission, by its name.
        of_tables: what is odd about the tables.
    """

    whole: KappaScore
    centres: Mapping[str, KappaScore]
    against: Mapping[str, KappaComparison] = field(default_factory=dict)
    of_tables: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the tables, and why kappas or intervals say little, a line each."""
        centres: dict[str, list[str]] = {}
        for name, one in self.centres.items():
            for warning in one.warnings:
                if warning not in self.whole.warnings:
                    centres.setdefault(warning, []).append(name)
        return (
            *self.of_tables,
            *self.whole.warnings,
            *(f"{', '.join(names)}: {warning}" for warning, names in centres.items()),
            *_few(self.centres),
            *(f"minus {name}: {warning}" for name, one in self.against.items() for warning in one.warnings),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps, without nan."""
        record = self.whole.to_json() | {"warnings": list(self.warnings)}
        record["centres"] = {
            name: {key: one.to_json()[key] for key in ("kappa", "interval", "patients", "confusion", "warnings")}
            for name, one in self.centres.items()
        }
        between = heterogeneity({name: (one.kappa, one.interval) for name, one in self.centres.items()})
        record["heterogeneity"] = None if between is None else between.to_json()
        if self.against:
            found = [{"submission": name, "score": "kappa", **one.to_json()} for name, one in self.against.items()]
            record["against"] = with_adjusted(found)
        return record


def _few(centres: Mapping[str, KappaScore]) -> Iterator[str]:
    """Caution against centres with few patients."""
    few = [name for name, one in centres.items() if FEWEST_PATIENTS <= one.patients < FEW]
    if few:
        yield f"{', '.join(few)}: fewer than {FEW} patients say little about a centre"


def score_stages(
    reference: StageTable,
    submission: StageTable,
    *,
    against: Sequence[StageTable] = (),
    permutations: int = 10_000,
    resamples: int = 10_000,
    seed: int = 0,
) -> StageScore:
    """Score stages as a whole and centre by centre, and compare them with other submissions.

    Raises:
        TableError: the reference has no patient.
        MissingPatientError: a submission lacks patients of the reference.
    """
    tables = [reference, submission, *against]
    return StageScore(
        whole=score_kappa(reference, submission, resamples=resamples, seed=seed),
        centres=kappa_by_centre(reference, submission, resamples=resamples, seed=seed),
        against={
            str(other.path): compare_submissions(
                reference, submission, other, permutations=permutations, resamples=resamples, seed=seed
            )
            for other in against
        },
        of_tables=(
            *(f"{table.path}: {warning}" for table in tables for warning in table.warnings),
            *(warning for table in tables[1:] for warning in _unofficial(table, reference)),
        ),
    )


def _unofficial(table: StageTable, reference: StageTable) -> Iterator[str]:
    """Say that the organisers' script would not score a submission, and why."""
    if table.path is not None:
        for fault in faults_of_stages(table.path, {f"{patient}.zip" for patient in reference.stages}):
            yield f"{table.path}: the organisers' script would give no score, or another: {fault}"
            return


def kappa_by_centre(
    reference: StageTable, submission: StageTable, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, KappaScore]:
    """Score the patients of each centre in the reference, in the centres' order.

    Patients with numbers outside CAMELYON17 belong to no centre and are left out.

    Raises:
        MissingPatientError: as for score_kappa.
    """
    patients: dict[int, dict[str, PatientStage]] = {}
    for patient, stage in reference.stages.items():
        centre = centre_of_patient(patient)
        if centre is not None:
            patients.setdefault(centre, {})[patient] = stage
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
    """Test whether two submissions agree with the reference equally well, patient by patient.

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


def score_kappa(reference: StageTable, submission: StageTable, *, resamples: int = 10_000, seed: int = 0) -> KappaScore:
    """Score stages as CAMELYON17 does: quadratic weighted kappa over the patients of the reference.

    Args:
        reference: the true stages.
        submission: the stages to score; its other patients are ignored and listed in the result.
        resamples: bootstrap samples of patients.
        seed: of the bootstrap.

    Raises:
        TableError: the reference has no patient.
        MissingPatientError: the submission lacks patients of the reference.
    """
    if not reference.stages:
        raise TableError(reference.path, "has no row for a patient", mend="rows are like patient_000.zip,pN0")
    missing = [patient for patient in reference.stages if patient not in submission.stages]
    if missing:
        bare = [patient for patient in missing if patient in submission.unzipped]
        mend = f"write {bare[0]}.zip: only rows that end in .zip are compared" if bare else "stage every patient"
        raise MissingPatientError(submission.path, f"has no stage for {listed(missing)}", mend=mend)
    return score(
        [stage.rank for stage in reference.stages.values()],
        [submission.stages[patient].rank for patient in reference.stages],
        stages=[stage.value for stage in PatientStage],
        resamples=resamples,
        seed=seed,
        ignored=sorted(set(submission.stages) - set(reference.stages)),
    )
