from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging.cohorts.camelyon import read_stage_table
from staging.errors import SlideNameError
from staging.lesions.labels import SlideLabel
from staging.stages.pn import (
    PatientStage,
    Unscored,
    parse_slide_name,
    stage_patient,
    stage_patients,
    stage_probabilities,
)

NEGATIVE, ITC, MICRO, MACRO = SlideLabel


def test_declaration_order_is_rank() -> None:
    assert [stage.value for stage in PatientStage] == ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"]
    assert max(PatientStage) is PatientStage.PN2
    assert PatientStage.PN1MI < PatientStage.PN1
    assert PatientStage.parse("PN0(I+)") is PatientStage.PN0_I_PLUS


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([NEGATIVE] * 5, "pN0"),
        ([ITC, *[NEGATIVE] * 4], "pN0(i+)"),
        ([ITC] * 5, "pN0(i+)"),
        ([MICRO, ITC, ITC, ITC, ITC], "pN1mi"),
        ([MICRO] * 5, "pN1mi"),
        ([MACRO, *[NEGATIVE] * 4], "pN1"),
        ([MACRO, MICRO, MICRO, ITC, ITC], "pN1"),
        ([MACRO, MICRO, MICRO, MICRO, NEGATIVE], "pN2"),
        ([MACRO] * 5, "pN2"),
    ],
)
def test_rule(labels: list[SlideLabel], expected: str) -> None:
    for order in itertools.permutations(labels):
        assert stage_patient(order).value == expected


def test_a_worse_node_never_makes_the_stage_better() -> None:
    for nodes in itertools.combinations_with_replacement(SlideLabel, 5):
        for index, label in enumerate(nodes):
            if label is not MACRO:
                worse = [*nodes]
                worse[index] = list(SlideLabel)[label.rank + 1]
                assert stage_patient(worse) >= stage_patient(nodes)


def test_no_labels_no_stage() -> None:
    with pytest.raises(ValueError, match="without slide labels"):
        stage_patient([])


def test_the_real_table_is_reproduced(real_data: Callable[[str], Path]) -> None:
    table = read_stage_table(real_data("tables/camelyon17_stage_labels.csv"))
    staging = stage_patients(table.labels)
    assert len(staging.stages) == 100
    assert staging.stages == table.stages
    assert staging.unscored == ()


def five(patient: str = "patient_007", label: SlideLabel = NEGATIVE) -> dict[str, SlideLabel]:
    return {f"{patient}_node_{node}": label for node in range(5)}


def test_a_missing_node_leaves_the_patient_unscored() -> None:
    labels = five() | five("patient_008", MACRO)
    del labels["patient_008_node_3"], labels["patient_008_node_0"]
    staging = stage_patients(labels)
    assert staging.stages == {"patient_007": PatientStage.PN0}
    assert staging.unscored == (Unscored(patient="patient_008", reason="missing node_0, node_3"),)


def test_a_failed_slide_leaves_the_patient_unscored_with_its_reason() -> None:
    labels = five(label=MACRO)
    staging = stage_patients(labels, failed={"patient_007_node_2.tif": "open: truncated"})
    assert staging.stages == {}
    assert staging.unscored[0].reason == "failed node_2 (open: truncated)"
    del labels["patient_007_node_2"]
    staging = stage_patients(labels, failed={"patient_007_node_2": "open: truncated"})
    assert staging.unscored[0].reason == "failed node_2 (open: truncated)"


def test_a_patient_with_only_failed_slides_is_named() -> None:
    staging = stage_patients({}, failed={"patient_100_node_1": "blank"})
    assert staging.unscored == (
        Unscored(patient="patient_100", reason="missing node_0, node_2, node_3, node_4; failed node_1 (blank)"),
    )


def test_surplus_and_disputed_nodes_leave_the_patient_unscored() -> None:
    assert "more than 5 nodes: node_5" in stage_patients(five() | {"patient_007_node_5": ITC}).unscored[0].reason
    disputed = five() | {"PATIENT_007_node_1.tif": MACRO}
    assert "conflicting labels for node_1" in stage_patients(disputed).unscored[0].reason


def test_strange_names_are_reported_not_dropped() -> None:
    staging = stage_patients({"CMU-1": MACRO} | five())
    assert list(staging.stages) == ["patient_007"]
    assert staging.unscored[0].patient == "CMU-1"


def test_the_number_of_nodes_can_be_told() -> None:
    labels = {f"patient_003_node_{node}": NEGATIVE for node in range(2)}
    assert stage_patients(labels, expected_nodes=2).stages == {"patient_003": PatientStage.PN0}


def test_patients_come_in_the_order_of_their_numbers() -> None:
    labels = five("patient_100") | five("patient_20") | five("patient_003")
    assert list(stage_patients(labels).stages) == ["patient_003", "patient_20", "patient_100"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patient_000_node_0", ("patient_000", 0)),
        ("patient_000_node_0.tif", ("patient_000", 0)),
        (" Patient_123_Node_4.TIF ", ("patient_123", 4)),
        ("patient_000_node_0.ome.tiff", ("patient_000", 0)),
    ],
)
def test_slide_names(name: str, expected: tuple[str, int]) -> None:
    assert parse_slide_name(name) == expected


@pytest.mark.parametrize(
    "name", ["", "patient_000.zip", "patient_000_node_0_mask.tif", "tumor_001", "patient_٣_node_0"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SlideNameError, match="patient_000_node_0"):
        parse_slide_name(name)


def shares_of(weights: tuple[int, ...]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights)


node_shares = st.tuples(*[st.integers(0, 20)] * 4).filter(any).map(shares_of)


@settings(deadline=None, max_examples=40)
@given(st.lists(node_shares, min_size=1, max_size=5))
def test_probabilities_of_stages_agree_with_every_case(nodes: list[tuple[float, ...]]) -> None:
    expected = dict.fromkeys(PatientStage, 0.0)
    for labels in itertools.product(SlideLabel, repeat=len(nodes)):
        weight = 1.0
        for label, shares in zip(labels, nodes, strict=True):
            weight *= shares[label.rank]
        expected[stage_patient(labels)] += weight
    found = stage_probabilities(nodes)
    assert found == pytest.approx(expected, abs=1e-12)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.lists(node_shares, min_size=5, max_size=5), st.integers(0, 4), st.integers(0, 2))
def test_a_node_that_is_likelier_to_be_worse_never_helps(
    nodes: list[tuple[float, ...]], node: int, better: int
) -> None:
    shares = list(nodes[node])
    shares[better + 1] += shares[better]
    shares[better] = 0.0
    worse = [*nodes]
    worse[node] = tuple(shares)
    before, after = stage_probabilities(nodes), stage_probabilities(worse)
    for stage in PatientStage:
        at_least = [sum(found[one] for one in PatientStage if one >= stage) for found in (before, after)]
        assert at_least[1] >= at_least[0] - 1e-12


def test_certain_labels_make_a_certain_stage() -> None:
    for labels in itertools.combinations_with_replacement(SlideLabel, 5):
        shares = [[float(one is label) for one in SlideLabel] for label in labels]
        assert stage_probabilities(shares)[stage_patient(labels)] == 1.0


@pytest.mark.parametrize("node", [[0.5, 0.5, 0.0], [0.5, 0.5, 0.5, 0.0], [1.5, -0.5, 0.0, 0.0], [float("nan")] * 4])
def test_what_is_no_probability(node: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilit"):
        stage_probabilities([node])
    with pytest.raises(ValueError, match="without slide labels"):
        stage_probabilities([])


@pytest.mark.parametrize(
    ("excess", "is_refused"), [(0.95e-6, False), (-0.95e-6, False), (1.05e-6, True), (-1.05e-6, True)]
)
def test_shares_may_miss_1_by_rounding_and_the_stages_never_do(excess: float, *, is_refused: bool) -> None:
    node = [0.25, 0.25, 0.25, 0.25 + excess]
    if is_refused:
        with pytest.raises(ValueError, match="sum to 1"):
            stage_probabilities([node] * 5)
    else:
        assert sum(stage_probabilities([node] * 5).values()) == pytest.approx(1.0, abs=1e-14)


def test_no_share_is_above_1() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        stage_probabilities([[1 + 5e-7, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("form", ["{}", "{}.tif", "{}.TIF"])
def test_a_partly_seen_slide_makes_a_lower_bound_however_it_is_written(form: str) -> None:
    labels = five()
    partial = [form.format(next(iter(labels)).upper())]
    assert stage_patients(labels, partial=partial).at_least == {next(iter(stage_patients(labels).stages))}
    assert stage_patients(labels, partial=["patient_199_node_0", "no name"]).at_least == frozenset()
