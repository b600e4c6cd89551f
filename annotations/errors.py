"""What goes wrong with annotations and patches."""

from __future__ import annotations

from wsi.errors import PathologyError


class AnnotationError(PathologyError):
    """Something is wrong with an annotation file."""


class AnnotationNotFoundError(AnnotationError, FileNotFoundError):
    """There is no annotation file at the path. Never to be read as "no tumour"."""


class AnnotationFormatError(AnnotationError, ValueError):
    """The file cannot be read as an annotation file; ``where`` names the annotation and the vertex."""


class EmptyFileError(AnnotationFormatError):
    """The file has no bytes or nothing is drawn in it: never to be read as "no tumour"."""


class UnknownGroupError(AnnotationError, ValueError):
    """A group of annotations has no known meaning (tumour, cut out of tumour ...)."""


class GroupMapError(AnnotationError, ValueError):
    """A map from groups to roles cannot be read, or assigns a role that does not exist."""


class MissingRoleError(AnnotationError, ValueError):
    """No outline with an area has the required role."""


class BlankMaskError(AnnotationError, ValueError):
    """A mask would have no pixel of tumour."""


class OutsideSlideError(AnnotationError, ValueError):
    """A vertex lies beyond the slide: the annotations belong to another slide or another resolution."""


class SamplingError(PathologyError, ValueError):
    """The requested patches cannot be drawn from this slide."""


class PatchStoreError(PathologyError, ValueError):
    """A stored set of patches is incomplete, damaged or something else."""


class FoldError(PatchStoreError):
    """Patients were split into folds and none is named, or the named one does not exist."""
