"""Reading a slide: ours compared with OpenSlide, other readers and bare decoding of the same tiles in memory.

Aligned 512 px tiles and 256 px patches off the grid, at random and in planned order, and a pass over the whole level;
on one thread, two threads and two processes. Every reader's pixels are compared with OpenSlide's first. Readers take
turns in every round; a ratio is the median over the rounds of two times of one round. Then the time and memory for
opening a slide of 100,000 x 200,000 px, and the import times.

Run: python benchmarks/read.py [--slide FILE] [--rounds N]; readers that are not installed are reported and left out.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import local

import numpy as np
import psutil
import simplejpeg
from numpy.typing import NDArray

from wsi.geometry import Frame, Region, Window, tile_order
from wsi.readers.tiff import CACHE_BYTES
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

Pixels = NDArray[np.uint8]
Works = dict[str, Callable[[], object]]
Box = tuple[int, int, int, int]  # x, y, width, height
Read = Callable[[Box], Pixels]
TILE = 512


# --- readers: a function that opens a slide and gives a function that reads a box of level 0 -------------------------


def sentinode(path: str) -> Read:
    """Ours."""
    slide = Slide.open(path)
    return lambda box: slide.read_window(0, Window(row=box[1], column=box[0], height=box[3], width=box[2]))


def openslide(path: str) -> Read:
    """OpenSlide, without the conversion to RGB."""
    slide = importlib.import_module("openslide").OpenSlide(path)
    return lambda box: np.asarray(slide.read_region(box[:2], 0, box[2:]))[..., :3]


def tifffile_by_hand(path: str) -> Read:
    """The tifffile package's decoder, called for one tile: aligned tiles only."""
    page = importlib.import_module("tifffile").TiffFile(path).pages[0]
    across, handle = -(-page.imagewidth // TILE), page.parent.filehandle

    def read(box: Box) -> Pixels:
        index = box[1] // TILE * across + box[0] // TILE
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index])
        return np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0][0])

    return read


def tifffile_zarr(path: str) -> Read:
    """The tifffile package's store read through zarr."""
    store = importlib.import_module("tifffile").imread(path, aszarr=True, level=0)
    array = importlib.import_module("zarr").open(store, mode="r")
    return lambda box: np.asarray(array[box[1] : box[1] + box[3], box[0] : box[0] + box[2]])


def tiffslide(path: str) -> Read:
    """The tiffslide package."""
    slide = importlib.import_module("tiffslide").TiffSlide(path)
    return lambda box: np.asarray(slide.read_region(box[:2], 0, box[2:], as_array=True))


def cucim(path: str) -> Read:
    """NVIDIA's cuCIM on the CPU."""
    slide = importlib.import_module("cucim.clara").CuImage(path)
    return lambda box: np.asarray(slide.read_region(box[:2], box[2:], level=0))


def large_image(path: str) -> Read:
    """large_image's TIFF source."""
    # by default its cache would hold the whole slide; 64 MiB, like ours
    portion = max(1, psutil.virtual_memory().total // CACHE_BYTES)
    importlib.import_module("large_image").config.setConfig("cache_backend", "python")
    importlib.import_module("large_image").config.setConfig("cache_python_memory_portion", portion)
    slide = importlib.import_module("large_image_source_tiff").open(path)

    def read(box: Box) -> Pixels:
        region = dict(zip(("left", "top", "width", "height"), box, strict=True))
        return np.asarray(slide.getRegion(region=region, format="numpy")[0])[..., :3]

    return read


def rasterio(path: str) -> Read:
    """GDAL through rasterio."""
    module = importlib.import_module("rasterio")
    module.Env(GDAL_CACHEMAX=CACHE_BYTES // 2**20).__enter__()  # by default it would hold the whole slide
    windows = importlib.import_module("rasterio.windows")
    slide = module.open(path)
    return lambda box: np.moveaxis(slide.read(window=windows.Window(*box)), 0, 2)


def pyvips(path: str) -> Read:
    """The TIFF loader of libvips with random access."""
    module = importlib.import_module("pyvips")
    region = module.Region.new(module.Image.tiffload(path, page=0, access="random"))
    return lambda box: np.frombuffer(region.fetch(*box), np.uint8).reshape(box[3], box[2], 3)


READERS: dict[str, tuple[str, Callable[[str], Read]]] = {
    "sentinode": ("sentinode", sentinode),
    "openslide": ("openslide-python", openslide),
    "tifffile by hand": ("tifffile", tifffile_by_hand),
    "tifffile zarr": ("tifffile", tifffile_zarr),
    "tiffslide": ("tiffslide", tiffslide),
    "cucim": ("cucim-cu12", cucim),
    "large_image": ("large-image-source-tiff", large_image),
    "rasterio": ("rasterio", rasterio),
    "pyvips": ("pyvips", pyvips),
}


# --- the work -------------------------------------------------------------------------------------------------------


def aligned_boxes(side: int, count: int) -> list[Box]:
    """Whole tiles in random order."""
    tiles = side // TILE
    order = np.random.default_rng(0).permutation(tiles * tiles)[:count]
    return [(int(index % tiles) * TILE, int(index // tiles) * TILE, TILE, TILE) for index in order]


def patch_boxes(side: int, count: int) -> list[Box]:
    """256 px patches anywhere."""
    corners = np.random.default_rng(1).integers(0, side - 256, (count, 2)).tolist()
    return [(x, y, 256, 256) for x, y in corners]


def planned(path: str, boxes: Sequence[Box]) -> list[Box]:
    """The same patches, neighbours together."""
    with Slide.open(path) as slide:
        regions = [Region(x=x, y=y, width=width, height=height) for x, y, width, height in boxes]
        return [boxes[index] for index in tile_order(regions, slide.levels[0])]


def blocks(side: int) -> list[Box]:
    """The whole level in blocks of 2048 px, row by row."""
    return [
        (x, y, min(2048, side - x), min(2048, side - y)) for y in range(0, side, 2048) for x in range(0, side, 2048)
    ]


_own = local()


def read_all(name: str, path: str, boxes: Sequence[Box]) -> None:
    """Read boxes one by one on this thread's own handle."""
    reads: dict[tuple[str, str], Read] = _own.__dict__.setdefault("reads", {})
    if (name, path) not in reads:
        reads[name, path] = READERS[name][1](path)
    read = reads[name, path]
    for box in boxes:
        read(box)


def read_batches(path: str, boxes: Sequence[Box], workers: int) -> None:
    """Read with ours, many patches at a time, into one array as a training loop does."""
    kept = _own.__dict__
    if "slide" not in kept:
        kept["slide"], kept["out"] = Slide.open(path), np.empty((400, 256, 256, 3), dtype=np.uint8)
    regions = [Region(x=x, y=y, width=width, height=height) for x, y, width, height in boxes]
    for start in range(0, len(regions), 400):
        some = regions[start : start + 400]
        kept["slide"].read_many(some, out=kept["out"][: len(some)], workers=workers)


def read_halves(pool: Executor, name: str, path: str, boxes: Sequence[Box]) -> None:
    """Read half of the boxes on each of two workers."""
    halves = [pool.submit(read_all, name, path, list(islice(boxes, start, None, 2))) for start in (0, 1)]
    for half in halves:
        half.result()


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(title: str, works: Works, *, count: int, rounds: int, base: str) -> None:
    """Time several methods in turn, and print calls per second and ratios to ``base``."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    print(f"\n{title}\n{'':26}{'per second':>12}{'to ' + base:>22}")
    ratios = {
        name: statistics.median(b / own for b, own in zip(times[base], taken, strict=True))
        for name, taken in times.items()
    }
    for name in sorted(works, key=lambda name: -ratios[name]):
        print(f"{name:26}{count / statistics.median(times[name]):12.1f}{ratios[name]:22.2f}", flush=True)


def measure(path: str, side: int, names: Sequence[str], *, count: int, rounds: int) -> None:
    """Print every comparison."""
    whole = [name for name in names if name != "tifffile by hand"]
    tiles, patches = aligned_boxes(side, count), patch_boxes(side, 4 * count)
    ordered = planned(path, patches)
    with Slide.open(path) as slide:
        streams = [slide.tile_bytes(0, y // TILE, x // TILE) or b"" for x, y, _, _ in tiles]
    reused = np.empty((TILE, TILE, 3), dtype=np.uint8)
    limits: Works = {
        "limit: decode in memory": lambda: [simplejpeg.decode_jpeg(stream) for stream in streams],
        "limit: into one array": lambda: [simplejpeg.decode_jpeg(stream, buffer=reused) for stream in streams],
        "sentinode into one array": lambda: into_one(path, tiles, reused),
    }
    one: Works = {name: partial(read_all, name, path, tiles) for name in names}
    compare("Aligned tiles of 512 px, one thread", one | limits, count=count, rounds=rounds, base="openslide")

    with ThreadPoolExecutor(2) as threads:
        two: Works = {name: partial(read_halves, threads, name, path, tiles) for name in names}
        compare("Aligned tiles of 512 px, two threads", two, count=count, rounds=rounds, base="openslide")
        both: Works = {"two threads": two["sentinode"], "one thread": one["sentinode"]}
        compare("Ours, two threads to one", both, count=count, rounds=rounds, base="one thread")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        apart: Works = {name: partial(read_halves, processes, name, path, tiles) for name in names}
        compare("Aligned tiles of 512 px, two processes", apart, count=count, rounds=rounds, base="openslide")

    at_random: Works = {name: partial(read_all, name, path, patches) for name in whole}
    compare("Patches of 256 px at random, one thread", at_random, count=4 * count, rounds=rounds, base="openslide")
    in_order: Works = {name: partial(read_all, name, path, ordered) for name in whole}
    in_order["sentinode read_many"] = partial(read_batches, path, ordered, 1)
    compare("The same patches in planned order", in_order, count=4 * count, rounds=rounds, base="openslide")
    reduced(path, rounds=rounds)
    level = blocks(side)
    passes: Works = {name: partial(read_all, name, path, level) for name in whole}
    compare("A pass over the level in blocks of 2048 px", passes, count=len(level), rounds=rounds, base="openslide")


def reduced(path: str, *, rounds: int) -> None:
    """Read the whole slide at once with ours: exact means compared with JPEG tiles reduced by the decoder."""
    with Slide.open(path) as slide:
        height, width = slide.frame.shape
        coarsest = slide.levels[-1].downsample
        for factor in (2, 4, 8):
            side = coarsest * factor
            shape = int(height / side), int(width / side)
            frame = Frame(x=0.0, y=0.0, downsample=side, shape=shape, mpp=slide.mpp)
            works: Works = {
                "exact": partial(slide.read_frame, frame),
                "reduced": partial(slide.read_frame, frame, exact=False),
            }
            title = f"The whole slide at a downsample of {side:g}, from the level at {coarsest:g}"
            compare(title, works, count=1, rounds=rounds, base="exact")


def into_one(path: str, boxes: Sequence[Box], out: Pixels) -> None:
    """Read every tile into the same array with ours."""
    slides: dict[str, Slide] = _own.__dict__.setdefault("slides", {})
    if path not in slides:
        slides[path] = Slide.open(path)
    slide = slides[path]
    for x, y, width, height in boxes:
        slide.read_window(0, Window(row=y, column=x, height=height, width=width), out=out)


# --- what is measured on --------------------------------------------------------------------------------------------


def draw(path: Path, tiles: int) -> None:
    """Draw a slide of synthetic tissue at 0.25 um/px, tiles x tiles of 512 px, none missing."""
    from phantom import a_slide  # noqa: PLC0415  (the script beside this one)

    from staging.lesions.labels import SlideLabel  # noqa: PLC0415
    from staging.phantom.cohort import lay_out  # noqa: PLC0415

    section = lay_out(a_slide(0.25, (11000.0, 8600.0), SlideLabel.MACRO)).section

    def tissue() -> Iterator[Pixels]:
        rows, columns = section.grid
        while True:
            for row in range(rows):
                for column in range(columns):
                    tile = section.tile(row, column)
                    if tile is not None and tile.std() > 12:
                        yield tile

    write_pyramid(
        path, width=tiles * TILE, height=tiles * TILE, mpp=0.25, tiles=islice(tissue(), tiles * tiles), levels=3
    )


def check(path: str, side: int) -> list[str]:
    """Return the installed readers; report those missing and pixels that differ from OpenSlide's."""
    aligned, anywhere = aligned_boxes(side, 5), patch_boxes(side, 5)
    oracle = openslide(path)
    sound = []
    for name, (package, make) in READERS.items():
        try:
            read = make(path)
            boxes = aligned if name == "tifffile by hand" else aligned + anywhere
            differences = [np.abs(read(box).astype(int) - oracle(box)).max() for box in boxes]
        except (ImportError, PackageNotFoundError) as error:
            print(f"{name}: not installed ({error})")
        except Exception as error:  # noqa: BLE001  (whatever a peer raises on this file)
            print(f"{name}: fails on this slide: {error}")
        else:
            worst = max(differences)
            print(f"{name} {version(package)}: {'pixels equal' if worst == 0 else f'pixels differ by up to {worst}'}")
            sound.append(name)
    return sound


def opening(folder: Path) -> None:
    """Print what opening a slide of 100,000 x 200,000 px takes."""
    path = folder / "large.tif"
    total = -(-100_000 // TILE) * -(-200_000 // TILE)
    white = np.full((TILE, TILE, 3), 240, dtype=np.uint8)
    tiles = (white if index % 97 == 0 else None for index in range(total))
    write_pyramid(path, width=100_000, height=200_000, mpp=0.25, tiles=tiles)
    code = (
        "import resource, sys, time\n"
        "from wsi.slide import Slide\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "start = time.perf_counter()\n"
        "Slide.open(sys.argv[1]).levels\n"
        "took = time.perf_counter() - start\n"
        "print(f'{took * 1e3:.1f} ms, {peak() - before:.1f} MiB')"
    )
    print("\nOpening 100,000 x 200,000 px:")
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    code = (
        "import sys, time, tifffile\n"
        "start = time.perf_counter()\n"
        "[page.dataoffsets for page in tifffile.TiffFile(sys.argv[1]).pages]\n"
        "print(f'tifffile, all pages and offsets: {(time.perf_counter() - start) * 1e3:.1f} ms')"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)


def imports() -> None:
    """Print how long imports take, beyond an empty Python."""
    print("\nImport, beyond an empty Python:")

    def start(code: str) -> float:
        return min(seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(7))

    empty = start("pass")
    for code in ("import wsi", "from wsi.slide import Slide", "import openslide", "import tifffile"):
        print(f"{code:30}{(start(code) - empty) * 1e3:6.0f} ms")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slide", type=Path, help="a square slide without missing tiles instead of a synthetic one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=400, help="tiles read in a round")
    parser.add_argument("--draw", type=Path, help="only draw the slide, into this file")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if options.draw:
        draw(options.draw, 20)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide or Path(folder) / "slide.tif"
        if options.slide is None:
            draw(path, 20)
        with Slide.open(path) as slide:
            side = min(slide.frame.shape) // TILE * TILE
        stored = path.stat().st_size / (4 / 3 * (side // TILE) ** 2) / 1024
        print(f"{side} x {side} px, about {stored:.0f} KiB a tile")
        names = check(str(path), side)
        measure(str(path), side, names, count=min(options.count, (side // TILE) ** 2), rounds=options.rounds)
        opening(Path(folder))
        imports()


if __name__ == "__main__":
    main()
