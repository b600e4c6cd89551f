"""The patch table: back from disk as it was, and splits that no patient stands on both sides of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotations.errors import PatchStoreError, SamplingError
from annotations.patches.batch import KINDS
from annotations.patches.labels import LabelRule
from annotations.patches.splits import Split, k_fold, leave_centre_out, split_by_patient
from annotations.patches.table import COLUMNS, PatchTable, join_tables, read_patch_table, write_patch_table


def made_up(count: int = 20, *, slides: tuple[str, ...] = ("p1_é", "p2_b"), rule: str = "centre") -> PatchTable:
    rng = np.random.default_rng(count)
    names = rng.choice(slides, count)
    columns: dict[str, Any] = {
        "slide": names,
        "patient": [name[:2] for name in names],
        "centre": rng.integers(-1, 5, count),
        "class": rng.choice(["tumour", "normal", "unknown"], count),
        "kind": rng.choice(KINDS, count),
        "lesion": rng.integers(-1, 9, count),
        "tumour_fraction": rng.uniform(0, 1, count),
        "x": rng.uniform(-10, 1e5, count),
        "y": rng.uniform(-10, 1e5, count),
        "level": rng.integers(0, 4, count),
        "mpp": np.full(count, 0.5),
        "downsample": np.full(count, 0.5 / 0.243),
        "size_px": np.full(count, 256),
        "split": np.full(count, "train"),
    }
    return PatchTable(
        columns={
            name: np.array(columns[name], dtype=object if kind is str else kind) for name, kind in COLUMNS.items()
        },
        rule=LabelRule.parse(rule),
        files={name: f"slides/{name}.tif" for name in slides},
        about={"recipe": {"seed": 3, "share": 0.1}},
    )


def test_a_table_comes_back(tmp_path: Path) -> None:
    table = made_up(rule="area:0.3")
    write_patch_table(tmp_path / "t.parquet", table)
    found = read_patch_table(tmp_path / "t.parquet")
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], table[name])
        assert found[name].dtype == table[name].dtype
    assert (found.rule, found.files, found.about) == (table.rule, table.files, table.about)
    assert (found.size_px, found.mpp, len(found)) == (256, 0.5, 20)
    write_patch_table(tmp_path / "again.parquet", found)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "t.parquet").read_bytes()
    write_patch_table(tmp_path / "none.parquet", table.rows(np.zeros(20, bool)))
    assert len(read_patch_table(tmp_path / "none.parquet")) == 0


def test_what_every_parquet_reader_sees(tmp_path: Path) -> None:
    from pyarrow import parquet  # noqa: PLC0415

    write_patch_table(tmp_path / "t.parquet", made_up())
    schema = parquet.read_schema(tmp_path / "t.parquet")
    assert schema.names == list(COLUMNS)
    assert [str(schema.field(name).type) for name in ("slide", "x", "level")] == ["string", "double", "int32"]
    assert b'"rule": "centre"' in schema.metadata[b"sentinode"]


def test_places_lead_to_the_slides(tmp_path: Path) -> None:
    table = made_up()
    positions = table.positions(tmp_path)
    for number in range(len(table)):
        assert positions.slides[positions.slide[number]] == str(tmp_path / "slides" / f"{table['slide'][number]}.tif")
    assert set(table.labels[table["class"] == "tumour"]) == {1}
    assert table.counts("class", "split")["tumour/train"] == np.count_nonzero(table["class"] == "tumour")


def test_tables_are_joined() -> None:
    one, other = made_up(5), made_up(7, slides=("p3_c",))
    joined = join_tables([one, other])
    assert joined["x"].tolist() == [*one["x"], *other["x"]]
    assert set(joined.files) == {"p1_é", "p2_b", "p3_c"}
    with pytest.raises(PatchStoreError, match="one rule"):
        join_tables([one, made_up(3, rule="any")])
    moved = PatchTable(columns=one.columns, rule=one.rule, files=dict.fromkeys(one.files, "x.tif"), about={})
    with pytest.raises(PatchStoreError, match="has two files"):
        join_tables([one, moved])


@pytest.mark.parametrize("damage", ["none", "empty", "cut", "foreign", "kind"])
def test_damaged_tables_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "t.parquet"
    table = made_up()
    if damage == "foreign":
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        parquet.write_table(pa.table({"x": [1, 2]}), path)
    elif damage == "kind":
        table["kind"][0] = "guess"
        write_patch_table(path, table)
    elif damage != "none":
        write_patch_table(path, table)
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-50])
    with pytest.raises(PatchStoreError, match=r"t\.parquet"):
        read_patch_table(path)


@pytest.mark.parametrize("text", ["any", "centre", "area:0.5"])
def test_rules_are_texts(text: str) -> None:
    assert str(LabelRule.parse(text.upper())) == text


@pytest.mark.parametrize("text", ["", "area", "area:0", "area:1.5", "area:x", "centre:1", "middle"])
def test_odd_rules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        LabelRule.parse(text)


patients = st.lists(st.integers(0, 12).map(lambda number: f"patient_{number:03d}"), min_size=1, max_size=60)


def sides(names: NDArray[Any], split: NDArray[Any]) -> dict[str, set[str]]:
    return {patient: set(split[names == patient].tolist()) for patient in set(names.tolist())}


@settings(max_examples=100, deadline=None)
@given(names=patients, shares=st.sampled_from([(0.8, 0.2), (0.7, 0.15, 0.15), (0.5, 0.5)]), seed=st.integers(0, 99))
def test_no_patient_on_two_sides(names: list[str], shares: tuple[float, ...], seed: int) -> None:
    array = np.array(names, dtype=object)
    tumour = np.random.default_rng(seed).random(len(names)) < 0.4
    named = dict(zip(("train", "validation", "test") if len(shares) == 3 else ("train", "test"), shares, strict=True))
    try:
        split = split_by_patient(array, named, seed=seed, has_tumour=tumour)
    except SamplingError:
        assert min(shares) * len(set(names)) < 1  # a split would be empty
        return
    assert set(split.tolist()) == set(named)
    found = sides(array, split)
    assert all(len(one) == 1 for one in found.values())
    # Those with tumour are shared out first, then the others so that all are: each is off by less than one patient.
    for group in (set(array[tumour].tolist()), set(names)):
        for name, share in named.items():
            assert abs(sum(found[patient] == {name} for patient in group) - share * len(group)) < 1
    assert (split == split_by_patient(array, named, seed=seed, has_tumour=tumour)).all()


@settings(max_examples=100, deadline=None)
@given(names=patients, folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_folds_are_even_and_apart(names: list[str], folds: int, seed: int) -> None:
    array = np.array(names, dtype=object)
    tumour = np.random.default_rng(seed).random(len(names)) < 0.4
    if len(set(names)) < folds:
        with pytest.raises(SamplingError, match="cannot fill"):
            k_fold(array, folds, seed=seed)
        return
    split = k_fold(array, folds, seed=seed, has_tumour=tumour)
    found = sides(array, split)
    assert all(len(one) == 1 for one in found.values())
    assert set(split.tolist()) == {f"fold-{number}" for number in range(folds)}
    sizes = [sum(one == {f"fold-{number}"} for one in found.values()) for number in range(folds)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(names=patients, held_out=st.integers(0, 4))
def test_a_centre_is_left_out(names: list[str], held_out: int) -> None:
    array = np.array(names, dtype=object)
    centres = np.array([int(name[-3:]) % 5 for name in names])
    if set(centres.tolist()) <= {held_out} or held_out not in centres:
        with pytest.raises(SamplingError, match=f"centre {held_out}"):
            leave_centre_out(array, centres, held_out)
        return
    split = leave_centre_out(array, centres, held_out)
    np.testing.assert_array_equal(split == "test", centres == held_out)


def test_centres_that_do_not_tell_patients_apart_are_refused() -> None:
    names = np.array(["a", "b", "b"], dtype=object)
    with pytest.raises(SamplingError, match="b has slides from centre 1 and from another"):
        leave_centre_out(names, np.array([0, 0, 1]), 1)
    with pytest.raises(SamplingError, match="centre of b is unknown"):
        leave_centre_out(names, np.array([0, -1, 1]), 1)


@pytest.mark.parametrize("text", ["patient:0.7,0.15,0.15", "patient:0.8,0.2", "centre:1", "folds:2"])
def test_splits_are_texts(text: str) -> None:
    names = np.array([f"p{number}" for number in range(10)], dtype=object)
    split = Split.parse(text).of(names, np.arange(10) % 2, np.arange(10) % 3 == 0, seed=1)
    assert len(set(split.tolist())) == len(text.split(",")) + (":" in text and "," not in text)


@pytest.mark.parametrize(
    "text", ["", "patient", "patient:0.5", "patient:0.5,0.6", "patient:1.2,-0.2", "folds:1", "centre:x"]
)
def test_odd_splits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Split.parse(text)


@pytest.mark.parametrize("shares", [{}, {"train": 1.5, "test": -0.5}, {"train": 1.0, "test": 0.0}, {"train": 0.9}])
def test_shares_are_positive_and_add_up_to_1(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_patient(np.array(["a", "b"]), shares, seed=0)


def test_no_patch_is_of_no_centre() -> None:
    with pytest.raises(SamplingError, match="no patch is from centre 1"):
        leave_centre_out(np.array([], str), np.array([], int), 1)
