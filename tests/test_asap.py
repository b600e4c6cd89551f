"""ASAP XML: what is read is what was drawn, and nothing else gets in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, KINDS, Annotation, Role
from annotations.asap import read_asap, write_asap
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, UnknownGroupError

SQUARE = '<Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="9" Y="0"/><Coordinate Order="2" X="9" Y="9"/>'


def document(coordinates: str = SQUARE, *, group: str = "Tumor", kind: str = "Polygon", groups: str = "") -> str:
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a 0" Type="{kind}" '
        f'PartOfGroup="{group}" Color="#F4FA58"><Coordinates>{coordinates}</Coordinates></Annotation></Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )


def file_of(folder: Path, text: str | bytes) -> Path:
    path = folder / "drawn.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "count", "vertices", "kind"),
    [
        ("camelyon16/tumor_009.xml", 6, 10778, "Spline"),
        ("camelyon16/tumor_085.xml", 50, 7220, "Polygon"),
        ("camelyon17/patient_004_node_4.xml", 3, 35, "Polygon"),
        ("asap/asap-dot.xml", 1, 1, "Dot"),
        ("asap/asap-pointset.xml", 1, 5, "PointSet"),
        ("asap/asap-polygon.xml", 1, 6, "Polygon"),
    ],
)
def test_real_files_read_whole(
    real_data: Callable[[str], Path], name: str, count: int, vertices: int, kind: str
) -> None:
    path = real_data(f"annotations/{name}")
    annotations = read_asap(path)
    assert len(annotations) == count
    assert sum(len(annotation.vertices) for annotation in annotations) == vertices
    assert {annotation.kind for annotation in annotations} == {kind}
    # The same numbers by another parser.
    drawn = [
        [(float(point.get("X", "nan")), float(point.get("Y", "nan"))) for point in node.iter("Coordinate")]
        for node in ET.parse(path).iter("Annotation")  # noqa: S314  (a trusted file)
    ]
    assert [annotation.vertices.tolist() for annotation in annotations] == [
        [list(point) for point in points] for points in drawn
    ]


def test_vertices_follow_their_order(tmp_path: Path) -> None:
    points = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>'
        for order, x, y in ((2, "1e1", "3."), (0, "-.5", "1"), (10, "7", "8"))
    )
    (annotation,) = read_asap(file_of(tmp_path, document(points)))
    assert annotation.vertices.tolist() == [[-0.5, 1.0], [10.0, 3.0], [7.0, 8.0]]


def test_without_any_order_the_file_gives_it(tmp_path: Path) -> None:
    points = '<Coordinate X="3" Y="4"/><Coordinate X="1" Y="2"/>'
    (annotation,) = read_asap(file_of(tmp_path, document(points)))
    assert annotation.vertices.tolist() == [[3.0, 4.0], [1.0, 2.0]]


@pytest.mark.parametrize("text", ["nan", "infinity", "1_00", "١٢", "1,5", "", "0x10", "1e99", "12 ", "9999999999"])
def test_what_is_no_position_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    points = f'{SQUARE}<Coordinate Order="3" X="1" Y="{text}"/>'
    with pytest.raises(AnnotationFormatError) as caught:
        read_asap(file_of(tmp_path, document(points)))
    assert caught.value.place == "annotation 'a 0', vertex 3"
    assert "drawn.xml" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  (our own bytes)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no xml",
        b"\0" * 1000,
        b"<ASAP_Annotations><Annotations>",
        b"<annotations/>",
        b"<?xml version='1.0' encoding='klingon'?><ASAP_Annotations/>",
        b"<ASAP_Annotations>\xff\xfe</ASAP_Annotations>",
        b"<!DOCTYPE ASAP_Annotations><ASAP_Annotations/>",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]><ASAP_Annotations>&x;</ASAP_Annotations>",
        b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><ASAP_Annotations/>",
        b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><ASAP_Annotations>&x;</ASAP_Annotations>",
        b"<ASAP_Annotations>" + b"<a>" * 100_000,
        document(kind="Blob").encode(),
        document('<Coordinate Order="0" X="1"/>').encode(),
        document('<Coordinate Order="-1" X="1" Y="1"/>').encode(),
        document('<Coordinate Order="0" X="1" Y="1"/><Coordinate X="1" Y="1"/>').encode(),
    ],
)
def test_what_is_no_asap_file_is_refused(tmp_path: Path, text: bytes) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(AnnotationFormatError) as caught:
        read_asap(path)
    assert str(path) in str(caught.value)
    assert "root:" not in str(caught.value)


def test_attribute_bombs_end_quickly(tmp_path: Path) -> None:
    entities = '<!ENTITY e0 "0123456789">' + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    with pytest.raises(AnnotationFormatError):
        read_asap(file_of(tmp_path, f'<!DOCTYPE a [{entities}]><ASAP_Annotations Name="&e11;"/>'))


def test_a_missing_file_is_not_an_empty_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(AnnotationNotFoundError, match="there is no annotation file"):
            read_asap(path)


@pytest.mark.parametrize(
    ("group", "role"),
    [
        ("_0", Role.TUMOUR),
        ("_1", Role.TUMOUR),
        ("_2", Role.CUT_OUT),
        ("Tumor", Role.TUMOUR),
        ("TUMOR", Role.TUMOUR),
        ("Exclusion", Role.CUT_OUT),
        ("None", Role.CUT_OUT),
        ("", Role.CUT_OUT),
        ("metastases", Role.TUMOUR),
        ("normal", Role.CUT_OUT),
    ],
)
def test_groups_of_camelyon(tmp_path: Path, group: str, role: Role) -> None:
    (annotation,) = read_asap(file_of(tmp_path, document(group=group)))
    assert annotation.role is role


def test_an_unknown_group_is_named_and_the_known_listed(tmp_path: Path) -> None:
    path = file_of(tmp_path, document(group="Tumour cells"))
    with pytest.raises(UnknownGroupError, match="'Tumour cells' has no known meaning") as caught:
        read_asap(path)
    assert all(group in str(caught.value) for group in GROUP_ROLES)
    (annotation,) = read_asap(path, {"TUMOUR CELLS": Role.TUMOUR})
    assert annotation.role is Role.TUMOUR


def test_a_callers_group_goes_before_the_built_in(tmp_path: Path) -> None:
    (annotation,) = read_asap(file_of(tmp_path, document(group="None")), {"None": Role.TUMOUR})
    assert annotation.role is Role.TUMOUR


def test_a_group_within_a_known_group_means_the_same(tmp_path: Path) -> None:
    nested = '<Group Name="left" PartOfGroup="part"/><Group Name="part" PartOfGroup="Tumor"/>'
    (annotation,) = read_asap(file_of(tmp_path, document(group="left", groups=nested)))
    assert (annotation.group, annotation.role) == ("left", Role.TUMOUR)
    ring = '<Group Name="left" PartOfGroup="part"/><Group Name="part" PartOfGroup="left"/>'
    with pytest.raises(UnknownGroupError):
        read_asap(file_of(tmp_path, document(group="left", groups=ring)))
    # A parent "None" is ASAP's word for no parent, not the group None.
    with pytest.raises(UnknownGroupError):
        read_asap(file_of(tmp_path, document(group="left", groups='<Group Name="left" PartOfGroup="None"/>')))


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12).filter(
    lambda text: "\ufffe" not in text and "\uffff" not in text
)
positions = st.floats(-1e9, 1e9)
drawn = st.builds(
    lambda name, group, kind, points: Annotation(
        name=name,
        group=group,
        role=GROUP_ROLES[group.casefold()],
        kind=kind,
        vertices=np.array(points, dtype=np.float64).reshape(-1, 2),
    ),
    names,
    st.sampled_from(["Tumor", "_2", "metastases", "normal", "None"]),
    st.sampled_from(KINDS),
    st.lists(st.tuples(positions, positions), max_size=6),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(drawn, max_size=4))
def test_what_is_written_comes_back_exactly(tmp_path: Path, annotations: list[Annotation]) -> None:
    path = tmp_path / "deep" / "round.xml"
    write_asap(path, annotations)
    first = path.read_bytes()
    back = read_asap(path)
    assert len(back) == len(annotations)
    for one, other in zip(annotations, back, strict=True):
        assert (one.name, one.group, one.role, one.kind) == (other.name, other.group, other.role, other.kind)
        np.testing.assert_array_equal(one.vertices, other.vertices)
    write_asap(path, back)
    assert path.read_bytes() == first
    assert [child.name for child in path.parent.iterdir()] == ["round.xml"]


def test_names_keep_their_quotes_and_line_ends(tmp_path: Path) -> None:
    name = "a \"b\" 'c' <d> & e\tf\ng\rh"
    write_asap(
        tmp_path / "a.xml",
        [Annotation(name=name, group="Tumor", role=Role.TUMOUR, kind="Dot", vertices=np.array([[1.0, 2.0]]))],
    )
    assert read_asap(tmp_path / "a.xml")[0].name == name
    with pytest.raises(ValueError, match="XML cannot hold"):
        write_asap(
            tmp_path / "b.xml",
            [Annotation(name="\0", group="Tumor", role=Role.TUMOUR, kind="Dot", vertices=np.empty((0, 2)))],
        )
    assert not (tmp_path / "b.xml").exists()


def test_what_is_written_has_what_asap_reads(tmp_path: Path) -> None:
    square = np.array([[0.25, 1e-7], [10, 0], [10, 123456.5]])
    write_asap(
        tmp_path / "a.xml",
        [
            Annotation(name="0", group="metastases", role=Role.TUMOUR, kind="Polygon", vertices=square),
            Annotation(name="1", group="normal", role=Role.CUT_OUT, kind="Polygon", vertices=square),
        ],
    )
    root = ET.parse(tmp_path / "a.xml").getroot()  # noqa: S314  (written above)
    assert root.tag == "ASAP_Annotations"
    assert [group.attrib for group in root.iterfind("AnnotationGroups/Group")] == [
        {"Name": "metastases", "PartOfGroup": "None", "Color": "#FF0000"},
        {"Name": "normal", "PartOfGroup": "None", "Color": "#00AA00"},
    ]
    first = root.find("Annotations/Annotation")
    assert first is not None
    assert first.attrib == {"Name": "0", "Type": "Polygon", "PartOfGroup": "metastases", "Color": "#F4FA58"}
    assert first[0][0].attrib == {"Order": "0", "X": "0.25", "Y": "0.0000001"}


def test_outlines_too_short_for_an_area_are_kept_without_one(tmp_path: Path) -> None:
    (annotation,) = read_asap(file_of(tmp_path, document('<Coordinate Order="0" X="1" Y="1"/>')))
    assert len(annotation.vertices) == 1
    assert annotation.outline is None
    (dot,) = read_asap(file_of(tmp_path, document(SQUARE, kind="PointSet")))
    assert dot.outline is None
    corners = '<Coordinate Order="0" X="1" Y="2"/><Coordinate Order="1" X="5" Y="4"/>'
    (box,) = read_asap(file_of(tmp_path, document(corners, kind="Rectangle")))
    assert box.outline is not None
    assert box.outline.tolist() == [[1, 2], [5, 2], [5, 4], [1, 4]]
