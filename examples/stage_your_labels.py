"""Stage patients from slide labels and score them against a reference table.

Run: python examples/stage_your_labels.py LABELS.csv REFERENCE.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from staging import StageTable, read_label_table, read_stage_table, score_kappa, stage_patients


def main(labels: Path, reference: Path) -> None:
    """Print stages, unscored patients, and kappa."""
    staging = stage_patients(read_label_table(labels))
    for patient, stage in staging.stages.items():
        print(patient, stage.value)
    for one in staging.unscored:
        print(one.patient, "not staged:", one.reason)
    score = score_kappa(read_stage_table(reference), StageTable(stages=staging.stages))
    print(f"kappa {score.kappa:.4f}, 95 % interval {score.interval[0]:.4f} to {score.interval[1]:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
