from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import ArtefactError, OutputInUseError, StorageError
from wsi.geometry import Frame
from wsi.heatmap_store import read_heatmap, write_heatmap
from wsi.lock import OutputLock
from wsi.raster import Heatmap
from wsi.store import DONE, atomic_text, digest_of, provenance_of, publish, storage, sweep, verify


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
        with publish(tmp_path / "new", {}) as work:
            (work / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_publishing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "one"
    for name in ("first", "second"):
        with publish(target, {"turn": name}) as work:
            (work / name).write_text(name)
    assert sorted(path.name for path in target.iterdir()) == [DONE, "second"]
    assert provenance_of(target) == {"turn": "second"}
    verify(target)


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from wsi.store import publish
        with publish(Path({str(tmp_path)!r}) / "one", {{}}) as work:
            (work / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert provenance_of(tmp_path / "one") is None
    assert [path.name for path in tmp_path.iterdir()] == [".one.work"]
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    with pytest.raises(StorageError, match=r"table\.csv.*No space left"), storage(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_is_whole_or_absent(tmp_path: Path) -> None:
    atomic_text(tmp_path / "deep" / "a.txt", "ä\n")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "ä\n".encode()
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


def test_a_lease_of_another_machine_counts_until_it_is_stale(tmp_path: Path) -> None:
    lease = tmp_path / ".lock"
    lease.write_text('{"host": "another", "pid": 1}')
    with pytest.raises(OutputInUseError, match="another"), OutputLock(tmp_path):
        pass
    long_ago = time.time() - 3600
    os.utime(lease, (long_ago, long_ago))
    with OutputLock(tmp_path):
        pass
