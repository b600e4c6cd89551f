from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staging.cohorts.camelyon import (
    StageTable,
    find_slides,
    list_slides,
    read_label_table,
    read_stage_table,
    write_stage_table,
)
from staging.cohorts.errata import ANNOTATED_NEGATIVES, EXCLUDED
from staging.cohorts.names import centre_of
from staging.cohorts.skipped import skipped_files, skipped_json, skipped_table, skipped_text
from staging.errors import (
    ConflictError,
    DuplicateSlideError,
    MissingPatientError,
    NoSlidesError,
    PackedSlidesError,
    TableError,
    UnknownLabelError,
)
from staging.lesions.labels import SlideLabel
from staging.scores.patients import score_kappa
from staging.stages.pn import PatientStage

REAL = "tables/camelyon17_stage_labels.csv"


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def touch(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_the_real_table(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    found = read_stage_table(real_data(REAL))
    assert len(found.stages) == 100
    assert len(found.labels) == 500
    assert score_kappa(found, read_stage_table(real_data(REAL), submission=True)).kappa == 1.0
    write_stage_table(tmp_path / "stages.csv", found.stages, found.labels)
    assert (tmp_path / "stages.csv").read_text() == real_data(REAL).read_text().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "text",
    [
        "patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\n",
        "patient,stage\r\npatient_000.zip,pN0\r\npatient_000_node_0.tif,negative\r\n",
        "\ufeffPatient, Stage\n\n patient_000.ZIP , PN0 \n Patient_000_node_0 ,Negative\n\n",
        "patient,stage\rpatient_000.zip,pn0\rpatient_000_node_0.TIF,NEGATIVE",
        '"patient","stage",\n"patient_000.zip","pN0",,\n"patient_000_node_0.tif","negative",\n',
    ],
)
def test_forms_of_one_table(table: Callable[[str], Path], text: str) -> None:
    found = read_stage_table(table(text))
    assert found.stages == {"patient_000": PatientStage.PN0}
    assert found.labels == {"patient_000_node_0": SlideLabel.NEGATIVE}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty.*patient,stage"),
        ("patient_000.zip,pN0\n", "line 1.*header patient,stage"),
        ("patient;stage\npatient_000.zip,pN0\n", "patient;stage"),
        ("patient,stage\npatient_000.zip\n", "line 2"),
        ("patient,stage\n,pN0\n", "line 2"),
        ("patient,stage\npatient_000.zip,pN0,pN1\n", "line 2"),
        (b"patient,stage\n\xff\xfe,pN0\n", "UTF-8"),
        ('patient,stage\n"patient_000.zip,pN0\n', "is not a CSV"),
    ],
)
def test_unreadable_tables(table: Callable[[str | bytes], Path], text: str | bytes, match: str) -> None:
    path = table(text)
    with pytest.raises(TableError, match=match) as caught:
        read_stage_table(path)
    assert str(path) in str(caught.value)


def test_missing_table_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        read_stage_table(tmp_path / "none.csv")
    with pytest.raises(TableError, match="cannot be read"):
        read_stage_table(tmp_path)


@pytest.mark.parametrize(
    ("row", "known"),
    [
        ("patient_001.zip,pN3", "pN0\\(i\\+\\)"),
        ("patient_001.zip,", "pN1mi"),
        ("patient_001_node_0.tif,tumor", "negative, itc, micro, macro"),
    ],
)
def test_unknown_labels_name_line_and_known_ones(table: Callable[[str], Path], row: str, known: str) -> None:
    with pytest.raises(UnknownLabelError, match=f"line 4.*{known}"):
        read_stage_table(table(f"patient,stage\npatient_000.zip,pN0\n\n{row}\n"))


def test_duplicates(table: Callable[[str], Path]) -> None:
    path = table("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN1\nPATIENT_000.zip,pN2\n")
    assert read_stage_table(path, submission=True).stages["patient_000"] is PatientStage.PN2
    with pytest.raises(ConflictError, match="lines 2 and 4"):
        read_stage_table(path)
    same = table("patient,stage\npatient_000.zip,pN0\npatient_000.zip,PN0\n")
    assert read_stage_table(same).stages == {"patient_000": PatientStage.PN0}


def test_label_tables(table: Callable[[str], Path]) -> None:
    expected = {"patient_000_node_0": SlideLabel.ITC, "CMU-1": SlideLabel.MACRO}
    two = "slide,label\npatient_000_node_0.tif,ITC\nCMU-1.svs,macro\n"
    more = "Slide,Label,largest_um,lesions\npatient_000_node_0,itc,12.5,1\nCMU-1,macro,2500,3\n"
    organisers = "patient,stage\npatient_000.zip,pN0(i+)\npatient_000_node_0.tif,itc\nCMU-1.svs,macro\n"
    for text in (two, more, organisers):
        assert read_label_table(table(text)) == expected
    with pytest.raises(UnknownLabelError, match="line 3"):
        read_label_table(table("slide,label\na,itc\nb,failed\n"))
    with pytest.raises(ConflictError, match="lines 2 and 3"):
        read_label_table(table("slide,label\na.tif,itc\na,micro\n"))
    with pytest.raises(TableError, match="slide,label or patient,stage"):
        read_label_table(table("name,class\na,itc\n"))
    with pytest.raises(TableError, match="no row for a slide"):
        read_label_table(table("patient,stage\npatient_000.zip,pN0\n"))


def test_written_rows_are_ordered_by_number_and_node(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stages.csv"
    labels = {
        "CMU-1": SlideLabel.MACRO,
        "patient_010_node_1": SlideLabel.ITC,
        "patient_010_node_0.svs": SlideLabel.NEGATIVE,
        "patient_002_node_0": SlideLabel.MICRO,
    }
    write_stage_table(path, {"patient_010": PatientStage.PN0_I_PLUS, "patient_100": PatientStage.PN2}, labels)
    assert path.read_text().splitlines() == [
        "patient,stage",
        "patient_002_node_0.tif,micro",
        "patient_010.zip,pN0(i+)",
        "patient_010_node_0.tif,negative",
        "patient_010_node_1.tif,itc",
        "patient_100.zip,pN2",
        "CMU-1,macro",
    ]
    assert read_stage_table(path).labels["CMU-1"] is SlideLabel.MACRO
    assert [entry.name for entry in path.parent.iterdir()] == ["stages.csv"]
    write_stage_table(path, {"S21-7": PatientStage.PN1}, {})
    assert read_stage_table(path).stages == {"S21-7": PatientStage.PN1}


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 199).map("patient_{:03}".format), st.sampled_from(PatientStage), min_size=1),
    st.dictionaries(
        st.tuples(st.integers(0, 199), st.integers(0, 4)).map(lambda at: f"patient_{at[0]:03}_node_{at[1]}"),
        st.sampled_from(SlideLabel),
    ),
)
def test_tables_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, stages: dict[str, PatientStage], labels: dict[str, SlideLabel]
) -> None:
    path = tmp_path_factory.mktemp("tables") / "stages.csv"
    write_stage_table(path, stages, labels)
    found = read_stage_table(path)
    assert found.stages == stages
    assert found.labels == labels


def test_score_ignores_extra_patients_and_slide_rows(table: Callable[[str], Path]) -> None:
    reference = read_stage_table(table("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\n"))
    text = "patient,stage\npatient_001.zip,pN2\npatient_000.zip,pN0\npatient_007.zip,pN1\npatient_000_node_0,macro\n"
    result = score_kappa(reference, read_stage_table(table(text), submission=True), resamples=10)
    assert result.kappa == 1.0
    assert result.patients == 2
    assert result.ignored == ("patient_007",)
    assert result.stages == ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")


def test_a_missing_patient_is_named(table: Callable[[str], Path]) -> None:
    reference = StageTable(stages={"patient_000": PatientStage.PN0, "patient_001": PatientStage.PN1})
    path = table("patient,stage\npatient_000.zip,pN0\n")
    with pytest.raises(MissingPatientError, match="no stage for patient_001") as caught:
        score_kappa(reference, read_stage_table(path, submission=True))
    assert caught.value.path == str(path)
    bare = read_stage_table(table("patient,stage\npatient_000.zip,pN0\npatient_001,pN1\n"), submission=True)
    with pytest.raises(MissingPatientError, match=r"patient_001\.zip: only rows that end in \.zip"):
        score_kappa(reference, bare)
    with pytest.raises(TableError, match="no row for a patient"):
        score_kappa(StageTable(), bare)


def test_centres() -> None:
    assert [centre_of(patient) for patient in (0, 19, 20, 40, 60, 80, 99, 100, 119, 199)] == [
        0, 0, 1, 2, 3, 4, 4, 0, 0, 4,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="200"):
        centre_of(200)


@pytest.mark.parametrize("top", ["training/center_0/patient_000", "images", ".", "training/center_1"])
def test_layouts(tmp_path: Path, top: str) -> None:
    touch(tmp_path, f"{top}/patient_000_node_1.tif", f"{top}/patient_000_node_0.TIF")
    touch(
        tmp_path,
        "stage_labels.csv",
        "lesion_annotations.zip",
        "annotations/patient_000_node_0.xml",
        "masks/patient_000_node_0_mask.tif",
        "images_aside/patient_000_node_0_Mask.tif",
        "background_tissue/patient_000_node_0.tif",
        ".hidden/patient_000_node_0.tif",
        "._patient_000_node_0.tif",
        "overlay.png",
    )
    found = find_slides(tmp_path)
    assert [slide.name for slide in found] == ["patient_000_node_0", "patient_000_node_1"]
    assert [(slide.patient, slide.node) for slide in found] == [("patient_000", 0), ("patient_000", 1)]
    assert found[0].path == tmp_path / top / "patient_000_node_0.TIF"


def test_what_lies_beside_heatmaps(tmp_path: Path) -> None:
    touch(tmp_path, "a.zarr/DONE.json", "._a.zarr", "notes.txt", "c.xml/d.txt", "e.xml")
    assert {one.path.name for one in skipped_files(tmp_path, suffixes={".zarr"})} == {
        "._a.zarr",
        "notes.txt",
        "c.xml",
        "e.xml",
    }
    assert {one.path.name: one.reason for one in skipped_files(tmp_path, suffixes={".xml"}, names={"e"})} == {
        "._a.zarr": "hidden",
        "a.zarr": "of unknown suffix",
        "c.xml": "folder with the name of a file",
        "notes.txt": "of unknown suffix",
    }


def test_the_data_of_a_mirax_slide_are_part_of_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0001.dat", "b/c.txt")
    listing = list_slides(tmp_path)
    assert [slide.name for slide in listing.slides] == ["a"]
    assert [one.path.name for one in listing.skipped] == ["c.txt"]


def test_every_kind_of_slide_is_found(tmp_path: Path) -> None:
    suffixes = ["tif", "tiff", "svs", "ndpi", "MRXS", "scn", "bif", "dcm"]
    files = [f"s{index}.{suffix}" for index, suffix in enumerate(suffixes)]
    assert len(find_slides(touch(tmp_path, *files))) == 8
    assert find_slides(tmp_path)[0].patient is None


def test_photographs_count_only_alone_or_when_named(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/b.PNG", "mixed/a.svs", "mixed/b.jpeg")
    assert [slide.name for slide in find_slides(tmp_path / "photos")] == ["a", "b"]
    assert [slide.name for slide in find_slides(tmp_path / "mixed")] == ["a"]
    assert [slide.name for slide in find_slides([tmp_path / "mixed/b.jpeg"])] == ["b"]


def test_files_and_folders_together_count_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "more/b.svs", "odd.xyz")
    found = find_slides([tmp_path / "a.svs", tmp_path, str(tmp_path / "odd.xyz")])
    assert [slide.name for slide in found] == ["a", "b", "odd"]


def test_what_is_passed_over_is_named_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "deep/.b.tif", "._a.tif", "notes.txt", "a_mask.tif", "masks/a.tif", ".git/c.tif")
    touch(tmp_path, "over.png", "scripts.zip", "heat.zarr/zarr.json", "empty.tif/x.csv", "full.svs/d.svs")
    touch(tmp_path, "e.mrxs", "e/Data0001.dat")
    listing = list_slides([tmp_path])
    assert [slide.name for slide in listing.slides] == ["a", "d", "e"]
    assert {str(one.path.relative_to(tmp_path)): one.reason for one in listing.skipped} == {
        ".git": "hidden",
        "._a.tif": "hidden",
        "deep/.b.tif": "hidden",
        "a_mask.tif": "mask or annotations",
        "empty.tif": "folder with the name of a slide",
        "empty.tif/x.csv": "of unknown suffix",
        "heat.zarr": "Zarr folder",
        "masks": "folder of masks or annotations",
        "notes.txt": "of unknown suffix",
        "over.png": "photograph beside slides",
        "scripts.zip": "archive",
    }
    assert skipped_text(listing.skipped).startswith("skipped: 1 Zarr folder (heat.zarr); 1 archive (scripts.zip); ")
    assert "3 hidden (._a.tif, .git, .b.tif)" in skipped_text(listing.skipped)
    assert skipped_json(listing.skipped)["hidden"] == {"count": 3, "names": "._a.tif, .git, .b.tif"}
    assert "notes.txt,of unknown suffix" in skipped_table(listing.skipped)


def test_files_that_belong_to_no_slide_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "A.xml", "b.XML", "typo.xml", ".a.xml", "a.txt")
    skipped = skipped_files(tmp_path, suffixes={".xml"}, names={"a", "b"})
    assert {one.path.name: one.reason for one in skipped} == {
        ".a.xml": "hidden",
        "a.txt": "of unknown suffix",
        "typo.xml": "of no slide here",
    }
    assert skipped_files(tmp_path / "none", suffixes={".xml"}, names=()) == []


def test_what_is_named_itself_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", ".b.tif", "odd.xyz")
    assert list_slides([tmp_path, tmp_path / ".b.tif", tmp_path / "odd.xyz"]).skipped == ()
    assert skipped_text(()) == ""


def test_many_names_are_cut(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", *(f"note_{number:02}.txt" for number in range(30)))
    text = skipped_text(list_slides(tmp_path).skipped)
    assert text.startswith("skipped: 30 of unknown suffix (note_00.txt, note_01.txt")
    assert text.endswith("and 22 more)")


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.svs", "cohort/b.svs")
    (tmp_path / "cohort/linked").symlink_to(tmp_path / "store")
    (tmp_path / "cohort/again").symlink_to(tmp_path / "cohort")
    assert [slide.name for slide in find_slides(tmp_path / "cohort")] == ["a", "b"]


def test_packed_slides_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "patient_000.zip", "patient_001.zip")
    with pytest.raises(PackedSlidesError, match=r"patient_000\.zip, patient_001\.zip.*unpack"):
        find_slides(tmp_path)
    touch(tmp_path, "patient_000/patient_000_node_0.tif")
    with pytest.raises(PackedSlidesError, match=r"packed in patient_001\.zip"):
        find_slides(tmp_path)
    touch(tmp_path, "patient_001_node_0.tif", "scripts.zip")
    assert len(find_slides(tmp_path)) == 2
    with pytest.raises(PackedSlidesError):
        find_slides(tmp_path / "patient_000.zip")


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(NoSlidesError, match=r"contains no slides.*\.svs"):
        find_slides(tmp_path)
    with pytest.raises(NoSlidesError, match="contains no slides"):
        find_slides(touch(tmp_path, "notes.txt", "masks/a.tif"))
    with pytest.raises(NoSlidesError, match="does not exist"):
        find_slides(tmp_path / "typo")
    with pytest.raises(NoSlidesError, match="no slides were named"):
        find_slides([])


def test_two_slides_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "center_0/a.tif", "center_1/A.svs")
    with pytest.raises(DuplicateSlideError, match=r"A\.svs.*same name as .*a\.tif|a\.tif.*same name as .*A\.svs"):
        find_slides(tmp_path)


def test_the_files_of_a_dicom_series_are_one_slide(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        (tmp_path / name).write_bytes(real_data(f"slides/{name}").read_bytes())
    (tmp_path / "other.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "stump.dcm").write_bytes(b"nothing")
    assert [slide.name for slide in find_slides([tmp_path])] == ["boxes_0", "other", "stump"]
    assert len(find_slides([tmp_path / "boxes_0.dcm", tmp_path / "boxes_1.dcm"])) == 2


def test_annotated_slides_that_are_called_negative_are_known(real_data: Callable[[str], Path]) -> None:
    labels = read_label_table(real_data("tables/camelyon17_stage_labels.csv"))
    annotated = real_data("tables/camelyon17_annotated_slides.txt").read_text().split()
    contradictory = {name.removesuffix(".tif") for name in annotated} & {
        name for name, label in labels.items() if label is SlideLabel.NEGATIVE
    }
    assert set(ANNOTATED_NEGATIVES) == contradictory
    assert set(EXCLUDED) >= contradictory


def test_a_url_is_no_folder_of_slides() -> None:
    with pytest.raises(NoSlidesError, match="a URL was named: cohorts are read from disk"):
        list_slides(["https:/server/x.tif"])
