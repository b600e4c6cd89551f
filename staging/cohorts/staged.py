"""Stage patients from a table of slide labels, with stage probabilities and full pN categories if tables allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging.cohorts.camelyon import read_label_table, write_stage_table
from staging.cohorts.node_tables import read_label_probabilities, read_node_sites, tnm_stages
from staging.lesions.tables import read_seen
from staging.stages.pn import (
    BY_NAME,
    EXPECTED_NODES,
    PatientStage,
    SlideNodes,
    Staging,
    stage_patients,
    stage_probabilities,
)
from staging.stages.tnm import TnmStage


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedTable:
    """The stages of the patients in a table of labels.

    Attributes:
        path: the table that was written.
        staging: stages and unscored patients.
        without_slides: patients of the table of patients none of whose slides are labelled.
        probabilities: of each stage, by patient; None if the table has none of labels.
        tnm: full pN category by patient; None if sites were not given.
        tnm_unsupported: why the other patients have none.
    """

    path: Path
    staging: Staging
    without_slides: tuple[str, ...] = ()
    probabilities: Mapping[str, Mapping[PatientStage, float]] | None = None
    tnm: Mapping[str, TnmStage] | None = None
    tnm_unsupported: Mapping[str, str] | None = None

    def contradictions(self) -> Iterator[tuple[str, PatientStage, PatientStage, float]]:
        """Yield the patients of whom another stage is likelier than theirs: stage, likelier one and its probability."""
        for patient, shares in (self.probabilities or {}).items():
            stage = self.staging.stages[patient]
            likeliest = max(shares, key=shares.__getitem__)
            if shares[likeliest] > shares[stage]:
                yield patient, stage, likeliest, shares[likeliest]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        record: dict[str, Any] = {
            "stages": str(self.path),
            "patients": len(self.staging.stages),
            "at_least": sorted(self.staging.at_least),
            "without_slides": list(self.without_slides),
            "unscored": {one.patient: one.reason for one in self.staging.unscored},
        }
        if self.probabilities is not None:
            record["probabilities"] = {
                patient: {stage.value: round(share, 9) for stage, share in shares.items()}
                for patient, shares in self.probabilities.items()
            }
        if self.tnm is not None:
            record["tnm"] = {patient: stage.value for patient, stage in self.tnm.items()}
            record["tnm_unsupported"] = dict(self.tnm_unsupported or {})
        return record


def stage_table(
    labels: Path,
    output: Path,
    *,
    expected_nodes: int = EXPECTED_NODES,
    sites: Path | None = None,
    nodes: SlideNodes = BY_NAME,
) -> StagedTable:
    """Stage every patient in a table of labels, and write the table of stages in the organisers' format.

    Args:
        labels: a table for read_label_table; it may also have the probability of each label.
        output: the table of stages.
        expected_nodes: slides per patient.
        sites: a table for read_node_sites.
        nodes: which patient and node each slide is of.

    Raises:
        TableError: a table cannot be read.
        StorageError: the output cannot be written.
    """
    table = read_label_table(labels)
    partial = [slide for slide, one in read_seen(labels).items() if one.seen == "partial"]
    staging = stage_patients(table, partial=partial, expected_nodes=expected_nodes, nodes=nodes)
    staged = {name: label for name, label in table.items() if nodes.patient(name) in staging.stages}
    shares = read_label_probabilities(labels)
    tnm, unsupported = (None, None) if sites is None else tnm_stages(staged, read_node_sites(sites), nodes)
    write_stage_table(output, staging.stages, table, nodes)
    return StagedTable(
        path=output,
        staging=staging,
        without_slides=nodes.without(table),
        probabilities=None if shares is None else _stage_probabilities(shares, staging, nodes),
        tnm=tnm,
        tnm_unsupported=unsupported,
    )


def _stage_probabilities(
    shares: Mapping[str, tuple[float, ...]], staging: Staging, nodes: SlideNodes
) -> dict[str, dict[PatientStage, float]]:
    of_patient: dict[str, list[tuple[float, ...]]] = {}
    for slide, of_label in shares.items():
        patient = nodes.patient(slide)
        if patient in staging.stages:
            of_patient.setdefault(patient, []).append(of_label)
    return {patient: stage_probabilities(nodes) for patient, nodes in of_patient.items()}
