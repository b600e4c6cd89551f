"""What goes wrong with annotations and patches."""

from __future__ import annotations

from wsi.errors import PathologyError


class AnnotationError(PathologyError):
    """Something is wrong with an annotation file."""


class AnnotationNotFoundError(AnnotationError, FileNotFoundError):
    """There is no annotation file at the path. Never to be read as "no tumour"."""


class AnnotationFormatError(AnnotationError, ValueError):
    """The file is no annotation file that can be read; ``place`` names the annotation and the vertex."""


class UnknownGroupError(AnnotationError, ValueError):
    """A group of annotations whose meaning (tumour, cut out of tumour ...) is not known."""


class SamplingError(PathologyError, ValueError):
    """The patches asked for cannot be drawn from this slide."""


class PatchStoreError(PathologyError, ValueError):
    """A stored set of patches is incomplete, damaged or not one."""
