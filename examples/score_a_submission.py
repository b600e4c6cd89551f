"""Check a table of stages, then score it as CAMELYON17 does: kappa with its interval, centre by centre, as a picture.

Run: python examples/score_a_submission.py REFERENCE.csv SUBMISSION.csv PICTURE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from staging import kappa_by_centre, read_stage_table, score_kappa
from staging.cohorts.submission import Task, check_submission, require_complete
from staging.scores.pictures import confusion_picture
from wsi import save_png


def main(reference: Path, submission: Path, picture: Path) -> None:
    """Print anything suspicious, kappa and each centre's kappa; draw the confusion matrix."""
    truth = read_stage_table(reference)
    found = check_submission(Task.STAGES, submission, expected=list(truth.stages))
    require_complete(found)
    for doubt in found.doubts:
        print("doubtful:", doubt)
    stages = read_stage_table(submission, submission=True)
    score = score_kappa(truth, stages)
    print(f"kappa {score.kappa:.4f}, 95 % interval {score.interval[0]:.4f} to {score.interval[1]:.4f}")
    for centre, own in kappa_by_centre(truth, stages).items():
        print(f"{centre}: kappa {own.kappa:.4f} over {own.patients} patients")
    save_png(picture, confusion_picture(score.confusion, score.stages, title="pN-stage"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
