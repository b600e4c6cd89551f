"""Aperio ImageScope XML: layers are groups, negative regions are cut out."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, HOLE_GROUP, HOLE_OF, IGNORED_HOLE_GROUP, Annotation, Group, Role
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError, UnknownGroupError
from annotations.files.imagescope import is_held, read_imagescope_set, write_imagescope
from annotations.polygons import to_geometry, tumour_area

Points = list[tuple[float, float]]

SQUARE: Points = [(0, 0), (20, 0), (20, 20), (0, 20)]
INNER: Points = [(5, 5), (5, 10), (10, 10), (10, 5)]


def read_imagescope(path: Path, groups: dict[str, Role] | None = None) -> tuple[Annotation, ...]:
    return read_imagescope_set(path, groups).annotations


def region(points: Points, **attributes: str) -> str:
    written = "".join(f' {name}="{value}"' for name, value in attributes.items())
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f"<Region{written}><Attributes/><Vertices>{vertices}</Vertices></Region>"


def layer(*regions: str, name: str = "Tumor", attributes: str = "", tag: str = 'Id="1" LineColor="65280"') -> str:
    return (
        f'<Annotation {tag} Name="{name}"><Attributes>{attributes}</Attributes><Regions><RegionAttributeHeaders>'
        f'<AttributeHeader Id="9999" Name="Region"/></RegionAttributeHeaders>{"".join(regions)}</Regions><Plots/>'
        "</Annotation>"
    )


def file_of(folder: Path, *layers: str, mpp: str = ' MicronsPerPixel="0.25"') -> Path:
    path = folder / "drawn.xml"
    path.write_text(f"<Annotations{mpp}>{''.join(layers)}</Annotations>")
    return path


def test_layers_regions_and_what_is_cut_out(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        layer(region(SQUARE, Id="1", Type="0", Text="a", NegativeROA="0", Zoom="0.3"), region(INNER, NegativeROA="1")),
        layer(region(SQUARE), name="tissue", tag='Id="2" LineColor="255" Visible="0"'),
    )
    whole = read_imagescope_set(path)
    assert whole.mpp == 0.25
    assert whole.groups == (
        Group(name="Tumor", colour=(0, 255, 0)),
        Group(name="tissue", colour=(255, 0, 0), attributes={"@Visible": "0"}),
    )
    first, hole, tissue = whole.annotations
    assert (first.name, first.group, first.role, first.attributes) == ("a", "Tumor", Role.TUMOUR, {"@Zoom": "0.3"})
    assert (hole.group, hole.role, hole.attributes) == (HOLE_GROUP, Role.CUT_OUT, {HOLE_OF: "Tumor"})
    assert tissue.role is Role.TISSUE
    assert tumour_area(whole.annotations).area == 400 - 25


def halo_region(kind: str, points: Points, *, negative: bool = False) -> str:
    vertices = "".join(f'<V X="{x}" Y="{y}" />' for x, y in points)
    comments = '<Comments><Comment Author="who" Body="a" CreatedTime="2024-03-20T17:02:03Z" /></Comments>'
    tag = f'Type="{kind}" HasEndcaps="0" NegativeROA="{int(negative)}"'
    return f"<Region {tag}><Vertices>{vertices}</Vertices>{comments}</Region>"


def test_halo_names_kinds_and_shortens_vertices(tmp_path: Path) -> None:
    path = tmp_path / "a.annotations"
    regions = [
        halo_region("Rectangle", INNER[::2], negative=True),
        halo_region("Polygon", [*SQUARE, SQUARE[0]]),
        halo_region("Rectangle", [(100, 0), (110, 20)]),
        halo_region("Ellipse", [(200, 0), (220, 10)]),
        halo_region("Ruler", [(0, 0), (9, 9)]),
        halo_region("Pin", [(3, 4)]),
    ]
    tag = 'Name="Tumor" Visible="True" LineColor="65535"'
    path.write_text(f"<Annotations><Annotation {tag}><Regions>{''.join(regions)}</Regions></Annotation></Annotations>")
    whole = read_imagescope_set(path)
    assert whole.groups == (Group(name="Tumor", colour=(255, 255, 0)),)
    assert [one.kind for one in whole.annotations] == [
        *("Rectangle", "Polygon", "Rectangle", "Polygon", "Measurement", "Dot")
    ]
    assert whole.annotations[0].attributes[HOLE_OF] == "Tumor"
    assert tumour_area(whole.annotations).area == pytest.approx(400 - 25 + 200 + math.pi * 50, rel=1e-4)


def test_a_hole_of_tissue_does_not_cut_tumour(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, layer(region(SQUARE)), layer(region(SQUARE), region(INNER, NegativeROA="1"), name="tissue")
    )
    assert [one.role for one in read_imagescope(path)] == [Role.TUMOUR, Role.TISSUE, Role.IGNORE]
    assert read_imagescope(path)[2].group == IGNORED_HOLE_GROUP
    assert tumour_area(read_imagescope(path)).area == 400


@pytest.mark.parametrize(
    ("name", "attributes", "group"),
    [
        ("Tumor", '<Attribute Name="Description" Value="x"/>', "Tumor"),
        ("", '<Attribute Name="Description" Id="0" Value="metastases"/>', "metastases"),
        ("", "", "Layer 1"),
    ],
)
def test_where_a_group_comes_from(tmp_path: Path, name: str, attributes: str, group: str) -> None:
    path = file_of(tmp_path, layer(region(SQUARE), name=name, attributes=attributes))
    (annotation,) = read_imagescope(path, {"layer 1": Role.TUMOUR})
    assert annotation.group == group


def test_an_ellipse_is_its_area(tmp_path: Path) -> None:
    path = file_of(tmp_path, layer(region([(10, 20), (110, 60)], Type="2")), mpp="")
    whole = read_imagescope_set(path)
    (ellipse,) = whole.annotations
    assert whole.mpp is None
    assert to_geometry(ellipse).area == pytest.approx(math.pi * 50 * 20, rel=1e-4)
    assert to_geometry(ellipse).bounds == pytest.approx((10, 20, 110, 60))
    write_imagescope(tmp_path / "b.xml", [ellipse])
    (written,) = ET.parse(tmp_path / "b.xml").iter("Region")  # noqa: S314  (written above)
    assert written.get("Type") == "2"
    assert [float(vertex.get("X", "nan")) for vertex in written.iter("Vertex")] == pytest.approx([10, 110])
    moved = Annotation(
        name="a",
        group="Tumor",
        role=Role.TUMOUR,
        kind="Polygon",
        vertices=ellipse.vertices * np.linspace(1, 2, 360)[:, None],
        attributes=ellipse.attributes,
    )
    write_imagescope(tmp_path / "b.xml", [moved])
    (back,) = read_imagescope(tmp_path / "b.xml")
    np.testing.assert_array_equal(back.vertices, moved.vertices)


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8).filter(
    lambda text: "\ufffe" not in text and "\uffff" not in text
)
positions = st.floats(-1e9, 1e9)


@st.composite
def drawings(draw: st.DrawFn) -> list[Annotation]:
    found = []
    for group in draw(st.lists(st.sampled_from(["Tumor", "metastases", "tissue"]), unique=True)):
        for kind in draw(st.lists(st.sampled_from(["Polygon", "Rectangle", "Measurement", "PointSet", "Dot"]))):
            is_hole = draw(st.booleans())
            size = {"Dot": (1, 1), "PointSet": (2, 6), "Rectangle": (3, 6)}.get(kind, (0, 6))
            points = draw(st.lists(st.tuples(positions, positions), min_size=size[0], max_size=size[1]))
            attributes = draw(st.dictionaries(names | st.sampled_from(["@Zoom", "@GeoShape"]), names, max_size=2))
            # what equals ImageScope's own default is not kept
            attributes = {
                key: value for key, value in attributes.items() if is_held(key) and (key, value) != ("@Zoom", "1")
            }
            role = GROUP_ROLES[group.casefold()]
            found.append(
                Annotation(
                    name=draw(names),
                    group=group if not is_hole else HOLE_GROUP if role is Role.TUMOUR else IGNORED_HOLE_GROUP,
                    role=role if not is_hole else Role.CUT_OUT if role is Role.TUMOUR else Role.IGNORE,
                    kind=kind,
                    vertices=np.array(points, dtype=np.float64).reshape(-1, 2),
                    attributes={**attributes, HOLE_OF: group} if is_hole else attributes,
                )
            )
    return found


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawings(), st.none() | st.floats(1e-3, 10))
def test_what_is_written_comes_back_exactly(tmp_path: Path, drawn: list[Annotation], mpp: float | None) -> None:
    path = tmp_path / "round.xml"
    write_imagescope(path, drawn, mpp=mpp)
    first = path.read_bytes()
    back = read_imagescope_set(path)
    assert back.mpp == mpp
    assert len(back.annotations) == len(drawn)
    for one, other in zip(drawn, back.annotations, strict=True):
        assert (one.name, one.group, one.role, one.kind) == (other.name, other.group, other.role, other.kind)
        assert one.attributes == other.attributes
        np.testing.assert_array_equal(one.vertices, other.vertices)
    write_imagescope(path, back.annotations, back.groups, mpp=back.mpp)
    assert path.read_bytes() == first


def test_groups_come_back(tmp_path: Path) -> None:
    groups = (
        Group(name="normal", colour=(1, 2, 3), attributes={"@Visible": "0", "Description": "not this"}),
        Group(name="metastases", colour=(255, 0, 255)),
    )
    write_imagescope(tmp_path / "a.xml", [], groups)
    assert read_imagescope_set(tmp_path / "a.xml").groups == groups


def test_what_is_written_has_lengths_and_areas(tmp_path: Path) -> None:
    square = Annotation(
        name="a", group="Tumor", role=Role.TUMOUR, kind="Rectangle", vertices=np.array([(3.0, 4.0), (13.0, 9.0)])
    )
    write_imagescope(tmp_path / "a.xml", [square], mpp=0.5)
    (written,) = ET.parse(tmp_path / "a.xml").iter("Region")  # noqa: S314  (written above)
    expected = {"Length": "30.0", "Area": "50.0", "LengthMicrons": "15.0", "AreaMicrons": "12.5", "Type": "1"}
    assert expected.items() <= written.attrib.items()
    assert len(list(written.iter("Vertex"))) == 4
    assert to_geometry(read_imagescope(tmp_path / "a.xml")[0]).equals(shapely.box(3, 4, 13, 9))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (layer(region([(0, 0)], Type="17")), "layer 'Tumor', region ''"),
        (layer(region(SQUARE), region([(0, 0), (1, math.nan)], Id="7")), "layer 'Tumor', region '7', vertex 1"),
        (
            layer("<Region><Vertices><Vertex X='1,234' Y='1'/></Vertices></Region>"),
            "layer 'Tumor', region '', vertex 0",
        ),
        ("<Annotation>", None),
        ("<!DOCTYPE a>", None),
    ],
)
def test_what_is_damaged_is_refused_with_its_place(tmp_path: Path, content: str, where: str | None) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(AnnotationFormatError) as caught:
        read_imagescope(path)
    assert str(path) in str(caught.value)
    assert caught.value.where == where


def test_entities_and_other_files_stay_out(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><Annotations Name='&x;'/>")
    with pytest.raises(AnnotationFormatError) as caught:
        read_imagescope(path)
    assert "root:" not in str(caught.value)
    path.write_text("<ASAP_Annotations/>")
    with pytest.raises(AnnotationFormatError, match="is not an ImageScope file"):
        read_imagescope(path)
    path.write_text("")
    with pytest.raises(EmptyFileError):
        read_imagescope(path)
    with pytest.raises(AnnotationNotFoundError):
        read_imagescope(tmp_path / "none.xml")


def test_an_unknown_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownGroupError, match="'Glomeruli' has no known meaning"):
        read_imagescope(file_of(tmp_path, layer(region(SQUARE), name="Glomeruli")))


def test_what_xml_cannot_hold_is_refused(tmp_path: Path) -> None:
    for attributes in ({"@two words": "x"}, {"\0": "x"}):
        one = Annotation(
            name="", group="Tumor", role=Role.TUMOUR, kind="Dot", vertices=np.zeros((1, 2)), attributes=attributes
        )
        with pytest.raises(ValueError, match="XML cannot hold"):
            write_imagescope(tmp_path / "a.xml", [one])
    assert not list(tmp_path.iterdir())
