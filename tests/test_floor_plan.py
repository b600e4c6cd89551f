"""The floors wsi <- annotations <- staging, enforced from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("wsi", "annotations", "staging")

# A module imports only from lines above its own; modules on one line are siblings and never import each other.
# A trailing * stands for every module of that package that is named nowhere else.
PLAN = """
wsi.errors
wsi.geometry
wsi.raster
wsi.readers.base wsi.readers.source wsi.readers.dicom wsi.resample wsi.cores
wsi.readers.structure wsi.readers.turbo wsi.readers.remote
wsi.readers.jpeg wsi.readers.scale
wsi.readers.codec
wsi.readers.tiff_tiles
wsi.readers.tiff wsi.readers.openslide wsi.readers.flat
wsi.readers.opening wsi.readers.level_pixels
wsi.readers
wsi.lazy
wsi.slide
wsi.patches.reading
wsi.patches.blocks
wsi.patches.feeding
wsi.writing.bigtiff
wsi.writing.tile_encoding
wsi.writing.tile_stream
wsi.writing.pyramid
wsi.writing.convert wsi.writing.heatmap_file
wsi.writing.sparse
wsi.store
wsi.lock
wsi.stain
wsi.tissue
wsi.tiles
wsi.render
wsi.cnn.device wsi.cnn.network wsi.cnn.weights_file
wsi.cnn.resnet
wsi.cnn.architectures wsi.cnn.ranks wsi.cnn.schedule wsi.cnn.calibration wsi.cnn.resuming
wsi.cnn.macenko wsi.cnn.jpeg_noise
wsi.cnn.checkpoint wsi.cnn.device_augmentation
wsi.cnn.imports wsi.cnn.augmentation wsi.cnn.method
wsi.cnn.training_data
wsi.cnn.learner
wsi.cnn.training wsi.cnn.inference wsi.cnn.patch_loading
wsi.cnn.curves wsi.cnn.training_log
wsi.cnn.encoders.exported
wsi.cnn.encoders.encoder wsi.cnn.encoders.mil
wsi.cnn.encoders.features wsi.cnn.encoders.mil_training
wsi.cnn.encoders.attention
wsi.cnn
wsi

annotations.errors
annotations.splines annotations.files.xml
annotations.annotation
annotations.groups annotations.files.asap annotations.files.imagescope
annotations.rasterize
annotations.polygons annotations.patches.sites annotations.masks.mask_file
annotations.files.geojson annotations.contours annotations.measures
annotations.files.geojson_features
annotations.files.formats
annotations.patches.labels
annotations.patches.sampler
annotations.patches.batch
annotations.patches.table annotations.patches.targets annotations.patches.splits
annotations.patches.sparse_store annotations.patches.exports annotations.patches.contact_sheet
annotations.patches.zarr_store
annotations.patches.training_set
annotations

staging.errors staging.cohorts.errata
staging.csv_rows staging.lesions.mask_values
staging.lesions.detections
staging.scores.kappa staging.scores.roc staging.scores.froc
staging.lesions.components
staging.lesions.merging
staging.lesions.shape
staging.lesions.finding
staging.lesions.labels
staging.stages.pn staging.stages.tnm staging.lesions.nuclei
staging.learned_labels.trees staging.learned_labels.predictors staging.learned_labels.importance_picture
staging.cohorts.camelyon
staging.cohorts.references staging.scores.evaluation_masks
staging.cohorts.node_tables staging.learned_labels.training
staging.scores.slides staging.scores.patients staging.scores.lesion_task
staging.scores.pictures staging.scores.texts
staging.phantom.noise staging.phantom.stain
staging.phantom.cells
staging.phantom.texture
staging.phantom.anatomy staging.phantom.atlas
staging.phantom.contours
staging.phantom.section
staging.phantom.plan
staging.phantom.cohort
staging.phantom
staging.runs.config staging.runs.slide_fault
staging.runs.cluster
staging.runs.bars
staging.lesions.outlines staging.lesions.tables
staging.training.sources staging.training.peak
staging.lesions.masks staging.lesions.settings
staging.lesions.files staging.lesions.cell_counts staging.learned_labels.labelling
staging.training.outputs staging.training.patch_progress staging.training.training_progress
staging.training.sampling
staging.cohorts.submission staging.runs.review annotations.masks.drawing
staging.runs.analysis
staging.runs.report
staging.runs.cohort
staging.runs.encoding
staging.training.fitting staging.training.rounds
staging.cross_validation staging.demo
staging.commands.options
staging.commands.results
staging.commands.*
staging.commands
staging.cli
staging.__main__
staging
"""
RANK = {name: rank for rank, line in enumerate(PLAN.splitlines()) for name in line.split()}

VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "tools"}
UNWANTED = {"cv2", "numba", "pandas", "skimage", "pydicom"}
MOST_LINES = 450


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}
every_module = pytest.mark.parametrize("name", SOURCES)


def tree_of(name: str) -> ast.Module:
    try:
        return ast.parse(SOURCES[name].read_text(encoding="utf-8"), feature_version=(3, 11))
    except SyntaxError as error:
        pytest.fail(f"{name} is no Python 3.11: line {error.lineno}: {error.msg}")


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in the tree, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the floor"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else node.module


def rank_of(name: str) -> int | None:
    return RANK.get(name, RANK.get(f"{name.rpartition('.')[0]}.*"))


def violations(name: str, tree: ast.AST) -> list[str]:
    """Imports of ``name`` that do not lead up the plan."""
    own = rank_of(name)
    assert own is not None, f"{name} has no place in the floor plan: add it to PLAN"
    found = []
    for target in sorted(set(imports_of(tree))):
        if target.partition(".")[0] not in FLOORS:
            continue
        rank = rank_of(target)
        if target not in SOURCES:
            found.append(f"{target} does not exist")
        elif rank is None or rank >= own:
            found.append(f"{target} stands beside or below {name}")
    return found


def test_there_is_something_to_test() -> None:
    assert len(SOURCES) > 30
    assert {name.partition(".")[0] for name in SOURCES} == set(FLOORS)


@every_module
def test_imports_only_what_stands_above(name: str) -> None:
    assert violations(name, tree_of(name)) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("wsi.slide", "from staging.scores.kappa import score"),
        ("wsi.geometry", "from wsi.raster import Mask"),
        ("annotations.files.asap", "def f():\n    from staging.lesions import labels"),
        ("wsi.readers.tiff", "from wsi.readers.openslide import OpenSlideReader"),
        ("staging.lesions.labels", "import staging.stages.pn"),
        ("staging.commands.run", "from staging.commands import stage"),
        ("staging.scores.kappa", "from wsi.nowhere import x"),
    ],
)
def test_the_test_can_fail(name: str, line: str) -> None:
    assert len(violations(name, ast.parse(line))) == 1


@every_module
def test_floors(name: str) -> None:
    floor = name.partition(".")[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    assert not above & {target.partition(".")[0] for target in imports_of(tree_of(name))}


@every_module
def test_only_the_cnn_imports_torch(name: str) -> None:
    heads = {target.partition(".")[0] for target in imports_of(tree_of(name))}
    if not name.startswith("wsi.cnn"):
        assert not heads & {"torch", "torchvision", "safetensors"}


class _WithoutFunctions(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Drop it: what it imports is imported late."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        """Drop what is there for types only: it is never imported."""
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else node


@every_module
def test_the_cnn_is_imported_late(name: str) -> None:
    if not name.startswith("wsi.cnn"):
        at_once = imports_of(_WithoutFunctions().visit(tree_of(name)))
        assert not [target for target in at_once if target.startswith("wsi.cnn")]


@every_module
def test_future_annotations_do_not_hide_the_package(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "annotations"], (
                "write from annotations.x import y"
            )


@every_module
def test_unwanted_packages(name: str) -> None:
    assert not UNWANTED & {target.partition(".")[0] for target in imports_of(tree_of(name))}


@every_module
def test_a_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree_of(name)), f"{name} has no docstring"
    assert not set(name.split(".")) & VAGUE


@every_module
def test_a_module_is_short(name: str) -> None:
    lines = len(SOURCES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name} has {lines} lines"


@pytest.mark.parametrize("statement", ["import wsi, annotations, staging", "import staging.cli"])
def test_importing_is_light(statement: str) -> None:
    heavy = ("torch", "sklearn", "distributed", "dask", "scipy", "zarr", "pyarrow")
    code = f"{statement}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
