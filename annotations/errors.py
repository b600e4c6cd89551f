"""What goes wrong with annotations and patches."""

from __future__ import annotations

from wsi.errors import PathologyError


class AnnotationError(PathologyError):
    """Something is wrong with an annotation file."""


class AnnotationNotFoundError(AnnotationError, FileNotFoundError):
    """There is no annotation file at the path. Never to be read as "no tumour"."""


class AnnotationFormatError(AnnotationError, ValueError):
    """The file is no annotation file that can be read; ``place`` names the annotation and the vertex."""


class EmptyFileError(AnnotationFormatError):
    """The file has no content: a broken copy, never to be read as "no tumour"."""


class UnknownGroupError(AnnotationError, ValueError):
    """A group of annotations whose meaning (tumour, cut out of tumour ...) is not known."""


class GroupMapError(AnnotationError, ValueError):
    """A map from groups to roles cannot be read, or gives a group a role that does not exist."""


class MissingRoleError(AnnotationError, ValueError):
    """No outline with an area has the role that is asked for."""


class OutsideSlideError(AnnotationError, ValueError):
    """A vertex lies beyond the slide: the annotations belong to another slide or another resolution."""


class SamplingError(PathologyError, ValueError):
    """The patches asked for cannot be drawn from this slide."""


class PatchStoreError(PathologyError, ValueError):
    """A stored set of patches is incomplete, damaged or not one."""


class FoldError(PatchStoreError):
    """Patients were split into folds and none is named, or one is named that is not there."""
