from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging.errors import UnknownLabelError
from staging.lesions.finding import Lesion
from staging.lesions.labels import SizeRule, SlideLabel, slide_label
from wsi.geometry import Region


def lesion(diameter_um: float) -> Lesion:
    region = Region(x=0, y=0, width=1, height=1)
    return Lesion(longest_diameter_um=diameter_um, area_um2=1.0, centroid=(0.5, 0.5), probability=1.0, region=region)


def test_declaration_order_is_rank() -> None:
    assert SlideLabel.NEGATIVE < SlideLabel.ITC < SlideLabel.MICRO < SlideLabel.MACRO
    assert [label.rank for label in SlideLabel] == [0, 1, 2, 3]
    assert [label.value for label in SlideLabel] == ["negative", "itc", "micro", "macro"]
    assert SlideLabel.MACRO >= SlideLabel.MACRO
    assert not SlideLabel.MACRO > SlideLabel.MACRO
    with pytest.raises(TypeError):
        _ = SlideLabel.MACRO < "negative"


@pytest.mark.parametrize(
    ("diameter_um", "expected"),
    [
        (0.0, SlideLabel.ITC),
        (200.0, SlideLabel.ITC),
        (math.nextafter(200, 300), SlideLabel.MICRO),
        (2000.0, SlideLabel.MICRO),
        (math.nextafter(2000, 3000), SlideLabel.MACRO),
    ],
)
def test_limits_belong_to_the_smaller_label(diameter_um: float, expected: SlideLabel) -> None:
    assert slide_label([lesion(diameter_um)]) is expected


@pytest.mark.parametrize("one", SlideLabel)
@pytest.mark.parametrize("other", SlideLabel)
def test_labels_compare_as_their_ranks(one: SlideLabel, other: SlideLabel) -> None:
    of_labels = one < other, one <= other, one > other, one >= other
    assert of_labels == (one.rank < other.rank, one.rank <= other.rank, one.rank > other.rank, one.rank >= other.rank)


@pytest.mark.parametrize(
    ("wrong", "limits"),
    [
        ({"smallest_um": -0.1}, {"smallest_um": 0.0}),
        ({"smallest_um": 200.1}, {"smallest_um": 200.0}),
        ({"itc_max_um": 2000.0}, {"itc_max_um": 1999.9}),
        ({"itc_max_cells": 0}, {"itc_max_cells": 1}),
    ],
)
def test_the_limits_of_a_rule_may_meet_but_no_label_is_empty(wrong: dict[str, Any], limits: dict[str, Any]) -> None:
    SizeRule(**limits)
    with pytest.raises(ValueError, match="a size rule needs"):
        SizeRule(**wrong)


def test_a_lesion_may_have_no_cells_but_no_fewer() -> None:
    assert SizeRule().label(50.0, cell_count=0) is SlideLabel.ITC
    with pytest.raises(ValueError, match="at least 0"):
        SizeRule().label(50.0, cell_count=-1)
    with pytest.raises(ValueError, match="finite"):
        SizeRule().label(math.inf)
    with pytest.raises(ValueError, match="finite"):
        SizeRule().label(-0.1)


def test_no_lesion_is_negative_and_sizes_are_never_summed() -> None:
    assert slide_label([]) is SlideLabel.NEGATIVE
    assert slide_label([lesion(150.0)] * 40) is SlideLabel.ITC
    assert slide_label([lesion(10.0), lesion(1999.0), lesion(1500.0)]) is SlideLabel.MICRO


def test_many_cells_make_a_small_lesion_micro_but_never_macro() -> None:
    assert slide_label([lesion(50.0)], cell_counts=[200]) is SlideLabel.ITC
    assert slide_label([lesion(50.0)], cell_counts=[201]) is SlideLabel.MICRO
    assert slide_label([lesion(50.0)], cell_counts=[10**6]) is SlideLabel.MICRO
    assert slide_label([lesion(300.0)], cell_counts=[3]) is SlideLabel.MICRO
    assert slide_label([lesion(300.0), lesion(20.0)], cell_counts=[None, None]) is SlideLabel.MICRO
    with pytest.raises(ValueError, match="shorter"):
        slide_label([lesion(50.0), lesion(60.0)], cell_counts=[1])


def test_the_rule_is_explicit() -> None:
    rule = SizeRule(smallest_um=40.0, itc_max_um=220.0, micro_max_um=1900.0)
    assert slide_label([lesion(39.9)], rule) is SlideLabel.NEGATIVE
    assert slide_label([lesion(40.0)], rule) is SlideLabel.ITC
    assert slide_label([lesion(220.0)], rule) is SlideLabel.ITC
    assert slide_label([lesion(1901.0)], rule) is SlideLabel.MACRO
    with pytest.raises(ValueError, match="itc_max_um"):
        SizeRule(itc_max_um=3000.0)
    with pytest.raises(ValueError, match="finite"):
        rule.label(math.nan)


@given(st.lists(st.floats(0, 5000)))
def test_the_largest_decides(diameters: list[float]) -> None:
    expected = max((slide_label([lesion(one)]) for one in diameters), default=SlideLabel.NEGATIVE)
    assert slide_label([lesion(one) for one in diameters]) is expected


@pytest.mark.parametrize("text", ["MACRO", " macro ", "Macro"])
def test_parse_takes_any_case(text: str) -> None:
    assert SlideLabel.parse(text) is SlideLabel.MACRO


@pytest.mark.parametrize("text", ["", "makro", "pN1", "2"])
def test_parse_names_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownLabelError, match="negative, itc, micro, macro"):
        SlideLabel.parse(text)
