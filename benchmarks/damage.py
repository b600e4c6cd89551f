"""What damage does: mutated slides, killed runs, and how long the checks of a large finished run take.

Mutants of small slides of many kinds are opened and read completely in child processes with a limit of time and memory.
Runs on a small synthetic cohort are killed at random moments, with all their processes, and resumed until they are
done; every file is compared with an undisturbed run. One finished slide is copied under many names, and the copies are
verified and resumed.

Run: python benchmarks/damage.py [--mutants N] [--kills N] [--copies N]; 0 leaves a part out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from mutants import damaged, draw_originals

from staging.cli import main as call
from staging.phantom import generate_cohort
from staging.runs.records import artefact_paths, heatmap_path, read_record, record_path, write_record
from wsi.cnn.checkpoint import Checkpoint, save_checkpoint
from wsi.cnn.network import Network
from wsi.errors import SlideError
from wsi.geometry import Window
from wsi.render import thumbnail
from wsi.slide import Slide

LIMIT_S, LIMIT_BYTES = 30, 4 * 2**30
MPP = 8.0
_Seen: TypeAlias = tuple[str, str, str]


def main() -> None:
    """Print the counts of each part as JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--mutants", type=int, default=4000, help="damaged slides")
    arguments.add_argument("--kills", type=int, default=40, help="killed runs")
    arguments.add_argument("--copies", type=int, default=1399, help="finished slides that are checked")
    arguments.add_argument("--keep", type=Path, help="folder for mutants that end badly")
    options = arguments.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    for part, count in (("mutants", options.mutants), ("kills", options.kills), ("copies", options.copies)):
        if count:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found = _PARTS[part](Path(folder), count, options.keep)
            print(
                json.dumps({part: count, "seconds": round(time.perf_counter() - start), **found}, indent=2), flush=True
            )


def read_mutants(folder: Path, count: int, keep: Path | None) -> dict[str, object]:
    """Read damaged slides and count how that ends, by kind of slide and by kind of damage."""
    originals = draw_originals(folder)
    sound = {kind: examine(path) for kind, path in originals.items()}
    contents = {kind: path.read_bytes() for kind, path in originals.items()}
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in originals}
    by_damage: dict[str, Counter[str]] = {}
    slowest = 0.0

    def work(lane: int) -> Iterator[tuple[str, str, str, float]]:
        with ExaminingProcess() as process:
            for original in originals.values():  # what is imported only once does not count for the slowest
                process.examine(original)
            for number in range(lane, count, lanes):
                kind = list(originals)[number % len(originals)]
                name, data = damaged(contents[kind], np.random.default_rng(number))
                path = folder / f"mutant{lane}{originals[kind].suffix}"
                path.write_bytes(data)
                start = time.perf_counter()
                outcome = process.examine(path)
                ended = judge(outcome, sound[kind])
                if keep is not None and ended in {"crash", "hang", "foreign exception"}:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{number}{path.suffix}")
                    print(number, kind, name, *outcome, file=sys.stderr)
                yield kind, name, ended, time.perf_counter() - start

    lanes = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(lanes) as pool:
        for part in pool.map(lambda lane: list(work(lane)), range(lanes)):
            for kind, name, ended, seconds in part:
                by_kind[kind][ended] += 1
                by_damage.setdefault(name, Counter())[ended] += 1
                slowest = max(slowest, seconds)
    total = sum(by_kind.values(), Counter[str]())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"all": total, "by kind": by_kind, "by damage": by_damage, "slowest_s": round(slowest, 2), "peak_MiB": peak}


def examine(path: Path) -> _Seen:
    """Open a slide, read level 0 window by window, and an overview.

    Returns:
        How it ended, a digest of the pixels, and the facts the file states (or the error).
    """
    try:
        with Slide.open(path) as slide:
            digest = hashlib.sha256()
            whole = Window.whole(slide.levels[0].shape)
            for _, window, _ in whole.cut((128, 128)):
                digest.update(slide.read_window(0, window).tobytes())
            digest.update(thumbnail(slide, max_px=100).array.tobytes())
            return "read", digest.hexdigest(), f"{slide.levels} {slide.mpp}"
    except SlideError as error:
        return ("refused" if str(path) in str(error) else "error without its file"), "", str(error)
    except Exception as error:  # noqa: BLE001  (whatever else is raised is what is looked for)
        return "foreign exception", "", repr(error)


def judge(found: _Seen, sound: _Seen) -> str:
    """Name the end of a mutant, given what the undamaged slide shows."""
    how, digest, facts = found
    if how != "read":
        return how
    if digest != sound[1]:
        return "read with other pixels"
    return "read as the original" if facts == sound[2] else "read with other levels or mpp"


class ExaminingProcess:
    """A child process that examines slides, replaced whenever it dies or takes too long."""

    def __enter__(self) -> Self:
        """Start the process."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()

    def examine(self, path: Path) -> _Seen:
        """Return what ``examine`` returns in the child; or "crash" or "hang"."""
        self._pipe.send(path)
        try:
            if self._pipe.poll(LIMIT_S):
                found: _Seen = self._pipe.recv()
                return found
            seen = "hang", "", f"nothing after {LIMIT_S} s"
        except EOFError:
            self._process.join()
            seen = "crash", "", f"exit code {self._process.exitcode}"
        self._end()
        self._start()
        return seen

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_examine_all, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _examine_all(pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore", UserWarning)  # of a pixel size that nobody can believe
    while True:
        pipe.send(examine(pipe.recv()))


def kill_runs(folder: Path, count: int, _keep: Path | None) -> dict[str, object]:
    """Kill runs at random moments, at most two times each, then let them end; compare every file."""
    generate_cohort(folder, patients=1, centres=(0,), seed=7, mpp=MPP)
    model = folder / "random.safetensors"
    save_checkpoint(model, Checkpoint(network=Network(seed=0), mpp=MPP))
    options = [str(folder / "images"), "--model", str(model), "--reference", str(folder / "stage_labels.csv")]
    start = time.perf_counter()
    first, _ = run(folder / "undisturbed", [*options, "--workers", "1"])
    whole_s = time.perf_counter() - start
    expected = digests(folder / "undisturbed")
    random = np.random.default_rng(0)
    killed, moments, ends, outputs = 0, list[float](), Counter[str](), Counter[str]()
    while killed < count:
        output = folder / "killed"
        workers = ["--workers", "2" if sum(outputs.values()) % 8 == 7 else "1"]
        for _ in range(int(random.integers(1, 3))):
            moment = random.uniform(0, whole_s)
            code, seconds = run(output, options + workers, kill_after=moment)
            if code == -signal.SIGKILL:
                killed += 1
                moments.append(seconds)
        code, _ = run(output, options + workers)
        ends[f"exit {code}"] += 1
        found = digests(output)
        outputs["equal" if found == expected else "unequal"] += 1
        for name in sorted(found.keys() ^ expected.keys() | {n for n in found if expected.get(n) != found[n]}):
            print(f"after kills at {moments[-2:]}: {name} differs", file=sys.stderr)
        print(f"{killed} of {count} kills, {outputs}, {ends}", file=sys.stderr, flush=True)
        shutil.rmtree(output)
    return {
        "undisturbed": f"exit {first}, {len(expected)} files, {whole_s:.1f} s",
        "killed": killed,
        "killed_after_s": [round(min(moments), 1), round(float(np.median(moments)), 1), round(max(moments), 1)],
        "resumed": ends,
        "outputs": outputs,
    }


def run(output: Path, options: list[str], *, kill_after: float | None = None) -> tuple[int, float]:
    """Call ``sentinode run``, and kill it with all its processes after some seconds; return exit code and seconds.

    It runs in a fork of this process, where all is imported, so that it is the work that is killed and not the start.
    """
    start = time.perf_counter()
    child = os.fork()
    os.setpgid(child, child)  # by both, as either may come first
    if child == 0:
        sys.argv = ["sentinode", "run", *options, "-o", str(output), "--device", "cpu"]
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            call()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        finally:
            os._exit(1)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if kill_after is not None and time.perf_counter() - start > kill_after:
            os.killpg(child, signal.SIGKILL)
            break
        time.sleep(0.01)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - start


def digests(output: Path) -> dict[str, str]:
    """Sha256 of every file of an output, hidden ones too, by its path; without the lock, which names a process."""
    files = (path for path in output.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_copies(folder: Path, count: int, _keep: Path | None) -> dict[str, object]:
    """Copy one finished slide under many names; time ``verify``, and ``run`` with nothing to do."""
    generate_cohort(folder, patients=1, centres=(0,), seed=7, mpp=MPP)
    slides, output = folder / "slides", folder / "output"
    slides.mkdir()
    shutil.copy(max((folder / "images").iterdir(), key=lambda path: path.stat().st_size), slides / f"{_name(0)}.tif")
    model = folder / "random.safetensors"
    save_checkpoint(model, Checkpoint(network=Network(seed=0), mpp=MPP))
    options = [str(slides), "--model", str(model)]
    run(output, options)
    copy_slide(slides, output, count)
    files = [path for path in output.rglob("*") if path.is_file()]
    found: dict[str, object] = {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.zarr")}
    resumed = ["run", *options, "-o", str(output), "--device", "cpu"]
    found["verify"] = timed("verify", str(output))
    found["resumed"] = timed(*resumed, "--verify")
    found["resumed, sizes only"] = timed(*resumed, "--no-verify")
    if before != {path: path.stat().st_mtime_ns for path in output.rglob("*.zarr")}:
        sys.exit("the resumed run made heatmaps again")
    return found


def timed(*arguments: str) -> dict[str, float]:
    """Call sentinode; return seconds of the clock, and of the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "staging", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - start, 1), "processor_s": round(processor, 1)}


def copy_slide(slides: Path, output: Path, count: int) -> None:
    """Give the one finished slide more names: hard links, and records of their own."""
    first = _name(0)
    made_from = json.loads(record_path(output, first).read_bytes())["made_from"]
    analysis = read_record(output, first, made_from, digests=True).analysis
    if analysis is None:
        sys.exit("the first slide is not done")
    for number in range(1, count):
        name = _name(number)
        os.link(slides / f"{first}.tif", slides / f"{name}.tif")
        shutil.copytree(heatmap_path(output, first), heatmap_path(output, name), copy_function=os.link)
        for source, target in zip(artefact_paths(output, first), artefact_paths(output, name), strict=True):
            os.link(source, target)
        write_record(output, replace(analysis, slide=name), made_from)


def _name(number: int) -> str:
    return f"patient_{number // 5:03}_node_{number % 5}"


_PARTS = {"mutants": read_mutants, "kills": kill_runs, "copies": check_copies}

if __name__ == "__main__":
    main()
