__all__ = [
    "Findings",
    "Frame",
    "Heatmap",
    "Image",
    "Level",
    "Mask",
    "OverridingMpp",
    "PatchDataset",
    "PatchStream",
    "PathologyError",
    "Region",
    "Slide",
    "StainJitter",
    "TilePlan",
    "Window",
    "find_tissue",
    "plan_to_dask",
    "read_attention",
    "read_heatmap",
    "save_png",
    "slide_picture",
    "thumbnail",
    "tile_order",
    "tissue_area_um2",
    "write_heatmap",
]

from .cnn.encoders.attention import read_attention
from .cnn.patch_loading import PatchDataset, PatchStream
from .errors import PathologyError
from .findings import Findings
from .geometry import Frame, Level, Region, Window, tile_order
from .heatmap_store import read_heatmap, write_heatmap
from .raster import Heatmap, Image, Mask
from .readers.resolution import OverridingMpp
from .render import save_png, slide_picture, thumbnail
from .slide import Slide
from .stain import StainJitter
from .tiles import TilePlan, plan_to_dask
from .tissue import find_tissue, tissue_area_um2
