__all__ = [
    "Annotation",
    "AnnotationSet",
    "PatchBatch",
    "PatchTable",
    "Role",
    "convert_annotations",
    "heatmap_to_polygons",
    "mask_to_polygons",
    "mask_to_smooth_polygons",
    "polygon_annotations",
    "rasterize",
    "read_annotation_set",
    "read_annotations",
    "read_patch_table",
    "tumour_area",
    "write_annotation_mask",
    "write_annotations",
]

from .annotation import Annotation, AnnotationSet, Role
from .contours import heatmap_to_polygons, mask_to_smooth_polygons, polygon_annotations
from .files.formats import convert_annotations, read_annotation_set, read_annotations, write_annotations
from .masks.mask_file import write_annotation_mask
from .painting import rasterize
from .patches.batch import PatchBatch
from .patches.table import PatchTable, read_patch_table
from .polygons import mask_to_polygons, tumour_area
