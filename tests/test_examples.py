from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from staging.phantom import generate_cohort

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    generate_cohort(folder, patients=1, centres=(2,), seed=3, mpp=8.0)
    return folder


def printed(example: str, *arguments: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / example, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))


def test_reading_a_slide(cohort: Path) -> None:
    text = printed("read_a_slide.py", cohort / "images" / "patient_040_node_0.tif")
    assert "one pixel is 16.0 um" in text
    assert float(re.findall(r"tissue ([0-9.]+) mm2", text)[0]) > 1


def test_a_mask_from_contours(cohort: Path) -> None:
    xml = max((cohort / "annotations").glob("*.xml"), key=lambda path: path.stat().st_size)
    text = printed("mask_from_contours.py", cohort / "images" / f"{xml.stem}.tif", xml)
    polygons, pixels = (float(area) for area in re.findall(r"([0-9.]+) mm2", text))
    assert polygons > 0
    assert pixels == pytest.approx(polygons, rel=0.05)


def test_staging_labels(cohort: Path) -> None:
    table = cohort / "stage_labels.csv"
    text = printed("stage_your_labels.py", table, table)
    stage = re.findall(r"patient_040\.zip,(.+)", table.read_text())[0]
    assert f"patient_040 {stage}" in text
