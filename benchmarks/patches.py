"""Patches into a training loop and onto disk: from slides and stores, compared with OpenSlide in a DataLoader.

Patches per second that arrive in the training process (batches of 32, shuffled, two workers, the file cache warm), on
the fly and from each store; bytes per patch; the memory of a worker; then the processor time of writing patches.
Three tables: a slide cut into patches off the tile grid, patches around a few positions, as for lesions, and 1,200
patches that share no tile on a slide of 51,200 px, the tiles of the first one copied side by side. Methods take turns
in every round; a ratio is the median over the rounds of two times of one round. The bare decoding of the patches that
share no tile is on one core: nothing that decodes them with this library can be faster than that times the cores.

Run: python benchmarks/patches.py [--slide FILE] [--rounds N] [--size PX]; needs h5py (the extra export) and psutil.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from annotations.patches.batch import PatchBatch
from annotations.patches.exports import export_hdf5, export_images, export_webdataset
from annotations.patches.labels import LabelRule
from annotations.patches.sparse_store import finish_store, read_store, store_slide
from annotations.patches.table import COLUMNS, PatchTable
from annotations.patches.zarr_store import write_patches
from wsi.cnn.patch_loading import PatchItems, PatchStream
from wsi.geometry import Level, Window
from wsi.patches.reading import read_patches
from wsi.readers.turbo import find_turbo
from wsi.slide import Slide
from wsi.writing.bigtiff import new_bigtiff
from wsi.writing.convert import stored_tags
from wsi.writing.pyramid import level_tags
from wsi.writing.tile_stream import LevelTable

BATCH, WORKERS = 32, 2
LARGE_PX = 51_200
Corners = NDArray[np.int64]  # (n, 2): x, y in level-0 px
Pixels = NDArray[np.uint8]


# --- what users do: one patch at a time -----------------------------------------------------------------------------


class OpenSlidePatches(Dataset[torch.Tensor]):
    """read_region, convert, to a tensor: one patch a call, as CLAM's Whole_Slide_Bag_FP; a handle in each worker."""

    def __init__(self, path: Path, corners: Corners, size: int) -> None:
        super().__init__()
        self._path, self._corners, self._size = path, corners.tolist(), size
        self._slide: Any = None

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, index: int) -> torch.Tensor:
        self._slide = self._slide or openslide.OpenSlide(str(self._path))
        pixels = self._slide.read_region(tuple(self._corners[index]), 0, (self._size, self._size)).convert("RGB")
        return torch.from_numpy(np.array(pixels))


class PngPatches(Dataset[torch.Tensor]):
    """A folder of PNGs through Pillow, as ImageFolder does."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._files = sorted(folder.rglob("*.png"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Pillow.open(self._files[index]) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))


class Hdf5Patches(Dataset[torch.Tensor]):
    """The dataset imgs, as CLAM's Whole_Slide_Bag, but with the file kept open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._images: Any = None
        with h5py.File(path) as file:
            self._count = len(file["imgs"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._images is None:
            self._images = h5py.File(self._path)["imgs"]
        return torch.from_numpy(self._images[index])


class ZarrPatches(IterableDataset[torch.Tensor]):
    """Our Zarr store in random order of its chunks, eight patches each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __iter__(self) -> Iterator[torch.Tensor]:
        import zarr  # noqa: PLC0415  (slow import)

        images: Any = zarr.open_group(self._path, mode="r")["images"]
        info = get_worker_info()
        step, first = (info.num_workers, info.id) if info else (1, 0)
        for at in np.random.default_rng(0).permutation(-(-images.shape[0] // BATCH))[first::step].tolist():
            yield torch.from_numpy(images[at * BATCH : (at + 1) * BATCH])


class TarPatches(IterableDataset[torch.Tensor]):
    """A WebDataset shard, one after the other; workers take every other patch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        step, first = (info.num_workers, info.id) if info else (1, 0)
        number = 0
        for shard in sorted(self._path.glob("*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    if not member.name.endswith(".png"):
                        continue
                    number += 1
                    content = tar.extractfile(member)
                    if content is not None and number % step == first:
                        yield torch.from_numpy(np.array(Pillow.open(io.BytesIO(content.read())).convert("RGB")))


# --- the work -------------------------------------------------------------------------------------------------------


def whole_corners(side: int, size: int) -> Corners:
    """Cut the slide into patches, off the tile grid."""
    starts = np.arange(137, side - size, size)
    return np.stack(np.meshgrid(starts, starts), axis=-1).reshape(-1, 2)


def lesion_corners(side: int, size: int, *, lesions: int = 12, each: int = 40) -> Corners:
    """Put patches around a few positions: 1 mm deposits at 0.25 um/px."""
    rng = np.random.default_rng(3)
    centres = rng.integers(2000, side - 2000 - size, (lesions, 2))
    corners = centres[:, None] + rng.integers(-1000, 1000, (lesions, each, 2))
    return np.asarray(corners.reshape(-1, 2))


def lonely_corners(level: Level, size: int, *, count: int = 1200) -> Corners:
    """Put patches far apart: each within its own block of tiles, anywhere on the grid."""
    rng, tile = np.random.default_rng(4), level.tile_width
    block = tile * -(-(tile + size - 1) // tile)
    across = min(level.shape) // block
    blocks = rng.choice(across**2, min(count, across**2), replace=False)
    return np.stack(np.divmod(blocks, across), axis=1) * block + rng.integers(0, tile, (len(blocks), 2))


def enlarge(path: Path, target: Path, times: int) -> None:
    """Make a slide of ``times`` x ``times`` the size; every tile is stored, so that no cache takes two for one."""
    with Slide.open(path) as slide, new_bigtiff(target) as file:
        pages = []
        for level in slide.levels:
            stored = slide.stored_tiles(level.index)
            if stored is None:
                raise SystemExit(f"{path}: must be a tiled TIFF")
            wide, high, tile = times * level.width, times * level.height, (level.tile_width, level.tile_height)
            table = LevelTable.empty(width=wide, height=high, tile_width=tile[0], tile_height=tile[1])
            for index in range(table.rows * table.columns):
                row, column = divmod(index, table.columns)
                data = stored.read(row % stored.rows, column % stored.columns) or b""
                table.put(index, offset=file.append(data), count=len(data))
            pages.append((table, stored_tags(stored), slide.frame_of(level).pixel_um))
        file.write_directories(
            level_tags(table, tags, is_reduced=index > 0, mpp=mpp) for index, (table, tags, mpp) in enumerate(pages)
        )


def table_of_corners(slide: Slide, corners: Corners, size: int) -> PatchTable:
    """Make a table with nothing but positions."""
    count = len(corners)
    values: dict[str, Any] = {
        "slide": slide.name,
        "patient": slide.name,
        "centre": -1,
        "class": "normal",
        "kind": "normal",
        "lesion": -1,
        "tumour_fraction": 0.0,
        "x": corners[:, 0],
        "y": corners[:, 1],
        "level": 0,
        "mpp": slide.mpp or 0.25,
        "downsample": 1.0,
        "size_px": size,
        "split": "train",
    }
    columns: dict[str, NDArray[Any]] = {
        name: np.array(np.broadcast_to(values[name], (count,)), dtype=object if kind is str else kind)
        for name, kind in COLUMNS.items()
    }
    return PatchTable(columns=columns, rule=LabelRule(), files={slide.name: str(Path(slide.path).resolve())}, about={})


def passes(loader: Any) -> Callable[[], tuple[float, int]]:  # noqa: ANN401  (torch's loaders are generic)
    """Time one pass: seconds and patches; the pixels are used."""

    def one() -> tuple[float, int]:
        start, count = time.perf_counter(), 0
        for batch in loader:
            images = batch.images if isinstance(batch, PatchItems) else batch
            count += len(images)
            int(images[0, 0, 0, 0])
        return time.perf_counter() - start, count

    return one


def loader_of(dataset: Any, *, is_batched: bool) -> Any:  # noqa: ANN401  (torch's loaders are generic)
    """Make a DataLoader with two persistent workers."""
    shuffled = not isinstance(dataset, IterableDataset)
    return DataLoader(
        dataset,
        batch_size=None if is_batched else BATCH,
        shuffle=shuffled,
        num_workers=WORKERS,
        persistent_workers=True,
    )


def compare(
    title: str, works: dict[str, Callable[[], tuple[float, int]]], sizes: dict[str, float], rounds: int, base: str
) -> None:
    """Time all methods in turn; print patches per second, ratios to ``base`` and bytes per patch."""
    times: dict[str, list[float]] = {name: [] for name in works}
    count = {name: work()[1] for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(work()[0])
    print(f"\n{title}\n{'':34}{'patches/s':>10}{'to ' + base:>26}{'kB a patch':>12}")
    for name, taken in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(times[base], taken, strict=True))
        stored = f"{sizes[name] / 1e3:12.1f}" if name in sizes else f"{'-':>12}"
        print(f"{name:34}{count[name] / statistics.median(taken):10.0f}{ratio:26.2f}{stored}", flush=True)


def bare_decoding(path: Path, corners: Corners, size: int) -> Callable[[], tuple[float, int]]:
    """Decode on one thread, from memory, what each patch needs of each of its tiles, and nothing else."""
    turbo = find_turbo()
    if turbo is None:
        raise SystemExit("libjpeg-turbo 3 is needed")
    with Slide.open(path) as slide:
        tile = slide.levels[0].tile_width
        crops = [
            (slide.tile_bytes(0, *where) or b"", part)
            for x, y in corners.tolist()
            for where, _, part in Window(row=y, column=x, height=size, width=size).cut((tile, tile))
        ]

    def one() -> tuple[float, int]:
        start = time.perf_counter()
        for stream, part in crops:
            turbo.decode(stream, part, across=tile, unit=16)
        return time.perf_counter() - start, len(corners)

    return one


def loading(
    title: str, path: Path, corners: Corners, size: int, *, rounds: int, folder: Path, is_far_apart: bool = False
) -> None:
    """Compare everything that can deliver these patches to a training loop."""
    stored, sizes = stores(path, corners, size, folder)
    with Slide.open(path) as slide:
        positions = table_of_corners(slide, corners, size).positions()
    sparse = read_store(stored["sparse"]).positions(stored["sparse"])
    loaders = {
        "openslide in a DataLoader": loader_of(OpenSlidePatches(path, corners, size), is_batched=False),
        "folder of PNGs": loader_of(PngPatches(stored["png"]), is_batched=False),
        "HDF5 (CLAM)": loader_of(Hdf5Patches(stored["hdf5"]), is_batched=False),
        "WebDataset (PNG)": loader_of(TarPatches(stored["webdataset"]), is_batched=False),
        "Zarr": loader_of(ZarrPatches(stored["zarr"]), is_batched=True),
        "sentinode on the fly": loader_of(PatchStream(positions, batch=BATCH), is_batched=True),
        "sentinode from sparse slides": loader_of(PatchStream(sparse, batch=BATCH), is_batched=True),
    }
    works = {name: passes(loader) for name, loader in loaders.items()}
    works["sentinode on the fly, threads"] = passes(PatchStream(positions, batch=BATCH))
    if is_far_apart:
        works["(bare decoding, one core)"] = bare_decoding(path, corners, size)
    names = {"sparse": "sentinode from sparse slides", "png": "folder of PNGs", "hdf5": "HDF5 (CLAM)"}
    names |= {"webdataset": "WebDataset (PNG)", "zarr": "Zarr"}
    per_patch = {names[form]: total / len(corners) for form, total in sizes.items()}
    compare(f"{title}: {len(corners)} patches of {size} px", works, per_patch, rounds, "openslide in a DataLoader")


def stores(path: Path, corners: Corners, size: int, folder: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """Write the patches in every format, and return its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    with Slide.open(path) as slide:
        rows = table_of_corners(slide, corners, size)
        found = {name: folder / name for name in ("sparse", "png", "webdataset", "zarr")}
        finish_store(
            found["sparse"], rows, {slide.name: store_slide(found["sparse"], slide, rows, annotation_file=None)}
        )
        export_images(found["png"], slide, rows, quality=None)
        export_webdataset(found["webdataset"], slide, rows, quality=None)
        export_hdf5(folder / "hdf5", slide, rows)
        found["hdf5"] = folder / "hdf5" / f"{slide.name}.h5"
        write_patches(found["zarr"], [batch_of(slide, rows)])
    return found, {name: bytes_of(where) for name, where in found.items()}


def batch_of(slide: Slide, rows: PatchTable) -> PatchBatch:
    """Read all pixels into memory, for Zarr."""
    images = read_patches(slide, rows["x"], rows["y"], downsample=1.0, size_px=rows.size_px)
    return PatchBatch(
        slide=slide.name,
        patient=slide.name,
        centre=None,
        mpp=rows.mpp,
        images=images,
        targets=np.zeros(images.shape[:3], np.uint8),
        x=rows["x"],
        y=rows["y"],
        kinds=tuple(rows["kind"].tolist()),
    )


def bytes_of(where: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return where.stat().st_size if where.is_file() else sum(f.stat().st_size for f in where.rglob("*") if f.is_file())


# --- writing out ----------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], object]) -> float:
    """Measure user and system time of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def openslide_to_hdf5(path: Path, corners: Corners, size: int, target: Path) -> None:
    """Write every patch to a resizable dataset with one patch per chunk, keeping the file open."""
    target.parent.mkdir(parents=True, exist_ok=True)
    slide = openslide.OpenSlide(str(path))
    with h5py.File(target, "w") as file:
        shape = (0, size, size, 3)
        images = file.create_dataset("imgs", shape, np.uint8, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]))
        for number, corner in enumerate(corners.tolist()):
            pixels = np.asarray(slide.read_region(tuple(corner), 0, (size, size)).convert("RGB"))
            images.resize(number + 1, axis=0)
            images[number] = pixels
        file.create_dataset("coords", data=corners.astype(np.int32))


def extraction(title: str, path: Path, corners: Corners, size: int, *, rounds: int, folder: Path) -> None:
    """Compare processor time and bytes of the default store with OpenSlide to HDF5."""
    with Slide.open(path) as slide:
        rows = table_of_corners(slide, corners, size)
        ratios, ours, theirs = [], [], []
        for _ in range(rounds):
            shutil.rmtree(folder, ignore_errors=True)
            ours.append(cpu_seconds(lambda: store_slide(folder / "sparse", slide, rows, annotation_file=None)))
            theirs.append(cpu_seconds(lambda: openslide_to_hdf5(path, corners, size, folder / "clam.h5")))
            ratios.append(theirs[-1] / ours[-1])
    sizes = bytes_of(folder / "sparse"), bytes_of(folder / "clam.h5")
    print(f"\nWriting out, {title}: {len(corners)} patches of {size} px, processor seconds")
    print(f"openslide to HDF5    {statistics.median(theirs):8.3f} s  {sizes[1] / 1e6:8.1f} MB")
    print(f"sparse slides        {statistics.median(ours):8.3f} s  {sizes[0] / 1e6:8.1f} MB")
    print(f"ratios               {statistics.median(ratios):8.0f} x  {sizes[1] / sizes[0]:8.1f} x smaller", flush=True)


def memory(path: Path, corners: Corners, size: int) -> None:
    """Print the peak memory of a spawned worker (a fork would count this script's) with the default block."""
    with Slide.open(path) as slide:
        positions = table_of_corners(slide, corners, size).positions()
    stream = PatchStream(positions, batch=BATCH)
    loader = DataLoader(stream, None, num_workers=2, persistent_workers=True, multiprocessing_context="spawn")
    highest = 0
    for _ in range(3):
        for _ in loader:
            workers = psutil.Process().children()
            highest = max([highest, *(worker.memory_info().rss for worker in workers)])
    print(f"\nResident memory of a worker, blocks of 1,024 patches of {size} px: {highest / 2**20:.0f} MiB")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slide", type=Path, help="a square slide without missing tiles instead of a synthetic one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, help="side of a patch in px of level 0")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.slide or folder / "slide.tif"
        if options.slide is None:
            from read import draw  # noqa: PLC0415  (the script beside this one)

            draw(path, 20)
        with Slide.open(path) as slide:
            side = min(slide.frame.shape)
        large = folder / "large.tif"
        enlarge(path, large, max(1, LARGE_PX // side))
        tables = {
            "The whole slide": (path, whole_corners(side, options.size)),
            "Around lesions": (path, lesion_corners(side, options.size)),
            "Far apart": (large, lonely_corners(Slide.open(large).levels[0], options.size)),
        }
        stored, written = folder / "stores", folder / "written"
        for title, (of, corners) in tables.items():
            loading(title, of, corners, options.size, rounds=options.rounds, folder=stored, is_far_apart=of == large)
        for title, (of, corners) in tables.items():
            extraction(title, of, corners, options.size, rounds=options.rounds, folder=written)
        extraction("Around lesions", path, lesion_corners(side, 512), 512, rounds=options.rounds, folder=written)
        memory(path, whole_corners(side, options.size), options.size)


if __name__ == "__main__":
    main()
