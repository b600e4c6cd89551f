"""``from wsi import …``, ``from annotations import …``, ``from staging import …``."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

DOORS = ("wsi", "annotations", "staging")
PROMISED = {
    "wsi": "Slide Region Level Frame Image Mask Heatmap find_tissue TilePlan PathologyError",
    "annotations": "read_annotations write_annotations rasterize write_annotation_mask PatchBatch PatchTable",
    "staging": "find_lesions slide_label SizeRule stage_patient score_kappa score_folders run_cohort RunConfig",
}


@pytest.mark.parametrize("door", DOORS)
def test_every_name_leads_to_what_it_names(door: str) -> None:
    package = importlib.import_module(door)
    assert set(PROMISED[door].split()) <= set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        found = getattr(package, name)
        assert found.__name__ == name
        assert found.__module__.startswith(f"{door}.")
    assert sorted(package.__all__) == list(package.__all__)


@pytest.mark.parametrize("door", DOORS)
def test_a_wrong_name_is_an_import_error(door: str) -> None:
    with pytest.raises(AttributeError, match="Sldie"):
        getattr(importlib.import_module(door), "Sldie")  # noqa: B009  (mypy knows that it is not there)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import wsi", "torch dask scipy zarr numpy"),
        ("from wsi import Slide, Region, Frame", "torch dask scipy zarr"),
        ("from annotations import read_annotations", "torch dask scipy zarr pyarrow"),
        ("from staging import SlideLabel, score_kappa", "torch dask scipy zarr sklearn"),
    ],
)
def test_only_what_is_used_is_loaded(statement: str, absent: str) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
