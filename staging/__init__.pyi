__all__ = [
    "Lesion",
    "PatientStage",
    "RunConfig",
    "SizeRule",
    "SlideLabel",
    "StageTable",
    "compare_submissions",
    "find_lesions",
    "find_slides",
    "generate_cohort",
    "kappa_by_centre",
    "lesions_of_mask",
    "quadratic_kappa",
    "read_label_table",
    "read_stage_table",
    "run_cohort",
    "score_auc",
    "score_folders",
    "score_kappa",
    "slide_label",
    "stage_patient",
    "stage_patients",
]

from .cohorts.camelyon import StageTable, find_slides, read_label_table, read_stage_table
from .lesions.finding import Lesion, find_lesions, lesions_of_mask
from .lesions.labels import SizeRule, SlideLabel, slide_label
from .phantom.cohort import generate_cohort
from .runs.cohort import run_cohort
from .runs.config import RunConfig
from .scores.kappa import quadratic_kappa
from .scores.lesion_task import score_folders
from .scores.patients import compare_submissions, kappa_by_centre, score_kappa
from .scores.slides import score_auc
from .stages.pn import PatientStage, stage_patient, stage_patients
