from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging.cohorts.node_tables import NodeSite, read_label_probabilities, read_node_sites, tnm_stages
from staging.cohorts.patients import read_patients
from staging.errors import ConflictError, TableError, UnknownLabelError, UnsupportedStageError
from staging.lesions.labels import SlideLabel
from staging.stages.pn import PatientStage, stage_patient
from staging.stages.tnm import Detection, NodeCounts, Site, TnmStage, stage_nodes


def nodes(macro: int = 0, micro: int = 0, itc: int = 0, negative: int = 0) -> NodeCounts:
    return NodeCounts(macro=macro, micro=micro, itc=itc, examined=macro + micro + itc + negative)


@pytest.mark.parametrize(
    ("axillary", "expected"),
    [
        (nodes(negative=3), "pN0"),
        (nodes(itc=12), "pN0(i+)"),
        (nodes(micro=1, itc=4), "pN1mi"),
        (nodes(micro=12), "pN1mi"),
        (nodes(macro=1), "pN1a"),
        (nodes(macro=1, micro=2, itc=9), "pN1a"),
        (nodes(macro=1, micro=3), "pN2a"),
        (nodes(macro=9), "pN2a"),
        (nodes(macro=1, micro=9), "pN3a"),
        (nodes(macro=30), "pN3a"),
    ],
)
def test_axillary_nodes(axillary: NodeCounts, expected: str) -> None:
    assert stage_nodes(axillary).value == expected
    assert stage_nodes(axillary, nodes(negative=2)).value == expected


@pytest.mark.parametrize(
    ("axillary", "detection", "expected"),
    [
        (nodes(negative=2), Detection.SENTINEL, "pN1b"),
        (nodes(itc=2), Detection.SENTINEL, "pN1b"),
        (nodes(macro=3), Detection.SENTINEL, "pN1c"),
        (nodes(macro=4), Detection.SENTINEL, "pN3b"),
        (nodes(negative=2), Detection.CLINICAL, "pN2b"),
        (nodes(macro=1), Detection.CLINICAL, "pN3b"),
        (nodes(macro=1, micro=8), Detection.CLINICAL, "pN3b"),
    ],
)
@pytest.mark.parametrize("inner", [nodes(micro=1), nodes(macro=2, itc=1)])
def test_internal_mammary_nodes(axillary: NodeCounts, detection: Detection, expected: str, inner: NodeCounts) -> None:
    assert stage_nodes(axillary, inner, detection=detection).value == expected


@pytest.mark.parametrize(
    ("axillary", "inner", "detection", "reason"),
    [
        (nodes(micro=1), nodes(macro=1), Detection.SENTINEL, "differently by the editions"),
        (nodes(micro=1), nodes(macro=1), Detection.CLINICAL, "differently by the editions"),
        (nodes(macro=10), nodes(macro=1), Detection.SENTINEL, "both pN3a and pN3b"),
        (nodes(macro=1), nodes(macro=1), None, "how they were detected"),
        (nodes(macro=1), nodes(negative=1), Detection.CLINICAL, "no examined node"),
    ],
)
def test_what_the_manuals_leave_open_is_an_error(
    axillary: NodeCounts, inner: NodeCounts, detection: Detection | None, reason: str
) -> None:
    with pytest.raises(UnsupportedStageError, match=reason):
        stage_nodes(axillary, inner, detection=detection)


def test_isolated_cells_beside_the_sternum_are_isolated_cells() -> None:
    assert stage_nodes(nodes(negative=3), nodes(itc=1)) is TnmStage.PN0_I_PLUS
    with pytest.raises(ValueError, match="without examined"):
        stage_nodes(nodes())
    with pytest.raises(ValueError, match="at most those examined"):
        NodeCounts(macro=2, examined=1)


@given(st.lists(st.sampled_from(list(SlideLabel)), min_size=1, max_size=14), st.data())
def test_a_worse_axillary_node_never_lowers_the_category(labels: list[SlideLabel], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(labels) - 1))
    worse = [*labels]
    worse[at] = list(SlideLabel)[min(3, labels[at].rank + 1)]
    assert stage_nodes(NodeCounts.of(worse)) >= stage_nodes(NodeCounts.of(labels))


@given(st.lists(st.sampled_from(list(SlideLabel)), min_size=1, max_size=5))
def test_five_axillary_nodes_are_staged_as_camelyon_does(labels: list[SlideLabel]) -> None:
    full = stage_nodes(NodeCounts.of(labels)).value
    assert PatientStage.parse({"pN1a": "pN1", "pN2a": "pN2"}.get(full, full)) is stage_patient(labels)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_tables(tmp_path: Path) -> None:
    table = written(
        tmp_path / "labels.csv",
        "slide,label,negative,itc,micro,macro\npatient_001_node_0.ome.tiff,itc,0.1,0.6,0.2,0.1\nX.tif,macro,0,0,0,1\n",
    )
    found = read_label_probabilities(table)
    assert found is not None
    assert found["patient_001_node_0"] == pytest.approx((0.1, 0.6, 0.2, 0.1))
    assert read_label_probabilities(written(tmp_path / "plain.csv", "slide,label\na,itc\n")) is None
    for text, reason in (
        ("slide,label,itc,micro\na,itc,0.5,0.5\n", "negative, macro"),
        ("slide,negative,itc,micro,macro\na,0.5,0.5,0.5,0\n", "line 2"),
        ("slide,negative,itc,micro,macro\na,1,0,x,0\n", "sum to 1"),
    ):
        with pytest.raises(TableError, match=reason):
            read_label_probabilities(written(tmp_path / "bad.csv", text))
    sites = read_node_sites(
        written(tmp_path / "sites.csv", "slide,site,detection\na.tif,Axillary,\nb,internal mammary,clinical\n")
    )
    assert sites == {
        "a": NodeSite(site=Site.AXILLARY),
        "b": NodeSite(site=Site.INTERNAL_MAMMARY, detection=Detection.CLINICAL),
    }
    with pytest.raises(UnknownLabelError, match="axillary, internal mammary"):
        read_node_sites(written(tmp_path / "bad.csv", "slide,site\na,neck\n"))
    with pytest.raises(ConflictError, match="lines 2 and 3"):
        read_node_sites(written(tmp_path / "bad.csv", "slide,site\na,axillary\na,internal mammary\n"))
    with pytest.raises(TableError, match="header"):
        read_node_sites(written(tmp_path / "bad.csv", "node,site\na,axillary\n"))


def test_patients_without_a_category_are_named() -> None:
    labels = {"patient_001_node_0": SlideLabel.MACRO, "patient_002_node_0": SlideLabel.MACRO}
    labels |= {"patient_003_node_0": SlideLabel.MICRO, "patient_003_node_1": SlideLabel.MACRO}
    inner = NodeSite(site=Site.INTERNAL_MAMMARY, detection=Detection.SENTINEL)
    sites = {"patient_001_node_0": NodeSite(site=Site.AXILLARY), "patient_003_node_1": inner}
    sites["patient_003_node_0"] = NodeSite(site=Site.AXILLARY)
    stages, reasons = tnm_stages(labels, sites)
    assert stages == {"patient_001": TnmStage.PN1A}
    assert "patient_002_node_0" in reasons["patient_002"]
    assert "editions" in reasons["patient_003"]


def test_a_node_of_several_slides_counts_once_and_has_one_site(tmp_path: Path) -> None:
    labels = {f"s{at}": SlideLabel.MACRO for at in range(6)}
    nodes = read_patients(written(tmp_path / "p.csv", "".join(f"s{at},P,n{at // 3}\n" for at in range(6))))
    sites = {name: NodeSite(site=Site.AXILLARY) for name in labels}
    assert tnm_stages(labels, sites, nodes)[0] == {"P": TnmStage.PN1A}  # two nodes, not six
    assert tnm_stages(labels, sites)[0] == {}
    sites["s2"] = NodeSite(site=Site.INTERNAL_MAMMARY, detection=Detection.CLINICAL)
    stages, reasons = tnm_stages(labels, sites, nodes)
    assert stages == {}
    assert reasons == {"P": "s0, s1, s2 are of one node, but their sites differ"}
    table = written(tmp_path / "s.csv", "slide,site,detection\na,axillary,\na,internal mammary,clinical\n")
    with pytest.raises(ConflictError, match=r"a is axillary and then internal mammary \(clinical\)"):
        read_node_sites(table)


def test_the_command(tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide", "label", "negative", "itc", "micro", "macro"))
        for node in range(5):
            writer.writerow((f"patient_004_node_{node}", "macro" if node < 4 else "negative", 0.1, 0.0, 0.0, 0.9))
    sites = "slide,site\n" + "".join(f"patient_004_node_{node},axillary\n" for node in range(5))
    arguments = [tmp_path / "labels.csv", "-o", tmp_path / "stages.csv", "--sites", written(tmp_path / "s.csv", sites)]
    done = subprocess.run(
        [sys.executable, "-m", "staging", "stage", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout)
    assert record["tnm"] == {"patient_004": "pN2a"}
    shares = record["probabilities"]["patient_004"]
    assert shares["pN0"] == pytest.approx(0.1**5)
    assert shares["pN2"] == pytest.approx(0.9**5 + 5 * 0.9**4 * 0.1)
    assert shares["pN1"] == pytest.approx(1 - shares["pN0"] - shares["pN2"])


AXILLA = {
    "negative": nodes(negative=2),
    "isolated tumour cells": nodes(itc=2),
    "micro-metastases alone": nodes(micro=2),
    "1 to 3 positive": nodes(macro=1, micro=2),
    "4 to 9 positive": nodes(macro=4),
    "10 or more positive": nodes(macro=10),
}
INNER = {
    "none": (None, None),
    "by sentinel biopsy": (nodes(macro=1), Detection.SENTINEL),
    "clinically": (nodes(macro=1), Detection.CLINICAL),
}
BELOW = {"none": None, "isolated tumour cells": nodes(itc=1), "micro": nodes(micro=1), "macro": nodes(macro=1)}


def named(*sites: NodeCounts | None, detection: Detection | None) -> str:
    axillary, inner, below, above = sites
    assert axillary is not None
    try:
        return stage_nodes(axillary, inner, detection=detection, infraclavicular=below, supraclavicular=above).value
    except UnsupportedStageError:
        return "open"


def test_the_table_in_the_documentation_is_what_is_staged() -> None:
    rows = []
    for axilla, counts in AXILLA.items():
        for inner, (found, detection) in INNER.items():
            stages = [named(counts, found, below, None, detection=detection) for below in BELOW.values()]
            rows.append(f"| {axilla} | {inner} | {' | '.join(stages)} |")
    text = (Path(__file__).parents[2] / "docs" / "tnm.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:] == rows


@pytest.mark.parametrize("axillary", AXILLA.values())
@pytest.mark.parametrize("inner", INNER.values())
@pytest.mark.parametrize("below", BELOW.values())
def test_supraclavicular_metastases_count_most(
    axillary: NodeCounts, inner: tuple[NodeCounts | None, Detection | None], below: NodeCounts | None
) -> None:
    found, detection = inner
    assert named(axillary, found, below, nodes(macro=1, micro=3), detection=detection) == "pN3c"
    assert named(axillary, found, below, nodes(micro=1), detection=detection) == "open"
    without = named(axillary, found, below, None, detection=detection)
    assert named(axillary, found, below, nodes(itc=1), detection=detection) == (
        "pN0(i+)" if without == "pN0" else without
    )
