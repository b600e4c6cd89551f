"""The names of slides and patients: how they are compared, and the patient and centre they give."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from staging.errors import SlideNameError
from staging.stages.pn import parse_slide_name
from wsi.readers.opening import photograph_suffixes, slide_suffixes

CENTRES = ("CWZ", "RST", "UMCU", "RUMC", "LPON")
"""Names of the centres, by the number from centre_of."""

_OF_RESULTS = frozenset({".csv", ".xml", ".zarr", ".geojson", ".json", ".annotations"})
_OF_ANNOTATIONS = frozenset({".xml", ".geojson", ".json", ".annotations"})
_PATIENTS = 200

# Training slides of CAMELYON16 by number (Litjens et al., GigaScience 2018: 170 of RUMC and 100 of UMCU); the names of
# its test slides do not give the centre.
_CAMELYON16 = re.compile(r"(normal|tumor)_([0-9]{3})")
_LAST_OF_RUMC = {"normal": 100, "tumor": 70}


def slide_name(name: str) -> str:
    """Return a slide's name for tables: without suffix, and in lower case if it is a CAMELYON17 name."""
    try:
        patient, node = parse_slide_name(name)
    except SlideNameError:
        return bare_name(name)
    return f"{patient}_node_{node}"


def slide_key(name: str) -> str:
    """Return a slide's name for comparison: bare and in lower case. All names of slides are joined by it."""
    return bare_name(name).lower()


def bare_name(name: str) -> str:
    """Return the name of a slide that a file's name gives: without suffix, in Unicode's form NFC.

    An accented letter has one code point or two: macOS writes file names with two, most tables have one. Annotations
    may be named after the slide's file, ``a.tif.xml``, as QuPath does: ``a.tif - Series 0.geojson``.
    """
    suffix = PurePosixPath(name).suffix
    is_known = suffix.lower() in slide_suffixes() | photograph_suffixes() | _OF_RESULTS
    bare = name[: -len(suffix)] if is_known else name
    # sentinode's own name for annotations in the format of ImageScope
    bare = bare.removesuffix(".imagescope") if suffix.lower() == ".xml" else bare
    if suffix.lower() in _OF_ANNOTATIONS:
        of_slide = bare.removesuffix(" - Series 0")
        inner = PurePosixPath(of_slide).suffix
        bare = of_slide[: -len(inner)] if inner.lower() in slide_suffixes() else bare
    return unicodedata.normalize("NFC", bare.strip())


def patient_of(slide: str) -> str | None:
    """Return the patient (``patient_000``) that a slide's name gives, or None."""
    try:
        return parse_slide_name(slide)[0]
    except SlideNameError:
        return None


def centre_of(patient: int) -> int:
    """Return the medical centre of a CAMELYON17 patient: 0 CWZ, 1 RST, 2 UMCU, 3 RUMC, 4 LPON; 20 patients each.

    Args:
        patient: number in the name; 0-99 are the training patients, 100-199 the test patients, assumed to be in the
            same order.

    Raises:
        ValueError: CAMELYON17 has no such patient.
    """
    if not 0 <= patient < _PATIENTS:
        raise ValueError(f"CAMELYON17 has patients 0 to {_PATIENTS - 1}, got {patient}")
    return patient % 100 // 20


def centre_of_patient(patient: str) -> int | None:
    """Return the centre of ``patient_000`` by centre_of, or None if CAMELYON17 has no such patient."""
    head, _, number = patient.lower().partition("_")
    is_number = head == "patient" and number.isascii() and number.isdigit()
    return centre_of(int(number)) if is_number and int(number) < _PATIENTS else None


def is_camelyon16(slide: str) -> bool:
    """Return whether a slide is named as CAMELYON16's are, which are of different patients."""
    return re.fullmatch(r"(normal|tumor|test)_[0-9]{3}", slide_key(slide)) is not None


def centre_name(slide: str) -> str | None:
    """Return the centre that a CAMELYON slide comes from, or None if its name does not give it."""
    patient = patient_of(slide)
    centre = None if patient is None else centre_of_patient(patient)
    if centre is not None:
        return CENTRES[centre]
    match = _CAMELYON16.fullmatch(slide_key(slide))
    if match is None:
        return None
    return "RUMC" if int(match[2]) <= _LAST_OF_RUMC[match[1]] else "UMCU"
