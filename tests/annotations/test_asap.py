"""ASAP XML: what is read is what was drawn, and nothing else gets in."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, KINDS, Annotation, Group, Role
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError, UnknownGroupError
from annotations.files.asap import read_asap, read_asap_set, write_asap

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


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "infinity",
        "1_00",
        "١٢",
        "",
        "0x10",
        "1e99",
        "12 ",
        "9999999999",
        "1,234",
        "-1,234",
        "1,234.5",
        "1.234,5",
        "1,234,567",
        "1,2,3",
        ",",
    ],
)
def test_what_is_no_position_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    points = f'{SQUARE}<Coordinate Order="3" X="1" Y="{text}"/>'
    with pytest.raises(AnnotationFormatError) as caught:
        read_asap(file_of(tmp_path, document(points)))
    assert caught.value.where == "annotation 'a 0', vertex 3"
    assert "drawn.xml" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  (our own bytes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1234,5", 1234.5),
        ("79581,2031", 79581.2031),
        ("12345,678", 12345.678),
        ("0,125", 0.125),
        ("-0,5", -0.5),
        (",5", 0.5),
        ("1,23", 1.23),
        ("1,2345", 1.2345),
        ("3,", 3.0),
    ],
)
def test_a_comma_that_can_only_be_a_decimal_sign_is_one(tmp_path: Path, text: str, value: float) -> None:
    (annotation,) = read_asap(file_of(tmp_path, document(f'<Coordinate Order="0" X="{text}" Y="1"/>')))
    assert annotation.vertices.tolist() == [[value, 1.0]]


def test_an_ambiguous_comma_is_told_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(AnnotationFormatError, match="may mean thousands or decimals, write a point"):
        read_asap(file_of(tmp_path, document('<Coordinate Order="0" X="1,234" Y="1"/>')))


def test_groups_keep_nesting_colours_and_attributes(tmp_path: Path) -> None:
    groups = (
        '<Group Name="left" PartOfGroup="Tumor" Color="#0000ff"><Attributes><Attribute stain="HE" block="2"/>'
        '</Attributes></Group><Group Name="Tumor" PartOfGroup="None" Color="red"/><Group Name="idle"/>'
    )
    text = document(group="left", groups=groups).replace('Name="a 0"', 'Name="a 0" Reader="B"')
    path = file_of(tmp_path, text)
    whole = read_asap_set(path)
    assert whole.groups == (
        Group(name="left", parent="Tumor", colour=(0, 0, 255), attributes={"stain": "HE", "block": "2"}),
        Group(name="Tumor", attributes={"Color": "red"}),
        Group(name="idle"),
    )
    (annotation,) = whole.annotations
    assert (annotation.colour, annotation.attributes) == ((244, 250, 88), {"Reader": "B"})
    write_asap(tmp_path / "b.xml", whole.annotations, whole.groups)
    again = read_asap_set(tmp_path / "b.xml")
    assert again.groups == whole.groups
    assert again.annotations[0].attributes == annotation.attributes
    assert 'Color="red"' in (tmp_path / "b.xml").read_text()
    with pytest.raises(ValueError, match="'two words'"):
        write_asap(tmp_path / "c.xml", [], [Group(name="a", attributes={"two words": "x"})])


def test_groups_without_a_meaning_can_be_given_one(tmp_path: Path) -> None:
    path = file_of(tmp_path, document(group="who knows"))
    assert read_asap_set(path, unknown=Role.IGNORE).annotations[0].role is Role.IGNORE


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
        b"<ASAP_Annotations>" + b"<a>" * 40 + b"</a>" * 40 + b"</ASAP_Annotations>",
        b"<ASAP_Annotations><Annotation><Annotation/></Annotation></ASAP_Annotations>",
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


@pytest.mark.parametrize(("orders", "vertices"), [("0012", "0123"), ("0000", "0123"), ("0132", "0132")])
def test_a_repeated_order_is_read_where_the_file_is_in_order(tmp_path: Path, orders: str, vertices: str) -> None:
    points = "".join(f'<Coordinate Order="{order}" X="{x}" Y="1"/>' for x, order in enumerate(orders))
    (annotation,) = read_asap(file_of(tmp_path, document(points)))
    assert annotation.vertices[:, 0].tolist() == [int(x) for x in vertices]


@pytest.mark.parametrize("orders", ["0101", "2110", "0100"])
def test_a_repeated_order_is_refused_where_it_leaves_open_who_is_first(tmp_path: Path, orders: str) -> None:
    points = "".join(f'<Coordinate Order="{order}" X="{x}" Y="1"/>' for x, order in enumerate(orders))
    with pytest.raises(AnnotationFormatError, match=r"several vertices have the Order [01]"):
        read_asap(file_of(tmp_path, document(points)))


def test_attribute_bombs_end_quickly(tmp_path: Path) -> None:
    entities = '<!ENTITY e0 "0123456789">' + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    with pytest.raises(AnnotationFormatError):
        read_asap(file_of(tmp_path, f'<!DOCTYPE a [{entities}]><ASAP_Annotations Name="&e11;"/>'))


@pytest.mark.slow
@pytest.mark.parametrize("piece", ['<Coordinate Order="{0}" X="{0}.25" Y="7"/>', "<x/>"])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
def test_many_elements_take_bounded_memory(tmp_path: Path, piece: str) -> None:
    count = 400_000
    path = file_of(tmp_path, document("".join(piece.format(number) for number in range(count))))
    # Of the process itself: ru_maxrss would be inherited from this one, tracemalloc does not see libxml2.
    code = (
        "import re, sys\n"
        "from annotations.files.asap import read_asap\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "(annotation,) = read_asap(sys.argv[1])\n"
        "print(len(annotation.vertices), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    vertices, kilobytes = map(int, done.stdout.split())
    assert vertices == (count if "Order" in piece else 0)
    assert kilobytes < 60_000


def test_too_large_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotations.files.xml.MOST_BYTES", 100)
    with pytest.raises(AnnotationFormatError, match="more than any annotation file"):
        read_asap(file_of(tmp_path, document()))


def test_too_many_annotations_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotations.files.xml.MOST_OBJECTS", 3)
    with pytest.raises(AnnotationFormatError, match="more than 3 annotations and groups"):
        read_asap(file_of(tmp_path, document(groups='<Group Name="a"/>' * 3)))


def test_an_empty_file_has_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(EmptyFileError):
        read_asap(file_of(tmp_path, ""))


def test_a_long_line_of_parents_ends(tmp_path: Path) -> None:
    chain = "".join(f'<Group Name="g{n}" PartOfGroup="g{n + 1}"/>' for n in range(5000))
    with pytest.raises(UnknownGroupError):
        read_asap(file_of(tmp_path, document(group="g0", groups=chain)))


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
colours = st.tuples(*[st.integers(0, 255)] * 3)
drawn = st.builds(
    lambda name, group, kind, points, colour, attributes: Annotation(
        name=name,
        group=group,
        role=GROUP_ROLES[group.casefold()],
        kind=kind,
        vertices=np.array(points, dtype=np.float64).reshape(-1, 2),
        colour=colour,
        attributes=attributes,
    ),
    names,
    st.sampled_from(["Tumor", "_2", "metastases", "normal", "None"]),
    st.sampled_from(KINDS),
    st.lists(st.tuples(positions, positions), max_size=6),
    colours,
    st.dictionaries(names, names, max_size=2),
)
listed = st.builds(
    Group,
    name=st.sampled_from(["Tumor", "normal", "left", "right"]),
    parent=st.sampled_from([None, "Tumor", "part of the node"]),
    colour=st.none() | colours,
    attributes=st.dictionaries(st.sampled_from(["stain", "a.b-c_1", "Value"]), names, max_size=2),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(drawn, max_size=4), st.lists(listed, max_size=3, unique_by=lambda group: group.name))
def test_what_is_written_comes_back_exactly(tmp_path: Path, annotations: list[Annotation], groups: list[Group]) -> None:
    path = tmp_path / "deep" / "round.xml"
    write_asap(path, annotations, groups)
    first = path.read_bytes()
    back = read_asap_set(path)
    assert len(back.annotations) == len(annotations)
    for one, other in zip(annotations, back.annotations, strict=True):
        assert (one.name, one.group, one.role, one.kind) == (other.name, other.group, other.role, other.kind)
        assert (one.colour, one.attributes) == (other.colour, other.attributes)
        np.testing.assert_array_equal(one.vertices, other.vertices)
    assert list(back.groups[: len(groups)]) == groups
    names = {group.name for group in back.groups} | {"None"}
    assert names >= {one.group for one in annotations} | {group.parent for group in groups if group.parent}
    write_asap(path, back.annotations, back.groups)
    assert path.read_bytes() == first
    assert [child.name for child in path.parent.iterdir()] == ["round.xml"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camelyon16/tumor_009", "camelyon16/tumor_085", "camelyon17/patient_004_node_4"])
def test_real_files_come_back_element_by_element(real_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    path = real_data(f"annotations/{name}.xml")
    whole = read_asap_set(path)
    write_asap(tmp_path / "a.xml", whole.annotations, whole.groups)
    trees = [ET.parse(one).getroot() for one in (path, tmp_path / "a.xml")]  # noqa: S314  (trusted files)
    first, second = ([element_of(element) for element in tree.iter()] for tree in trees)
    assert first == second


def element_of(element: ET.Element) -> tuple[object, ...]:
    numbers = {"X", "Y"}
    return element.tag, {
        name: float(value) if name in numbers else value.upper() if name == "Color" else value
        for name, value in element.attrib.items()
    }


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
