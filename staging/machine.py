"""What this machine has for sentinode, what of it is used and why not the rest, and how fast it is."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np

from wsi.cores import usable_cores
from wsi.store import storage

_TILE_PX = 512
_FILE_BYTES = 64 << 20

# package: what it is for, and how it comes; None: it always comes
_PACKAGES: dict[str, tuple[str, str | None]] = {
    "openslide-bin": ("slides of vendors' own formats", None),
    "simplejpeg": ("JPEG tiles", None),
    "turbojpeg": ("parts of JPEG tiles", None),
    "imagecodecs": ("JPEG 2000, LZW and other tiles", None),
    "torch": ("networks", None),
    "obstore": ("slides behind s3://, gs://, az:// and https://", "cloud"),
    "onnxruntime": ("encoders as ONNX files", "onnx"),
    "h5py": ("patches as HDF5", "export"),
    "dask-jobqueue": ("clusters", "hpc"),
}


def examine(folder: Path, *, measure: bool = True) -> dict[str, Any]:
    """Look at the machine, and at the file system of a folder.

    Args:
        folder: an existing one, in which a file is written and removed again if ``measure``.
        measure: also time decoding, a network and the file system; a few seconds.

    Returns:
        ``system``, ``cores``, ``memory_gb``, ``disk``, ``packages``, ``gpus``, ``uses`` (what is used for what),
        ``notes`` (what is not used, and why) and, if measured, ``speeds`` with their units in the names.

    Raises:
        StorageError: the folder cannot be written.
    """
    from wsi.cnn.machine import describe_gpus  # noqa: PLC0415  (loads torch)

    packages = {name: _version(name) for name in _PACKAGES}
    torch_build, gpus, gpu_note = describe_gpus()
    crops = _crops()
    found: dict[str, Any] = {
        "system": {
            "sentinode": _version("sentinode"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "openslide": _openslide(),
            "torch": torch_build,
        },
        "cores": {"usable": usable_cores(), "machine": os.cpu_count() or 1},
        "memory_gb": _memory(),
        "disk": _disk(folder),
        "packages": packages,
        "gpus": gpus,
        "uses": {
            "networks": gpus[0]["name"] if gpus else f"{usable_cores()} cores of the CPU",
            "precision of heatmaps": "fp32",
            "JPEG tiles": "simplejpeg, on the CPU",
            "parts of JPEG tiles": "libjpeg-turbo 3, on the CPU" if crops else "whole tiles, cut",
        },
        "notes": _notes(packages, gpu_note, has_crops=crops),
    }
    return found | ({"speeds": _speeds(folder, has_gpu=bool(gpus))} if measure else {})


def _notes(packages: dict[str, str | None], gpu_note: str | None, *, has_crops: bool) -> list[str]:
    notes = [] if gpu_note is None else [gpu_note]
    if not has_crops:
        notes.append("no libjpeg-turbo 3: patches that cross tiles are read at about half the speed")
    for name, (purpose, extra) in _PACKAGES.items():
        if packages[name] is None and extra is not None:
            notes.append(f"{name} is not installed, so no {purpose}: pip install 'sentinode[{extra}]'")
    granted, there = usable_cores(), os.cpu_count() or 1
    if granted < there:
        notes.append(f"this process may use {granted} of the machine's {there} cores")
    return notes


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _openslide() -> str:
    import openslide  # noqa: PLC0415  (loads a library)

    return str(openslide.__library_version__)


def _crops() -> bool:
    from wsi.readers.turbo import find_turbo  # noqa: PLC0415  (loads a library)

    return find_turbo() is not None


def _memory() -> dict[str, float | None]:
    """Memory of the machine, and what a batch system or container grants; GB."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not on every system
        return {"machine": None, "granted": None}
    granted = None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) / 1e9 < total:
            granted = round(int(text) / 1e9, 1)
    return {"machine": round(total, 1), "granted": granted}


def _disk(folder: Path) -> dict[str, Any]:
    with storage(folder):
        usage = shutil.disk_usage(folder)
    return {
        "folder": str(folder.resolve()),
        "file_system": _file_system(folder.resolve()),
        "free_gb": round(usage.free / 1e9, 1),
        "size_gb": round(usage.total / 1e9, 1),
    }


def _file_system(folder: Path) -> str | None:
    """The kind of the file system, as ext4 or nfs4; None where the system does not say."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    kinds = {}
    for line in mounts:
        _, point, kind, *_ = line.split(" ")
        kinds[Path(point.encode().decode("unicode_escape"))] = kind
    return next((kinds[one] for one in (folder, *folder.parents) if one in kinds), None)


def _speeds(folder: Path, *, has_gpu: bool) -> dict[str, float]:
    from wsi.cnn.machine import network_speed  # noqa: PLC0415  (loads torch)

    speeds = _decoding() | _writing(folder) | {"network_cpu_megapixels_per_s": network_speed("cpu")}
    return speeds | ({"network_gpu_megapixels_per_s": network_speed("cuda")} if has_gpu else {})


def _decoding() -> dict[str, float]:
    """Tiles and a quarter of each per second on one core, in megapixels shown."""
    import simplejpeg  # noqa: PLC0415  (slow import)

    from wsi.cnn.machine import calls_per_second  # noqa: PLC0415  (loads torch)
    from wsi.geometry import Window  # noqa: PLC0415
    from wsi.readers.turbo import find_turbo  # noqa: PLC0415

    stream = simplejpeg.encode_jpeg(_tissue(), quality=80)
    speeds = {"jpeg_megapixels_per_s": calls_per_second(lambda: simplejpeg.decode_jpeg(stream)) * _TILE_PX**2 / 1e6}
    turbo = find_turbo()
    if turbo is not None:
        half = _TILE_PX // 2
        window = Window(column=64, row=64, width=half, height=half)
        part = calls_per_second(lambda: turbo.decode(stream, window, across=_TILE_PX, unit=16))
        speeds["part_of_jpeg_megapixels_per_s"] = part * half**2 / 1e6
    return {name: round(value, 1) for name, value in speeds.items()}


def _tissue() -> Any:  # noqa: ANN401  (an array)
    """A tile about as hard to encode as tissue: noise of several grains in its colours."""
    rng = np.random.default_rng(0)
    tile = np.zeros((_TILE_PX, _TILE_PX, 3))
    for grain in (4, 8, 32):
        coarse = rng.normal(size=(_TILE_PX // grain, _TILE_PX // grain, 3))
        tile += np.kron(coarse, np.ones((grain, grain, 1)))
    return np.ascontiguousarray(np.clip(tile * 20 + (190, 140, 180), 0, 255).astype(np.uint8))


def _writing(folder: Path) -> dict[str, float]:
    """Megabytes per second to and from the file system; what is read is first taken out of the system's cache."""
    block = np.random.default_rng(0).bytes(1 << 20)
    with storage(folder):
        handle, name = mkstemp(prefix=".sentinode-doctor-", dir=folder)  # a name that was nobody's
        path = Path(name)
        try:
            begun = time.perf_counter()
            with os.fdopen(handle, "wb") as file:
                for _ in range(_FILE_BYTES // len(block)):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
                written = time.perf_counter() - begun
                if sys.platform == "linux":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            with path.open("rb") as file:
                while file.read(len(block)):
                    pass
            read = time.perf_counter() - begun
        finally:
            path.unlink(missing_ok=True)
    megabytes = _FILE_BYTES / 1e6
    return {"write_mb_per_s": round(megabytes / written, 1), "read_mb_per_s": round(megabytes / read, 1)}
