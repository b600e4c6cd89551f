"""Files of any format: found by their content, and converted so that every loss is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, HOLE_GROUP, HOLE_OF, KINDS, Annotation, AnnotationSet, Group, Role
from annotations.errors import AnnotationError, AnnotationFormatError, AnnotationNotFoundError, EmptyFileError
from annotations.files.asap import read_asap_set, write_asap
from annotations.files.formats import (
    CROSSING,
    Format,
    convert_annotations,
    file_kind,
    format_named,
    format_of,
    losses,
    read_annotation_set,
    read_annotations,
    write_annotations,
)
from annotations.polygons import tumour_area

SUFFIXES = {Format.ASAP: ".xml", Format.GEOJSON: ".geojson", Format.IMAGESCOPE: ".imagescope.xml"}
every_format = pytest.mark.parametrize("form", Format)


def drawn(kind: str = "Polygon", points: object = ((0, 0), (9, 0), (9, 9)), **fields: object) -> Annotation:
    vertices = np.array(points, dtype=np.float64).reshape(-1, 2)
    values = {"name": "a", "group": "Tumor", "role": Role.TUMOUR, "kind": kind, "vertices": vertices, **fields}
    return Annotation(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (b"<ASAP_Annotations/>", Format.ASAP),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a --><ASAP_Annotations/>", Format.ASAP),
        ("<?xml version='1.0' encoding='utf-16'?><Annotations/>".encode("utf-16"), Format.IMAGESCOPE),
        (b"\n\n<Annotations MicronsPerPixel='1'/>", Format.IMAGESCOPE),
        (b" \n[]", Format.GEOJSON),
        (b'{"type": "FeatureCollection", "features": []}', Format.GEOJSON),
    ],
)
def test_the_content_tells_the_format(tmp_path: Path, content: bytes, form: Format) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    assert format_of(path) is form
    assert read_annotations(path) == ()


@pytest.mark.parametrize("content", [b"<svg/>", b"x,y\n1,2", b"\x89PNG", b"<", b"<!DOCTYPE a><ASAP_Annotations/>"])
def test_what_is_no_annotation_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.xml"
    path.write_bytes(content)
    with pytest.raises(AnnotationFormatError) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


def test_missing_and_empty_files_have_their_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(AnnotationNotFoundError):
            read_annotations(path)
    (tmp_path / "a.xml").write_text(" \n")
    with pytest.raises(EmptyFileError):
        read_annotations(tmp_path / "a.xml")


def test_the_name_asks_for_a_format(tmp_path: Path) -> None:
    names = {"a.xml": Format.ASAP, "a.b.GeoJSON": Format.GEOJSON, "a.json": Format.GEOJSON}
    assert {name: format_named(name) for name in names} == names
    assert format_named(Path("x") / "a.imagescope.XML") is Format.IMAGESCOPE
    with pytest.raises(AnnotationFormatError, match="no known suffix"):
        write_annotations(tmp_path / "a.txt", [])
    write_annotations(tmp_path / "a.txt", [drawn()], Format.IMAGESCOPE)
    assert format_of(tmp_path / "a.txt") is Format.IMAGESCOPE


@pytest.mark.slow
def test_real_files_keep_their_area_in_every_format(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    names = ["asap/asap-dot.xml", "asap/asap-pointset.xml", "asap/asap-polygon.xml", "geojson/dlup_qupath05.geojson"]
    names += ["camelyon16/tumor_009.xml", "camelyon16/tumor_085.xml", "camelyon17/patient_004_node_4.xml"]
    names += ["geojson/histoqc_holed.geojson", "geojson/qupath_polygon.geojson"]
    groups = {"Unclassified": Role.TUMOUR, "UT": Role.TUMOUR, "I": Role.TUMOUR, "None": Role.TUMOUR}
    for name in names:
        source = real_data(f"annotations/{name}")
        before = read_annotations(source, groups)
        area = tumour_area(before)
        for form, suffix in SUFFIXES.items():
            target = tmp_path / f"{source.stem}{suffix}"
            told = convert_annotations(source, target)
            assert told["annotations"] == len(before)
            assert told["vertices"] == sum(len(one.vertices) for one in before)
            assert told["target"] == form.value
            after = tumour_area(read_annotations(target, groups))
            assert after.symmetric_difference(area).area <= 1e-6 * max(1.0, area.area)
        again = tmp_path / f"again{SUFFIXES[format_of(source)]}"
        assert convert_annotations(source, again)["lost"] == {}


def test_groups_need_no_meaning_to_be_converted(tmp_path: Path) -> None:
    write_asap(tmp_path / "a.xml", [drawn(group="who knows"), drawn(group="normal", role=Role.CUT_OUT)])
    told = convert_annotations(tmp_path / "a.xml", tmp_path / "b.geojson")
    assert (told["source"], told["groups"], told["lost"]) == ("ASAP XML", 2, {})
    classes = [
        one["properties"]["classification"] for one in json.loads((tmp_path / "b.geojson").read_text())["features"]
    ]
    assert classes == [{"name": "who knows", "color": [255, 0, 0]}, {"name": "normal", "color": [0, 170, 0]}]


@pytest.mark.parametrize(
    ("form", "one", "reason"),
    [
        (Format.GEOJSON, drawn("Spline"), "splines become polygons, within 0.25 px"),
        (Format.GEOJSON, drawn("Rectangle"), "rectangles become polygons"),
        (Format.GEOJSON, drawn(points=()), "annotations without a vertex are left out"),
        (Format.GEOJSON, drawn(points=[(1, 1)]), "outlines without an area become points or lines"),
        (Format.GEOJSON, drawn(points=[(0, 0), (9, 9), (9, 0), (0, 9)]), "outlines that cross themselves"),
        (Format.GEOJSON, drawn(attributes={"color": "x"}), "attributes of annotations"),
        (Format.IMAGESCOPE, drawn("Spline"), "splines become polygons, within 0.25 px"),
        (Format.IMAGESCOPE, drawn("Rectangle", points=[(0, 0), (1, 1)]), "rectangles become their four corners"),
        (Format.IMAGESCOPE, drawn("None"), "kinds: None becomes a line"),
        (Format.IMAGESCOPE, drawn(colour=(1, 2, 3)), "colours of annotations"),
        (Format.IMAGESCOPE, drawn(attributes={"@Text": "x"}), "attributes of annotations"),
    ],
)
def test_a_loss_is_named(form: Format, one: Annotation, reason: str) -> None:
    (found,) = losses(AnnotationSet(annotations=(one,)), form).items()
    assert found[0].startswith(reason)
    assert found[1][0].startswith("a")


def test_losses_of_groups_are_named() -> None:
    annotations = (drawn(group="left"), drawn(group="Tumor"), drawn(group="left"))
    groups = (
        Group(name="left", parent="Tumor", attributes={"two words": "x"}),
        Group(name="Tumor"),
        Group(name="idle", attributes={"stain": "HE"}),
    )
    whole = AnnotationSet(annotations=annotations, groups=groups, mpp=0.25)
    assert losses(whole, Format.ASAP) == {
        "attributes of groups": ["left: two words"],
        "the resolution": ["0.25 um per px"],
    }
    assert losses(whole, Format.GEOJSON) == {
        "attributes of groups": ["left: two words", "idle: stain"],
        "the resolution": ["0.25 um per px"],
        "the nesting of groups": ["left"],
        "groups without annotations": ["idle"],
    }
    assert losses(whole, Format.IMAGESCOPE) == {
        "the nesting of groups": ["left"],
        "the order of annotations between groups": ["left, Tumor"],
    }


@pytest.mark.parametrize("suffix", [*SUFFIXES.values()])
def test_a_hole_of_tissue_cuts_no_tumour_after_conversion(tmp_path: Path, suffix: str) -> None:
    tissue = {"type": "Polygon", "coordinates": [RING, [[4, 4], [4, 8], [8, 8], [8, 4], [4, 4]]]}
    tumour = {"type": "Polygon", "coordinates": [[[6, 6], [10, 6], [10, 10], [6, 10], [6, 6]]]}
    features = [
        {"type": "Feature", "geometry": shape, "properties": {"classification": {"name": name}}}
        for shape, name in ((tissue, "tissue"), (tumour, "Tumor"))
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    convert_annotations(tmp_path / "a.geojson", tmp_path / f"b{suffix}")
    assert tumour_area(read_annotations(tmp_path / f"b{suffix}")).area == 16
    region = (
        '<Region NegativeROA="{}"><Vertices><Vertex X="0" Y="0"/><Vertex X="9" Y="0"/><Vertex X="9" Y="{}"/></Vertices>'
        "</Region>"
    )
    layers = f'<Annotation Name="tissue"><Regions>{region.format(0, 90)}{region.format(1, 9)}</Regions></Annotation>'
    layers += f'<Annotation Name="Tumor"><Regions>{region.format(0, 19)}</Regions></Annotation>'
    (tmp_path / "c.xml").write_text(f"<Annotations>{layers}</Annotations>")
    convert_annotations(tmp_path / "c.xml", tmp_path / f"d{suffix}")
    assert tumour_area(read_annotations(tmp_path / f"d{suffix}")).area == 9 * 19 / 2


RING = [[0, 0], [20, 0], [20, 20], [0, 20], [0, 0]]
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=6).filter(
    lambda text: "\ufffe" not in text and "\uffff" not in text
)
positions = st.integers(0, 400).map(lambda value: value / 4)
colours = st.tuples(*[st.integers(0, 255)] * 3)
found = st.builds(
    lambda name, group, kind, points, colour, attributes, hole: drawn(
        kind,
        points,
        name=name,
        group=(HOLE_GROUP if hole else group),
        role=Role.CUT_OUT if hole else GROUP_ROLES[group.casefold()],
        colour=colour,
        attributes={**attributes, HOLE_OF: "Tumor"} if hole else attributes,
    ),
    names,
    st.sampled_from(["Tumor", "metastases", "tissue", "normal"]),
    st.sampled_from(KINDS),
    st.lists(st.tuples(positions, positions), max_size=5),
    st.none() | colours,
    st.dictionaries(names | st.sampled_from(["@Zoom", "@Text", "color", "id"]), names, max_size=2),
    st.sampled_from([False, False, False, True]),
)


def facts(one: Annotation) -> dict[str, object]:
    return {
        "name": one.name,
        "group": one.group,
        "kind": one.kind,
        "vertices": one.vertices.tolist(),
        "colour": one.colour,
        "attributes": dict(one.attributes),
    }


@pytest.mark.slow
@every_format
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(found, max_size=4))
def test_without_a_loss_told_everything_comes_back(tmp_path: Path, form: Format, annotations: list[Annotation]) -> None:
    path = tmp_path / f"a{SUFFIXES[form]}"
    whole = AnnotationSet(annotations=tuple(annotations))
    write_annotations(path, whole)
    lost = losses(whole, form)
    back = read_annotation_set(path, unknown=Role.IGNORE)
    if not lost:
        yellow = (244, 250, 88) if form is Format.ASAP else None
        expected = [{**facts(one), "colour": one.colour or yellow} for one in annotations]
        assert [facts(one) for one in back.annotations] == expected
    # the areas of an outline taken apart may lie inside a cut-out where the whole did not: islands, as losses tells
    if CROSSING not in lost or all(one.role is not Role.CUT_OUT for one in annotations):
        assert tumour_area(back.annotations).symmetric_difference(tumour_area(annotations)).area < 1e-6


@every_format
def test_a_crossing_outline_in_a_cut_out_is_told(tmp_path: Path, form: Format) -> None:
    hole = drawn("Polygon", [(0, 0), (0, 8), (8, 0)], group=HOLE_GROUP, role=Role.CUT_OUT)
    bow_tie = drawn("Polygon", [(0, 8), (8, 8), (0, 0), (8, 0)], name="b", group="Tumor")
    whole = AnnotationSet(annotations=(hole, bow_tie))
    write_annotations(tmp_path / f"a{SUFFIXES[form]}", whole)
    area = tumour_area(read_annotations(tmp_path / f"a{SUFFIXES[form]}")).area
    told = losses(whole, form)
    assert (area, told.get(CROSSING)) == ((32, ["b"]) if form is Format.GEOJSON else (16, None))


@every_format
def test_what_a_format_cannot_write_is_an_error_of_the_family(tmp_path: Path, form: Format) -> None:
    with pytest.raises(AnnotationError, match="cannot be written"):
        write_annotations(tmp_path / f"a{SUFFIXES[form]}", [drawn(name="\ud800")])
    assert not list(tmp_path.iterdir())


def test_asap_to_others_and_back_keeps_what_both_hold(tmp_path: Path) -> None:
    annotations = [drawn(name="1", colour=(9, 8, 7)), drawn("Dot", [(3, 4)], name="2", colour=(1, 1, 1))]
    groups = [Group(name="Tumor", colour=(4, 5, 6))]
    write_asap(tmp_path / "a.xml", annotations, groups)
    first = (tmp_path / "a.xml").read_bytes()
    assert convert_annotations(tmp_path / "a.xml", tmp_path / "b.geojson")["lost"] == {}
    assert convert_annotations(tmp_path / "b.geojson", tmp_path / "c.xml")["lost"] == {}
    assert (tmp_path / "c.xml").read_bytes() == first
    assert list(read_asap_set(tmp_path / "c.xml").groups) == groups


@pytest.mark.parametrize("name", ["a.xml", "a.geojson", "a.imagescope.xml"])
def test_only_what_was_written_here_is_ones_own(tmp_path: Path, name: str) -> None:
    source, path = tmp_path / "drawn.xml", tmp_path / name
    write_asap(source, [drawn()])
    convert_annotations(source, path)
    kind = file_kind(path)
    assert kind.is_at(path)
    by_hand = path.read_text().replace("<!-- written by sentinode -->\n", "").replace('"generator": "sentinode", ', "")
    assert by_hand != path.read_text()
    path.write_text(by_hand)
    assert not kind.is_at(path)
    assert len(read_annotations(path)) == 1
