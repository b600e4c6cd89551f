"""The floors wsi <- annotations <- staging, enforced from the imports themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("wsi", "annotations", "staging")

# Rooms (folders) and loose modules, with their nouns. A module imports only from what stands above its own line; within
# a room there are no circles. A new file goes where its noun is and needs no line here; a new room does.
PLAN = {
    "wsi.errors": "what goes wrong with one slide or artefact",
    "wsi.cores": "how many cores there are",
    "wsi.inputs": "files that are read: regular ones only",
    "wsi.geometry": "where things lie: the only place that converts units and axes",
    "wsi.threads": "work on threads, results in order",
    "wsi.windows": "many windows of a level at once",
    "wsi.raster": "arrays that know where they lie",
    "wsi.mask_rules": "what a coarse pixel of a mask stands for",
    "wsi.resample": "exact area averaging",
    "wsi.readers": "one kind of slide file each, and how files are opened",
    "wsi.lazy": "a level as a Dask array",
    "wsi.slide": "the slide",
    "wsi.store": "artefacts on disk",
    "wsi.outputs": "what may be replaced",
    "wsi.zarr_groups": "Zarr groups read without trust",
    "wsi.lock": "one writer per output",
    "wsi.patches": "patches of slides, read many at a time",
    "wsi.writing": "slides, masks and heatmaps written as TIFF",
    "wsi.stain": "stains",
    "wsi.stain_range": "the stains of a training set",
    "wsi.tissue": "where tissue is",
    "wsi.hidden": "tissue that the level which is read does not show",
    "wsi.coverage": "how much of the tissue was looked at",
    "wsi.heatmap_store": "heatmaps on disk",
    "wsi.tiles": "tile plans",
    "wsi.findings": "what was found, painted over pixels",
    "wsi.legends": "scale bars and legends",
    "wsi.render": "pictures of slides",
    "wsi.charts": "curves and bars as pictures",
    "wsi.cnn": "networks: everything that computes with torch",
    "wsi.cnn.encoders": "encoders made elsewhere, their features, attention heads",
    "annotations.errors": "what goes wrong with annotations and patches",
    "annotations.splines": "ASAP's curves",
    "annotations.annotation": "annotations and their roles",
    "annotations.outlines": "outlines as a table of edges, found by position",
    "annotations.painting": "annotations painted into arrays",
    "annotations.polygons": "polygons: repair, measures, from masks",
    "annotations.contours": "marching squares",
    "annotations.measures": "lesions on polygons",
    "annotations.files": "annotation files",
    "annotations.groups": "what groups mean",
    "annotations.masks": "mask files painted from annotations",
    "annotations.patches": "labelled patches: sampled, tabled, split, stored",
    "staging.errors": "what goes wrong between lesions and kappa",
    "staging.csv_rows": "rows of a small CSV",
    "staging.bars": "progress on stderr",
    "staging.lesions": "lesions: found, measured in um, labelled",
    "staging.stages": "a patient's pN",
    "staging.cohorts": "the challenges' layouts, tables and names",
    "staging.scores": "truth against prediction",
    "staging.learned_labels": "the slide label that is learned",
    "staging.phantom": "the synthetic cohort",
    "staging.runs": "slides in, artefacts out, resumable",
    "staging.training": "patches of a cohort and networks made of them",
    "staging.tuning": "the settings of lesions, learnt by folds",
    "staging.comparison": "ways to label slides, by the same folds",
    "staging.verifying": "whether what was published is unchanged",
    "staging.checksums": "downloads against their checksums",
    "staging.machine": "what this machine has, and how fast it is",
    "staging.cross_validation": "training, running and scoring by folds",
    "staging.demo": "the main job on synthetic slides",
    "staging.commands": "a file per subcommand: it parses, calls one function and prints",
    "staging.cli": "the command line, and how errors end",
    "staging.__main__": "python -m staging",
}
RANK = {room: rank for rank, room in enumerate(PLAN)}
FRONT_DOORS = frozenset(FLOORS)

# Words that once meant many things: a position is a level-0 position, a target is a file to be written, ``where`` is
# where an error lies in a file (see the glossary in DESIGN.md).
RETIRED = {"place", "places", "placed"}

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


def room_of(name: str) -> str | None:
    """The line of PLAN that a module belongs to: its own, or that of the folder it lies in."""
    if name in RANK:
        return name
    folder = name.rpartition(".")[0]
    return folder if folder in RANK and folder not in FRONT_DOORS else None


def violations(name: str, tree: ast.AST) -> list[str]:
    """Imports of ``name`` that do not lead up the plan."""
    if name in FRONT_DOORS:
        return []
    own = room_of(name)
    rooms = "\n".join(f"  {room.replace('.', '/')}: {noun}" for room, noun in PLAN.items())
    assert own is not None, f"{name} is in no room; move it to the one with its noun, or add a line to PLAN:\n{rooms}"
    found = []
    for target in sorted(set(imports_of(tree))):
        if target.partition(".")[0] not in FLOORS:
            continue
        room = room_of(target)
        if target not in SOURCES:
            found.append(f"{target} does not exist")
        elif room is None or (room != own and RANK[room] > RANK[own]):
            found.append(f"{target} stands below {name}")
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The names that no order can be given to."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    return sorted(left)


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
        ("wsi.readers.tiff", "from wsi.slide import Slide"),
        ("staging.lesions.labels", "import staging.stages.pn"),
        ("staging.scores.kappa", "from staging.training import rounds"),
        ("staging.scores.kappa", "from wsi.nowhere import x"),
    ],
)
def test_the_test_can_fail(name: str, line: str) -> None:
    assert len(violations(name, ast.parse(line))) == 1


@pytest.mark.slow
def test_there_are_no_circles() -> None:
    graph = {name: {target for target in imports_of(tree_of(name)) if target in SOURCES} - {name} for name in SOURCES}
    assert circles({name: targets for name, targets in graph.items() if name not in FRONT_DOORS}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


def test_every_room_is_there_and_named_in_the_design() -> None:
    rooms = {room_of(name) for name in SOURCES} - {None}
    assert rooms == set(PLAN)
    design = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    folders = [room for room in PLAN if (ROOT / room.replace(".", "/")).is_dir()]
    assert [room for room in folders if f"{room.replace('.', '/')}/" not in design] == []


@every_module
def test_retired_words_are_in_no_identifier(name: str) -> None:
    with SOURCES[name].open(encoding="utf-8") as file:
        names = {token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.NAME}
    words = {one: set(re.findall(r"[a-z]+|[A-Z][a-z]*", one)) for one in names}
    assert sorted(one for one in words if {word.lower() for word in words[one]} & RETIRED) == []


@pytest.mark.slow
@every_module
def test_floors(name: str) -> None:
    floor = name.partition(".")[0]
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    assert not above & {target.partition(".")[0] for target in imports_of(tree_of(name))}


@pytest.mark.slow
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


@pytest.mark.slow
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
