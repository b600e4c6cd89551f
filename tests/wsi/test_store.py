from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import ArtefactError, OutputExistsError, OutputInUseError, StorageError
from wsi.geometry import Frame
from wsi.heatmap_store import read_heatmap, write_heatmap
from wsi.lock import OutputLock
from wsi.raster import Heatmap
from wsi.store import (
    DONE,
    HIDDEN_BYTES,
    atomic_text,
    digest_of,
    json_text,
    provenance_of,
    publish,
    storage,
    sweep,
    sweep_beside,
    unfinished_name,
    verify,
)


def a_heatmap(rows: int = 40, columns: int = 30, seed: int = 0) -> Heatmap:
    rng = np.random.default_rng(seed)
    tissue = rng.random((rows, columns)) < 0.7
    array = np.where(tissue, rng.random((rows, columns)), 0).astype(np.float32)
    return Heatmap(
        frame=Frame(x=-3.5, y=2.25, downsample=32.5, shape=(rows, columns), mpp=0.243), array=array, tissue=tissue
    )


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 1100), columns=st.integers(1, 60))
def test_a_heatmap_survives_the_disk(rows: int, columns: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    heatmap = a_heatmap(rows, columns)
    path = tmp_path_factory.mktemp("heat") / "one.zarr"
    write_heatmap(path, heatmap, {"slide": "abc"})
    found = read_heatmap(path)
    assert found.frame == heatmap.frame
    np.testing.assert_array_equal(found.array, heatmap.array)
    np.testing.assert_array_equal(found.tissue, heatmap.tissue)
    assert provenance_of(path) == {"slide": "abc"}


def test_equal_heatmaps_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_heatmap(tmp_path / name, a_heatmap(), {"slide": "abc"})
    assert (tmp_path / "a" / DONE).read_bytes() == (tmp_path / "b" / DONE).read_bytes()


def test_a_damaged_or_shortened_artefact_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.zarr"
    write_heatmap(path, a_heatmap(), {})
    chunk = next(file for file in sorted(path.rglob("c/*/*")) if file.is_file())
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=DONE):
        read_heatmap(path)
    chunk.unlink()
    with pytest.raises(ArtefactError, match=DONE):
        verify(path)
    with pytest.raises(ArtefactError, match="not a complete heatmap"):
        read_heatmap(tmp_path / "nowhere.zarr")


def test_nothing_is_published_when_the_block_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with publish(tmp_path / "new", {}, kind="test") as work:
            (work / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_publishing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "one"
    for name in ("first", "second"):
        with publish(target, {"turn": name}, kind="test") as work:
            (work / name).write_text(name)
    assert sorted(path.name for path in target.iterdir()) == [DONE, "second"]
    assert provenance_of(target) == {"turn": "second"}
    verify(target)


@pytest.mark.parametrize("there", ["file", "folder", "link", "other kind"])
def test_what_is_not_its_own_is_never_replaced(tmp_path: Path, there: str) -> None:
    target = tmp_path / "slides"
    if there == "file":
        target.write_text("mine")
    elif there == "other kind":
        with publish(target, {}, kind="heatmap") as work:
            (work / "a.tif").write_text("mine")
    else:
        folder = target if there == "folder" else tmp_path / "far"
        folder.mkdir()
        (folder / "a.tif").write_text("mine")
        if there == "link":
            target.symlink_to(folder)
    before = sorted((path, path.is_symlink(), path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))

    def publishing() -> None:
        with publish(target, {}, kind="test") as work:
            (work / "b").write_text("b")

    with pytest.raises(OutputExistsError, match=f"{target}.*is not a test"):
        publishing()
    after = sorted((path, path.is_symlink(), path.is_file() and path.read_bytes()) for path in tmp_path.rglob("*"))
    assert after == before


@pytest.mark.parametrize("is_same", [True, False])
def test_a_writer_that_wakes_after_another_published_is_discarded(tmp_path: Path, *, is_same: bool) -> None:
    target = tmp_path / "one"

    def slow() -> None:
        with publish(target, {"slide": "a"}, kind="test") as work:
            (work / "half").write_text("half")
            with publish(target, {"slide": "a" if is_same else "b"}, kind="test") as other:
                (other / "whole").write_text("whole")

    if is_same:
        slow()
    else:
        with pytest.raises(OutputInUseError, match="published by another writer"):
            slow()
    assert sorted(path.name for path in target.iterdir()) == [DONE, "whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    verify(target)


def test_strangers_beside_the_files_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "one.zarr"
    write_heatmap(path, a_heatmap(), {})
    for stranger in (".DS_Store", "probability/Thumbs.db", "c/x"):
        (path / stranger).parent.mkdir(exist_ok=True)
        (path / stranger).write_bytes(b"x")
    verify(path)
    read_heatmap(path)


def test_sizes_alone_find_what_is_missing_or_shorter(tmp_path: Path) -> None:
    path = tmp_path / "one.zarr"
    write_heatmap(path, a_heatmap(), {})
    chunk = next(file for file in sorted(path.rglob("c/*/*")) if file.is_file())
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    verify(path, digests=False)
    for data in (good[:-1], good + b"x"):
        chunk.write_bytes(data)
        with pytest.raises(ArtefactError, match="another size"):
            verify(path, digests=False)
    chunk.unlink()
    with pytest.raises(ArtefactError, match="missing"):
        verify(path, digests=False)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"kind": "test", "provenance": {}, "files": {"../x": {"bytes": 1, "sha256": ""}}}',
        '{"kind": "test", "provenance": {}, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}',
        '{"kind": "test", "provenance": {}, "files": {"x": "abc"}}',
        '{"kind": 3, "provenance": {}, "files": {}}',
    ],
)
def test_a_malformed_record_is_no_artefact(tmp_path: Path, record: str) -> None:
    (tmp_path / DONE).write_text(record)
    assert provenance_of(tmp_path) is None
    with pytest.raises(ArtefactError, match="no readable"):
        verify(tmp_path)


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from wsi.store import publish
        with publish(Path({str(tmp_path)!r}) / "one", {{}}, kind="test") as work:
            (work / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert provenance_of(tmp_path / "one") is None
    (left,) = tmp_path.iterdir()
    assert left.match(".one.*.work")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    for error, reason in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("stale handle"), "stale handle"),
    ):
        with pytest.raises(StorageError, match=rf"table\.csv.*cannot be written: {reason}"), storage(target):
            raise error


def test_text_is_whole_or_absent(tmp_path: Path) -> None:
    for text in ("older", "ä\n"):
        atomic_text(tmp_path / "deep" / "er" / "a.txt", text)
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "ä\n".encode()
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        atomic_text(tmp_path / "file" / "below.txt", "x")


def test_digest_ignores_the_order_of_keys_only() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1, "b": [1, 2]}) != digest_of({"a": 1, "b": [2, 1]})


def test_a_second_run_is_refused_and_told_who_holds_the_output(tmp_path: Path) -> None:
    script = f"import time; from pathlib import Path; from wsi.lock import OutputLock\nwith OutputLock(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(OutputInUseError, match=f"process {other.pid}"), OutputLock(tmp_path):
                pass
        finally:
            other.kill()
    with OutputLock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    lock, victim = tmp_path / "run" / ".lock", tmp_path / "victim"
    lock.parent.mkdir()
    victim.write_text("precious")
    if kind == "link":
        lock.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(OutputExistsError, match=r"\.lock"), OutputLock(tmp_path / "run"):
        pass
    assert victim.read_text() == "precious"


def test_an_output_that_is_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with OutputLock(output) as lock:
        lock.check()
        output.rename(tmp_path / "away")
        with pytest.raises(StorageError, match="removed"):
            lock.check()
        output.mkdir()
        (output / ".lock").touch()
        with pytest.raises(StorageError, match="removed"):
            lock.check()


def test_a_lease_of_another_machine_counts_until_it_is_stale(tmp_path: Path) -> None:
    lease = tmp_path / ".lock"
    lease.write_text('{"host": "another", "pid": 1}')
    with pytest.raises(OutputInUseError, match="another"), OutputLock(tmp_path):
        pass
    long_ago = time.time() - 3600
    os.utime(lease, (long_ago, long_ago))
    with OutputLock(tmp_path):
        pass


def test_json_is_written_in_one_way() -> None:
    assert json_text({"b": 1, "a": ["é", None]}) == '{\n  "a": [\n    "é",\n    null\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": float("nan")})


def test_a_heatmap_is_an_ome_zarr_image(tmp_path: Path) -> None:
    """By the schema of OME-Zarr 0.5; a point of the slide is where its transformations say."""
    heatmap = a_heatmap()
    write_heatmap(tmp_path / "h.zarr", heatmap, {})
    group = json.loads((tmp_path / "h.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert (group["version"], [one["name"] for one in group["multiscales"]]) == ("0.5", ["probability", "tissue"])
    for image in group["multiscales"]:
        assert image["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")]
        (dataset,) = image["datasets"]
        array = json.loads((tmp_path / "h.zarr" / dataset["path"] / "zarr.json").read_text())
        assert array["dimension_names"] == ["y", "x"]
        scale, translation = dataset["coordinateTransformations"]
        x, y = heatmap.frame.centres(np.array(7), np.array(3))
        um = [
            7 * scale["scale"][0] + translation["translation"][0],
            3 * scale["scale"][1] + translation["translation"][1],
        ]
        assert um == pytest.approx([float(y) * 0.243, float(x) * 0.243])


@pytest.mark.filterwarnings("ignore:Object at DONE.json")  # what zarr says of any file that is not its own
def test_xarray_opens_a_heatmap(tmp_path: Path) -> None:
    import xarray  # noqa: PLC0415  (slow import)

    heatmap = a_heatmap()
    write_heatmap(tmp_path / "h.zarr", heatmap, {})
    with xarray.open_zarr(tmp_path / "h.zarr", consolidated=False) as opened:
        assert opened.probability.dims == opened.tissue.dims == ("y", "x")
        np.testing.assert_array_equal(opened.probability.values, heatmap.array)
        np.testing.assert_array_equal(opened.tissue.values == 1, heatmap.tissue)


def test_a_heatmap_without_a_resolution_has_axes_without_units(tmp_path: Path) -> None:
    known = a_heatmap()
    write_heatmap(tmp_path / "h.zarr", replace(known, frame=replace(known.frame, mpp=None)), {})
    group = json.loads((tmp_path / "h.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    for image in group["multiscales"]:
        assert image["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        assert scale == [known.frame.downsample] * 2


def test_a_heatmap_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Without OME-Zarr's metadata and without names of dimensions."""
    heatmap, path = a_heatmap(), tmp_path / "h.zarr"
    write_heatmap(tmp_path / "now.zarr", heatmap, {"slide": "s"})
    with publish(path, {"slide": "s"}, kind="heatmap") as work:
        shutil.copytree(tmp_path / "now.zarr", work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("DONE.json"))
        for file in work.rglob("zarr.json"):
            record = json.loads(file.read_text())
            record.pop("dimension_names", None)
            record["attributes"].pop("ome", None)
            file.write_text(json.dumps(record))
    read = read_heatmap(path)
    assert read.frame == heatmap.frame
    np.testing.assert_array_equal(read.array, heatmap.array)


def test_folders_above_an_artefact_are_made(tmp_path: Path) -> None:
    with publish(tmp_path / "deep" / "er" / "one", {}, kind="test") as work:
        (work / "a").write_text("a")
    verify(tmp_path / "deep" / "er" / "one")


def test_only_what_was_being_written_is_swept(tmp_path: Path) -> None:
    end = "0a0a0a0a-17-01234567"
    mine = (".bashrc.old", ".a.work", ".a.b.partial", f".a.{end}.partial.txt", ".a.17-0123.work", f"a.{end}.partial")
    left = (f".a.{end}.partial", f".b.{end}.partial", f".a.{end}.work", f".a.{end}.old")
    for name in (*mine, *left):
        (tmp_path / name).mkdir()
    sweep(tmp_path, lambda name: name == "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*mine, *left} - {left[1]})
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)


def test_what_a_process_left_of_an_output_is_swept_once_it_is_gone(tmp_path: Path) -> None:
    target = tmp_path / "a[1].tif"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        own = unfinished_name(target, "partial").name
        its = own.replace(f"-{os.getpid()}-", f"-{other.pid}-")
        host = own.split(".")[-2].split("-")[0]
        elsewhere = its.replace(host, "0a0a0a0a")
        of_another = its.replace("a[1].tif", "b.tif")
        for name in (own, its, elsewhere, of_another):
            (tmp_path / name).write_bytes(b"half")
        sweep_beside(target)
        assert (tmp_path / its).exists()
        other.communicate(b"\n")
    sweep_beside(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((own, elsewhere, of_another))
    assert len(own.encode()) <= len(target.name.encode()) + HIDDEN_BYTES
