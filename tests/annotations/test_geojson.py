"""GeoJSON in QuPath's manner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, HOLE_GROUP, HOLE_OF, Annotation, Group, Role
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError, UnknownGroupError
from annotations.files.geojson import PART_OF, Feature, _points, read_geojson, read_geojson_set, write_geojson
from annotations.files.geojson_features import features_of
from annotations.painting import rasterize
from annotations.polygons import to_geometry, tumour_area
from wsi.geometry import Frame

HOLED = shapely.Polygon(
    [(0, 0), (20, 0), (20, 20), (0, 20)], [[(5, 5), (5, 10), (10, 10), (10, 5)], [(12, 12), (15, 12), (15, 15)]]
)


def file_of(folder: Path, content: Any) -> Path:
    path = folder / "drawn.geojson"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


SQUARE = [[0.0, 0.0], [8.0, 0.0], [8.0, 8.0], [0.0, 8.0], [0.0, 0.0]]


def test_real_files_read(real_data: Callable[[str], Path]) -> None:
    named = real_data("annotations/geojson/dlup_qupath05.geojson")
    with pytest.raises(UnknownGroupError, match="'UT' has no known meaning"):
        read_geojson(named)
    annotations = read_geojson(named, {"UT": Role.TUMOUR, "I": Role.TUMOUR})
    assert [annotation.group for annotation in annotations] == ["UT", "I", "I"]
    assert [len(annotation.vertices) for annotation in annotations] == [163, 115, 118]

    holed = real_data("annotations/geojson/histoqc_holed.geojson")
    with pytest.raises(UnknownGroupError, match="Unclassified"):
        read_geojson(holed)
    outer, hole = read_geojson(holed, {"unclassified": Role.TUMOUR})
    assert (outer.role, hole.role, len(outer.vertices), len(hole.vertices)) == (Role.TUMOUR, Role.CUT_OUT, 4, 240)

    many = real_data("annotations/geojson/qupath_polygon.geojson")
    content = json.loads(many.read_text())
    expected = shapely.geometry.shape(content)
    found = read_geojson(many, {"Unclassified": Role.TUMOUR})
    assert len(found) == sum(len(part) for part in content["coordinates"])
    assert tumour_area(found).area == pytest.approx(expected.area, rel=1e-6)


parts = st.builds(
    lambda x, y, width, height: shapely.box(x, y, x + width, y + height),
    *[st.integers(-50, 1000).map(lambda value: value / 8)] * 2,
    *[st.integers(1, 400).map(lambda value: value / 8)] * 2,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(parts, st.text(max_size=8), st.sampled_from(["Tumor", "metastases", "normal", "tissue"])), max_size=4
    )
)
def test_what_is_written_comes_back(tmp_path: Path, drawn: list[tuple[shapely.Polygon, str, str]]) -> None:
    path = tmp_path / "round.geojson"
    features = [Feature(geometry=one, name=name, classification=group) for one, name, group in drawn]
    write_geojson(path, features)
    first = path.read_bytes()
    back = read_geojson(path)
    assert [(found.name, found.group, found.role) for found in back] == [
        (name, group, GROUP_ROLES[group.lower()]) for _, name, group in drawn
    ]
    for found, (one, _, _) in zip(back, drawn, strict=True):
        assert to_geometry(found).equals(one)
    write_geojson(path, features)
    assert path.read_bytes() == first


def test_written_features_are_what_qupath_reads(tmp_path: Path) -> None:
    write_geojson(
        tmp_path / "a.geojson",
        [
            Feature(geometry=HOLED, name="lesion 1", classification="metastases", measurements={"area um2": 3}),
            Feature(geometry=shapely.Point(1, 2), name="here", classification="mitosis"),
        ],
    )
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    first, second = content["features"]
    assert first["properties"] == {
        "objectType": "annotation",
        "name": "lesion 1",
        "classification": {"name": "metastases", "color": [255, 0, 0]},
        "measurements": {"area um2": 3.0},
    }
    assert shapely.geometry.shape(first["geometry"]).equals(HOLED)
    assert second["properties"]["classification"]["name"] == "mitosis"
    write_geojson(tmp_path / "none.geojson", [])
    assert read_geojson(tmp_path / "none.geojson") == ()


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    for broken in (
        Feature(geometry=shapely.Polygon(), name="a", classification="Tumor"),
        Feature(geometry=HOLED, name="a", classification="Tumor", measurements={"a": float("nan")}),
    ):
        with pytest.raises(ValueError, match=r"empty|JSON compliant"):
            write_geojson(tmp_path / "a.geojson", [broken])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", ["Tumor", "normal", "tissue", "Ignore*"])
def test_holes_are_holes_whatever_the_group(tmp_path: Path, group: str) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, [Feature(geometry=HOLED, name="a", classification=group)])
    annotations = read_geojson(path)
    if group == "Tumor":
        assert [annotation.group for annotation in annotations] == [group, HOLE_GROUP, HOLE_GROUP]
        area = tumour_area(annotations)
    else:
        (annotation,) = annotations
        area = to_geometry(annotation)
    assert shapely.equals(area, HOLED)


def test_a_hole_of_tissue_does_not_cut_tumour(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    square = shapely.box(4, 4, 11, 11)
    write_geojson(
        path,
        [
            Feature(geometry=HOLED, name="a", classification="tissue"),
            Feature(geometry=square, name="b", classification="Tumor"),
        ],
    )
    frame = Frame(x=0, y=0, downsample=1, shape=(20, 20), mpp=None)
    assert rasterize(read_geojson(path), frame).array.sum() == square.area


def test_multi_polygons_points_and_lines(tmp_path: Path) -> None:
    shapes = [
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [[[x + 20, y, 0] for x, y in SQUARE]]]},
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]},
        {"type": "LineString", "coordinates": [[1, 2], [3, 4]]},
        {"type": "GeometryCollection", "geometries": [polygon(SQUARE)]},
    ]
    found = read_geojson(file_of(tmp_path, [feature(shape, classification={"name": "Tumor"}) for shape in shapes]))
    assert [annotation.kind for annotation in found] == ["Polygon"] * 2 + ["Dot", "PointSet", "Measurement", "Polygon"]
    np.testing.assert_array_equal(found[1].vertices, np.add(SQUARE[:-1], (20, 0)))


@pytest.mark.parametrize(
    ("properties", "group"),
    [
        ({"classification": {"name": "TUMOR"}, "name": "x"}, "TUMOR"),
        ({"classification": {"names": ["Tumor"]}}, "Tumor"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"name": "Tumor"}, "Tumor"),
        ({"name": "by hand"}, "Unclassified"),
        ({"classification": None}, "Unclassified"),
    ],
)
def test_where_a_group_comes_from(tmp_path: Path, properties: dict[str, Any], group: str) -> None:
    path = file_of(tmp_path, feature(polygon(SQUARE), **properties))
    (annotation,) = read_geojson(path, {"Unclassified": Role.TUMOUR})
    assert (annotation.group, annotation.role) == (group, Role.TUMOUR)


def drawn(points: Any, kind: str = "Polygon", **fields: Any) -> Annotation:
    vertices = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Annotation(
        **{"name": "a", "group": "Tumor", "role": Role.TUMOUR, "kind": kind, "vertices": vertices, **fields}
    )


def test_what_qupath_says_is_kept_and_written_again(tmp_path: Path) -> None:
    properties = {
        "objectType": "annotation",
        "name": "by hand",
        "color": [1, 2, 3],
        "classification": {"name": "Tumor", "color": [200, 0, 0]},
        "isLocked": True,
        "measurements": {"Area µm^2": 2.5},
        "metadata": {"who": "3"},
        "note": "3",
    }
    holed = {"type": "MultiPolygon", "coordinates": json.loads(shapely.to_geojson(HOLED_PAIR))["coordinates"]}
    content = {"type": "Feature", "id": "6423a977", "geometry": holed, "properties": properties}
    whole = read_geojson_set(file_of(tmp_path, content))
    assert whole.groups == (Group(name="Tumor", colour=(200, 0, 0)),)
    assert [one.group for one in whole.annotations] == ["Tumor", HOLE_GROUP, HOLE_GROUP, "Tumor"]
    first = whole.annotations[0]
    assert (first.colour, first.attributes["isLocked"], first.attributes["note"]) == ((1, 2, 3), "true", '"3"')
    write_geojson(tmp_path / "b.geojson", features_of(whole.annotations, whole.groups))
    (back,) = json.loads((tmp_path / "b.geojson").read_text())["features"]
    assert (back["id"], back["properties"]) == ("6423a977", properties)
    assert shapely.equals(shapely.geometry.shape(back["geometry"]), HOLED_PAIR)


HOLED_PAIR = shapely.MultiPolygon([HOLED, shapely.box(30, 30, 40, 40)])


@pytest.mark.parametrize(
    ("classification", "colour"),
    [
        ({"name": "Tumor", "color": [7, 8, 9]}, (7, 8, 9)),
        ({"name": "Tumor", "colorRGB": -3670016}, (200, 0, 0)),
        ({"name": "Tumor", "color": [7, 8, 999]}, None),
        ({"name": "Tumor", "colorRGB": True}, None),
        ({"name": "Tumor"}, None),
    ],
)
def test_colours_of_any_version(tmp_path: Path, classification: dict[str, Any], colour: object) -> None:
    path = file_of(tmp_path, feature(polygon(SQUARE), classification=classification))
    assert read_geojson_set(path).groups == (Group(name="Tumor", colour=colour),)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(max_size=4).filter(lambda name: name not in ("name", "id", "color")),
        st.text(max_size=6)
        | st.sampled_from(['"3"', '"\\"3\\""', "3", "3.0", "1e5", "null", "NaN", "[1]", '"x"', '{"a":1}']),
        max_size=3,
    )
)
def test_attributes_of_any_kind_come_back(tmp_path: Path, attributes: dict[str, str]) -> None:
    write_geojson(tmp_path / "a.geojson", features_of([drawn(SQUARE[:-1], attributes=attributes)]))
    assert read_geojson(tmp_path / "a.geojson")[0].attributes == attributes


def test_a_hole_joins_the_outline_that_contains_it(tmp_path: Path) -> None:
    outer, far = shapely.box(0, 0, 20, 20), shapely.box(100, 0, 120, 20)
    hole, astray = shapely.box(5, 5, 8, 8), shapely.box(15, 15, 30, 18)
    annotations = [
        *(drawn(shapely.get_coordinates(one)[:-1]) for one in (outer, far)),
        *(
            drawn(shapely.get_coordinates(one)[:-1], group=HOLE_GROUP, role=Role.CUT_OUT, attributes={HOLE_OF: "Tumor"})
            for one in (hole, astray)
        ),
    ]
    write_geojson(tmp_path / "a.geojson", features_of(annotations))
    shapes = [
        shapely.geometry.shape(one["geometry"]) for one in json.loads((tmp_path / "a.geojson").read_text())["features"]
    ]
    assert [one.area for one in shapes] == [400 - 9, 400, 45]
    assert tumour_area(read_geojson(tmp_path / "a.geojson")).equals(tumour_area(annotations))


def test_what_crosses_itself_is_written_as_its_area() -> None:
    bow_tie = drawn([(0, 0), (10, 10), (10, 0), (0, 10)])
    (one,) = features_of([bow_tie])
    assert one.geometry.is_valid
    assert one.geometry.area == 50
    spline = drawn([(0, 0), (100, 0), (100, 100), (0, 100)], kind="Spline")
    (one,) = features_of([spline])
    assert one.geometry.equals(to_geometry(spline))


def test_what_has_no_area_becomes_a_point_or_a_line() -> None:
    kinds = [("Polygon", 1), ("Polygon", 2), ("Dot", 1), ("PointSet", 2), ("Measurement", 2), ("None", 3), ("Dot", 0)]
    found = features_of([drawn([(n, n * n) for n in range(count)], kind=kind) for kind, count in kinds])
    shapes = ["Point", "LineString", "Point", "MultiPoint", "LineString", "LineString"]
    assert [one.geometry.geom_type for one in found] == shapes


def test_parts_of_several_kinds_stay_together(tmp_path: Path) -> None:
    shape = {"type": "GeometryCollection", "geometries": [polygon(SQUARE), {"type": "Point", "coordinates": [1, 2]}]}
    path = file_of(tmp_path, feature(shape, classification={"name": "Tumor"}))
    annotations = read_geojson(path)
    assert [one.attributes for one in annotations] == [{PART_OF: "0"}] * 2
    (one,) = features_of(annotations)
    assert one.geometry.geom_type == "GeometryCollection"


def test_an_empty_file_has_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(EmptyFileError):
        read_geojson(file_of(tmp_path, b" "))


def test_a_limit_is_about_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path, [feature(polygon(SQUARE), name="Tumor")])
    monkeypatch.setattr("annotations.files.geojson_stream._MOST_BYTES", 10)
    with pytest.raises(AnnotationFormatError, match=r"GiB of memory \(split it, .* at most 10 bytes are read"):
        read_geojson(path)
    monkeypatch.undo()
    monkeypatch.setattr("annotations.files.json_text.MOST_CHARACTERS", 40)
    monkeypatch.setattr("annotations.files.json_text._CHUNK", 8)
    with pytest.raises(AnnotationFormatError, match=r"line 1: one object has more than 40 characters, .* memory"):
        read_geojson(path)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_fault_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("annotations.files.json_text._CHUNK", chunk)
    with pytest.raises(AnnotationFormatError, match="line 3: is not JSON: Expecting ',' delimiter"):
        read_geojson(file_of(tmp_path, b'[\n{"type": "Feature", "geometry": null}\n{"type": "Feature"' + b" " * 99))


def test_what_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    measurements: list[Any] = [{"a": float("nan"), "b": 2.5}, {"c": float("inf"), "d": {"e": [float("-inf"), 1]}}]
    measurements += [[{"name": "f", "value": float("nan")}, {"name": "g", "value": 1}]]
    features = [feature(polygon(SQUARE), name="Tumor", measurements=one) for one in measurements]
    whole = read_geojson_set(file_of(tmp_path, features))
    assert [one.attributes["measurements"] for one in whole.annotations] == [
        '{"b": 2.5}',
        '{"d": {"e": [null, 1]}}',
        '[{"name": "g", "value": 1}]',
    ]
    assert whole.warnings == ("left out 3 measurements without a finite value: features 0 ('a'), 1 ('c'), 2 ('f')",)


def test_a_feature_without_a_geometry_is_left_out_and_named(tmp_path: Path) -> None:
    nothing = [{"type": "Feature", "geometry": None}, feature(polygon(), name="Tumor")]
    whole = read_geojson_set(file_of(tmp_path, [nothing[0], feature(polygon(SQUARE), name="Tumor"), *nothing * 5]))
    assert len(whole.annotations) == 1
    assert whole.warnings == ("left out 11 features without a geometry: features 0, 2, 3, 4, 5, 6, 7, 8 and 3 more",)
    (tmp_path / "b").mkdir()
    one = read_geojson_set(file_of(tmp_path / "b", nothing[0]))
    assert one.warnings == ("left out 1 feature without a geometry: feature 0",)


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("qp_measure_nan", "left out 1 measurement without a finite value: feature 0 ('a')"),
        ("qp_null_geometry", "left out 1 feature without a geometry: feature 1"),
    ],
)
def test_what_users_sent(real_data: Callable[[str], Path], name: str, warning: str) -> None:
    whole = read_geojson_set(real_data(f"reports/{name}.geojson"))
    assert tumour_area(whole.annotations).area == 10_000
    assert whole.warnings == (warning,)


points = st.lists(
    st.lists(st.integers() | st.floats() | st.booleans() | st.text(max_size=2) | st.none(), max_size=3)
    | st.lists(st.floats(-1e10, 1e10) | st.integers(-9, 9), min_size=2, max_size=3),
    max_size=4,
)


@given(points)
def test_positions_taken_at_once_are_those_taken_one_by_one(drawn: list[Any]) -> None:
    def outcome() -> Any:
        try:
            return _points(Path("a"), "b", drawn).tolist()
        except AnnotationFormatError as error:
            return str(error)

    at_once = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotations.files.geojson._vertices", lambda _: None)
        assert outcome() == at_once


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  ",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"type": "Point", "coordinates": [NaN, 1]}',
        b'{"type": "Point", "coordinates": [1e999, 1]}',
        b'{"type": "Point", "coordinates": [1' + b"0" * 6000 + b", 1]}",
        b"3",
        {"type": "Topology"},
        {"type": "FeatureCollection"},
        [3],
        [{"type": "Feature"}],
        [{"type": "Feature", "geometry": 3}],
        {"type": "FeatureCollection", "features": 3},
        {"features": []},
        b'{"type": "FeatureCollection", "features": []} x',
        b'{"type": "FeatureCollection", "features": [{}',
        b'{"type": "FeatureCollection", "features": [{} {}]}',
        b'{"type": "FeatureCollection", "features": [] "a": 1}',
        b"{3: 4}",
        b'{"type": "FeatureCollection", "name": "never ends',
        feature({"type": "Blob", "coordinates": []}),
        feature(polygon([[1.0]])),
        feature({"type": "Polygon", "coordinates": [[["1", "2"]]]}),
        feature({"type": "Polygon", "coordinates": [[[True, False]]]}),
        feature({"type": "Polygon", "coordinates": 3}),
        feature({"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]}),
    ],
)
def test_what_is_no_geojson_is_refused(tmp_path: Path, content: Any) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(AnnotationFormatError) as caught:
        read_geojson(path, {"Unclassified": Role.TUMOUR})
    assert str(path) in str(caught.value)


def test_a_missing_file_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(AnnotationNotFoundError):
        read_geojson(tmp_path / "none.geojson")


@pytest.mark.parametrize("properties", [{"name": "\ud800"}, {"note": "x\udfff"}, {"\udc00": "a"}])
def test_half_a_character_is_refused_where_it_stands(tmp_path: Path, properties: dict[str, Any]) -> None:
    whole = feature(polygon(SQUARE), classification={"name": "Tumor"}, name="\U0001f600")
    half = feature(polygon(SQUARE), classification={"name": "Tumor"}, **properties)
    with pytest.raises(AnnotationFormatError, match=r"feature 1.*half of a character"):
        read_geojson(file_of(tmp_path, {"type": "FeatureCollection", "features": [whole, half]}))
