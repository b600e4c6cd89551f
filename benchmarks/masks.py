"""Masks from annotations: ours compared with other rasterisers, in time, memory and wrong pixels.

Three parts. A real file on the frame of a whole slide, written as a pyramid in a process of its own: time and peak
memory, and what the others need for a part of that frame that fits in memory. Many small outlines on the same frame,
written likewise. Then two synthetic slides, one of 300 outlines with 2 million vertices and one outline of 71,000: time
per 512 px tile that an edge passes through, and pixels that differ from whole-number arithmetic with the non-zero rule
at pixel centres. All take turns on the same tiles, each is given only the outlines whose bounding box meets the tile,
and slow ones see fewer tiles; a ratio is that of two times over the same tiles.

Run: python benchmarks/masks.py [FILE.xml] [--tiles N]; rasterisers that are not installed are reported and left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.files.formats import read_annotations
from annotations.masks.mask_file import write_annotation_mask
from annotations.painting import Cover, Painting
from wsi.geometry import Frame, Window

Outline = NDArray[np.float64]
Pixels = NDArray[np.bool_]
Paint = Callable[[Sequence[Outline], int, int, int], Pixels]  # outlines, left, top, side: (side, side)
WIDTH, HEIGHT, TILE = 97_792, 221_184, 512
PER_PX = 10_000  # synthetic vertices are whole 1/10,000 px, as in CAMELYON's files
CROP = 8_192
SECONDS_PER_PEER = 12.0
CELLS = (10_000, 100_000)


# --- rasterisers ------------------------------------------------------------------------------------------------------


def cv2() -> Paint:
    """OpenCV: fixed point of 1/65,536 px (1/4,096 where that is too wide), outlines one after another."""
    module = importlib.import_module("cv2")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        array = np.zeros((side, side), dtype=np.uint8)
        for outline in outlines:
            # Its pixels have their centres at whole numbers, and its positions have 32 bits.
            centred = outline - (left + 0.5, top + 0.5)
            shift = 16 if np.abs(centred).max() < 32_000 else 12
            fixed = np.rint(centred * (1 << shift)).astype(np.int32)
            module.fillPoly(array, [fixed.reshape(-1, 1, 2)], 1, shift=shift)
        return array.astype(bool)

    return paint


def pillow() -> Paint:
    """Pillow's ImageDraw."""
    image, draw = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageDraw")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        canvas = image.new("1", (side, side))
        pen = draw.Draw(canvas)
        for outline in outlines:
            pen.polygon((outline - (left + 0.5, top + 0.5)).ravel().tolist(), fill=1)
        return np.asarray(canvas, dtype=bool)

    return paint


def rasterio(*, clipped: bool) -> Paint:
    """GDAL through rasterio: pixel centres, even-odd; the outlines whole, or clipped to the tile first."""
    features = importlib.import_module("rasterio.features")
    affine = importlib.import_module("rasterio").Affine
    shapely = importlib.import_module("shapely")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        shapes = []
        for outline in outlines:
            polygon = shapely.Polygon(outline)
            if clipped:
                polygon = shapely.clip_by_rect(polygon, left - 2, top - 2, left + side + 2, top + side + 2)
            if not polygon.is_empty:
                shapes.append((polygon, 1))
        if not shapes:
            return np.zeros((side, side), dtype=bool)
        where = affine(1, 0, left, 0, 1, top)
        return np.asarray(features.rasterize(shapes, out_shape=(side, side), transform=where), dtype=bool)

    return paint


def scikit_image() -> Paint:
    """skimage.draw.polygon."""
    draw = importlib.import_module("skimage.draw")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        array = np.zeros((side, side), dtype=bool)
        for outline in outlines:
            x, y = (outline - (left + 0.5, top + 0.5)).T
            array[draw.polygon(y, x, shape=array.shape)] = True
        return array

    return paint


def matplotlib() -> Paint:
    """matplotlib.path.Path.contains_points."""
    path = importlib.import_module("matplotlib.path")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        centres = _centres(left, top, side)
        found = np.zeros(side * side, dtype=bool)
        for outline in outlines:
            found |= path.Path(outline, closed=False).contains_points(centres)
        return found.reshape(side, side)

    return paint


def shapely() -> Paint:
    """shapely.contains_xy on prepared polygons."""
    module = importlib.import_module("shapely")

    def paint(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        centres = _centres(left, top, side)
        found = np.zeros(side * side, dtype=bool)
        for outline in outlines:
            polygon = module.Polygon(outline)
            module.prepare(polygon)
            found |= module.contains_xy(polygon, centres)
        return found.reshape(side, side)

    return paint


def _centres(left: int, top: int, side: int) -> NDArray[np.float64]:
    y, x = np.mgrid[top : top + side, left : left + side] + 0.5
    return np.stack([x.ravel(), y.ravel()], axis=1)


PEERS: dict[str, tuple[str, Callable[[], Paint]]] = {
    "rasterio (GDAL), clipped": ("rasterio", lambda: rasterio(clipped=True)),
    "rasterio (GDAL)": ("rasterio", lambda: rasterio(clipped=False)),
    "cv2": ("opencv-python-headless", cv2),
    "PIL": ("pillow", pillow),
    "shapely contains_xy": ("shapely", shapely),
    "matplotlib": ("matplotlib", matplotlib),
    "scikit-image": ("scikit-image", scikit_image),
}
ONLY_NAMED = ("wholeslidedata",)


def installed() -> dict[str, Paint]:
    """Return the installed peers; report the others."""
    peers = {}
    for name, (package, make) in PEERS.items():
        try:
            print(f"  {name}: {package} {version(package)}")
            peers[name] = make()
        except (ImportError, PackageNotFoundError) as error:
            print(f"  {name}: left out ({error})")
    for package in ONLY_NAMED:
        try:
            print(f"  {package} {version(package)}: left out, its masks are those of cv2 or shapely")
        except PackageNotFoundError:
            print(f"  {package}: left out, not installed")
    return peers


# --- truth ------------------------------------------------------------------------------------------------------------


def exact(outlines: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
    """The non-zero rule per outline at pixel centres, by signs of cross products of whole numbers."""
    found = np.zeros((side, side), dtype=bool)
    x = PER_PX // 2 + PER_PX * np.arange(side, dtype=np.int64)
    for outline in outlines:
        positions = np.rint((outline - (left, top)) * PER_PX).astype(np.int64)
        ends = np.roll(positions, -1, axis=0)
        first, end = (
            np.clip((side_y - PER_PX // 2 + PER_PX - 1) // PER_PX, 0, side)
            for side_y in np.sort([positions[:, 1], ends[:, 1]], axis=0)
        )
        winding = np.zeros((side, side), dtype=np.int64)
        for edge in np.flatnonzero(first < end):
            (x0, y0), (x1, y1) = positions[edge].tolist(), ends[edge].tolist()
            y = (PER_PX // 2 + PER_PX * np.arange(first[edge], end[edge], dtype=np.int64))[:, np.newaxis]
            cross = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
            winding[first[edge] : end[edge]] += (cross <= 0) if y1 > y0 else -(cross >= 0).astype(np.int64)
        found |= winding != 0
    return found


# --- what is painted --------------------------------------------------------------------------------------------------


def drawn_by_hand(count: int, vertices: int, *, radius: float, seed: int) -> list[Outline]:
    """Draw ragged closed curves all over a slide, with the tremor that makes real outlines cross themselves."""
    generator = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    curves = []
    for _ in range(count):
        size = radius * generator.uniform(0.4, 1.6)
        centre = generator.uniform(2 * size, (WIDTH - 2 * size, HEIGHT - 2 * size))
        waves = np.ones(vertices)
        for frequency in (2, 3, 5, 9, 17, 33, 80):
            waves += 0.35 / frequency**0.8 * np.cos(frequency * turn + generator.uniform(0, 2 * np.pi))
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (size * waves)[:, np.newaxis]
        curves.append(np.round(centre + ring + generator.normal(0, 1, ring.shape), 4))
    return curves


def as_annotations(outlines: Sequence[Outline]) -> list[Annotation]:
    """Outlines as tumour."""
    return [
        Annotation(name=str(n), group="Tumor", role=Role.TUMOUR, kind="Polygon", vertices=outline)
        for n, outline in enumerate(outlines)
    ]


def slide_frame() -> Frame:
    """Level 0 of a large CAMELYON slide."""
    return Frame(x=0.0, y=0.0, downsample=1.0, shape=(HEIGHT, WIDTH), mpp=0.25)


def near(outlines: Sequence[Outline], bounds: NDArray[np.float64], left: int, top: int, side: int) -> list[Outline]:
    """Outlines whose bounding box meets a square."""
    low, high = (left, top), (left + side, top + side)
    kept = (bounds[:, 0] <= high).all(axis=1) & (bounds[:, 1] >= low).all(axis=1)
    return [outlines[index] for index in np.flatnonzero(kept).tolist()]


# --- measurements -----------------------------------------------------------------------------------------------------


def tiles_of(name: str, outlines: list[Outline], peers: dict[str, Paint], count: int) -> None:
    """Print milliseconds per tile and wrong pixels of every rasteriser."""
    painting = Painting.of(as_annotations(outlines))
    positions = np.argwhere(painting.cover(slide_frame().coarser(TILE)) == Cover.PART)
    touched = len(positions)
    positions = positions[np.random.default_rng(0).permutation(touched)[:count]] * TILE
    bounds = np.array([(outline.min(axis=0), outline.max(axis=0)) for outline in outlines])
    corners = [(int(column), int(row)) for row, column in positions]
    given = [near(outlines, bounds, *corner, TILE) for corner in corners]
    truths = [exact(some, *corner, TILE) for some, corner in zip(given, corners, strict=True)]

    def ours(_: Sequence[Outline], left: int, top: int, side: int) -> Pixels:
        return painting.mask(slide_frame().part(Window(row=top, column=left, height=side, width=side))).array

    print(f"\n{name}: {len(outlines)} outlines, {sum(map(len, outlines)):,} vertices, {touched:,} touched tiles")
    seconds: dict[str, list[float]] = {}
    wrong: dict[str, int] = {}
    everyone: dict[str, Paint] = {"sentinode": ours, **peers}
    for some, corner, truth in zip(given, corners, truths, strict=True):
        for who, paint in everyone.items():
            spent = seconds.setdefault(who, [])
            if sum(spent) > SECONDS_PER_PEER:
                continue
            start = time.perf_counter()
            found = paint(some, *corner, TILE)
            spent.append(time.perf_counter() - start)
            wrong[who] = wrong.get(who, 0) + int((found != truth).sum())
    print("| rasteriser | tiles | ms per tile | times ours | wrong pixels | per million |\n|---|---|---|---|---|---|")
    for who, spent in seconds.items():
        ratio = sum(spent) / sum(seconds["sentinode"][: len(spent)])
        share = 1e6 * wrong[who] / (len(spent) * TILE**2)
        mean_ms = 1e3 * sum(spent) / len(spent)
        print(f"| {who} | {len(spent)} | {mean_ms:.2f} | {ratio:.1f} | {wrong[who]:,} | {share:.1f} |")


def whole_slide(contours: Path, peers: dict[str, Paint]) -> None:
    """Time the real file: ours on the whole frame, all on the part around the longest outline's first vertex."""
    print(f"\n{contours.name} on {WIDTH:,} x {HEIGHT:,} px ({WIDTH * HEIGHT / 1e9:.1f} gigapixels)")
    for compression in ("deflate", "lzw", "zstd"):
        told = subprocess.run(
            [sys.executable, __file__, str(contours), "--write", compression],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"  sentinode, pyramid with {compression}: {json.loads(told.stdout)}")
    outlines = [
        one.outline for one in read_annotations(contours) if one.role is Role.TUMOUR and one.outline is not None
    ]
    left, top = (max(0, int(where) - CROP // 2) for where in max(outlines, key=len)[0])
    print(f"  {CROP} x {CROP} px of it as an array, ms per megapixel:")
    painting = Painting.of(as_annotations(outlines))
    window = slide_frame().part(Window(row=top, column=left, height=CROP, width=CROP))
    everyone: dict[str, Callable[[int], object]] = {
        "sentinode": lambda side: painting.mask(
            window.part(Window.whole((side, side))),
        )
    }
    everyone |= {
        who: lambda side, paint=paint: paint(outlines, left, top, side)  # type: ignore[misc]
        for who, paint in peers.items()
    }
    for who, paint in everyone.items():
        side = TILE if who in ("scikit-image", "matplotlib", "shapely contains_xy") else CROP
        start = time.perf_counter()
        paint(side)
        spent = time.perf_counter() - start
        print(f"    {who}: {1e3 * spent / (side**2 / 1e6):.1f} ({side} px)")


def cells(count: int) -> list[Annotation]:
    """Cells of 12 px and 28 corners all over a quarter of the slide, in no order."""
    angle = np.arange(28) * (2 * np.pi / 28)
    ring = 12 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centres = np.random.default_rng(0).uniform(12, (WIDTH // 2 - 12, HEIGHT // 2 - 12), (count, 2))
    return as_annotations(list(ring + centres[:, np.newaxis]))


def write_one(annotations: Sequence[Annotation], compression: str) -> None:
    """Write the whole pyramid and print what it took."""
    start, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.tif"
        stats = write_annotation_mask(
            path,
            annotations,
            slide_frame(),
            compression=compression,  # type: ignore[arg-type]
        )
        taken = {
            "seconds": round(time.perf_counter() - start, 2),
            "processor_seconds": round(time.process_time() - busy, 2),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "file_mib": round(path.stat().st_size / 2**20, 1),
            "painted_tiles": stats.painted_tiles,
            "tiles": stats.tiles,
        }
    print(json.dumps(taken))


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("SENTINODE_TEST_DATA", ""), "annotations/camelyon16/tumor_009.xml")
    parser.add_argument("contours", type=Path, nargs="?", default=real, help="tumor_009.xml of CAMELYON16, or another")
    parser.add_argument("--tiles", type=int, default=200, help="maximum per synthetic slide")
    parser.add_argument("--cells", type=int, help="with --write, draw so many cells instead of the file")
    parser.add_argument("--write", choices=("deflate", "lzw", "zstd"), help="write one mask, and print what it took")
    arguments = parser.parse_args()
    if arguments.write:
        drawn = cells(arguments.cells) if arguments.cells else read_annotations(arguments.contours)
        write_one(drawn, arguments.write)
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    peers = installed()
    if arguments.contours.is_file():
        whole_slide(arguments.contours, peers)
    else:
        print("the real file is left out: give it, or set SENTINODE_TEST_DATA")
    for count in CELLS:
        command = [sys.executable, __file__, "--cells", str(count), "--write", "deflate"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{count:,} cells: {json.loads(told.stdout)}")
    tiles_of("many outlines", drawn_by_hand(300, 6_667, radius=2000, seed=0), peers, arguments.tiles)
    tiles_of("one outline", drawn_by_hand(1, 71_000, radius=12_000, seed=1), peers, arguments.tiles)


if __name__ == "__main__":
    main()
