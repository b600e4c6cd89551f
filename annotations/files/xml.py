"""XML without trust: a bounded walk over the elements of a file, plain decimals, and text that XML can hold."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree

from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError
from wsi.inputs import open_regular

# The largest published file (71,315 vertices) has 5 MB and is 5 levels deep; ImageScope writes 6 levels.
MOST_BYTES = 1 << 27
MOST_OBJECTS = 500_000
DEEPEST = 32
WRITTEN = "<!-- written by sentinode -->"
"""In what is written: drawings of others are never replaced."""
FARTHEST_PX = 1e9

_SHOWN_CHARACTERS = 40
# float() accepts '1_00', Arabic digits, 'nan' and 'infinity'; the formats mean plain decimals.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
# One to three digits, a comma and three digits: thousands in one country, thousandths in the next.
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}(?![0-9])")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_HEX_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")


def elements(path: Path, root: str, software: str) -> Iterator[tuple[bool, Any]]:
    """Walk over the elements of a file in the order of their tags, keeping only the open ones in memory.

    Args:
        path: the file.
        root: the tag of its root.
        software: what writes such files, for the messages.

    Yields:
        (whether the element ends, the element). Its attributes can be read at both events; children and text cannot.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no bytes.
        AnnotationFormatError: not XML, a document type, another root, too large or too deep.
    """
    depth = 0
    for event, element in _events(path):
        depth += 1 if event == "start" else -1
        if event == "end":
            yield True, element
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
            continue
        if depth == 1 and element.tag != root:
            raise AnnotationFormatError(
                path,
                f"is not an {software} file: its root is <{shortened(element.tag)}>",
                mend=f"it must begin with <{root}>",
            )
        if depth > DEEPEST:
            raise AnnotationFormatError(path, f"is nested more than {DEEPEST} levels deep")
        yield False, element


def root_of(path: Path) -> str:
    """The tag of the root of an XML file.

    Raises:
        AnnotationError: as for elements.
    """
    events = _events(path)
    _, element = next(events)
    events.close()
    return str(element.tag)


def _events(path: Path) -> Generator[tuple[str, Any], None, None]:
    try:
        with open_regular(path) as file:
            _check_size(path, path.stat().st_size)
            # All are needed, by experiment: any one loosened lets a document read other files or exhaust memory.
            events = etree.iterparse(
                file,
                events=("start", "end"),
                load_dtd=False,
                dtd_validation=False,
                resolve_entities=False,
                no_network=True,
                huge_tree=False,
                recover=False,
                remove_comments=True,
                remove_pis=True,
            )
            for number, (event, element) in enumerate(events):
                if not number and element.getroottree().docinfo.doctype:
                    raise AnnotationFormatError(
                        path, "declares a document type, which may name other files", mend="remove the DOCTYPE line"
                    )
                yield event, element
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AnnotationNotFoundError(path, "there is no annotation file", mend="check the path") from error
    except OSError as error:
        raise AnnotationFormatError(path, f"cannot be read: {error.strerror or error}") from error
    except etree.LxmlError as error:
        raise AnnotationFormatError(path, f"is not well-formed XML: {error}", mend="export it again") from error


def _check_size(path: Path, size: int) -> None:
    if not size:
        raise EmptyFileError(path, "the file is empty", mend="copy it again")
    if size > MOST_BYTES:
        raise AnnotationFormatError(path, f"has {size:,} bytes, more than any annotation file ({MOST_BYTES:,})")


def check_count(path: Path, count: int) -> None:
    """Refuse a file with more annotations and groups than memory allows for."""
    if count >= MOST_OBJECTS:
        raise AnnotationFormatError(path, f"holds more than {MOST_OBJECTS:,} annotations and groups")


def position(text: str | None) -> float:
    """A position in level-0 px from an attribute.

    A comma is read as the decimal sign where it can be nothing else: ``1234,5`` and ``12345,678`` are numbers, while
    ``1,234`` (thousands or thousandths), ``1,234.5`` and ``1,234,567`` are refused.

    Raises:
        ValueError: missing, not a plain decimal, or farther out than any slide extends; the message is a clause.
    """
    if text is None:
        raise ValueError("missing")
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{shortened(text)!r}, not a decimal number")
    if _THOUSANDS.match(text):
        raise ValueError(f"{shortened(text)!r}: its comma may mean thousands or decimals, write a point")
    value = float(text.replace(",", "."))
    if abs(value) > FARTHEST_PX:
        raise ValueError(f"{shortened(text)}, not a position on a slide")
    return value


def shortened(text: object) -> str:
    """Text shortened for a message, at most 40 characters."""
    shown = str(text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"


def quoted(text: str) -> str:
    """Text escaped as an attribute's value, without the quotation marks around it.

    Raises:
        ValueError: it holds a character that XML cannot hold.
    """
    if fault := _NOT_XML.search(text):
        raise ValueError(f"XML cannot hold the character {fault.group()!r} of {text!r}")
    # Line ends and tabs in attributes would come back as spaces.
    return escape(text).replace("\t", "&#9;").replace("\n", "&#10;").replace("\r", "&#13;")


def is_name(text: str) -> bool:
    """Whether text can be the name of an attribute."""
    return _NAME.fullmatch(text) is not None


def written(value: float) -> str:
    """A number with as many decimals as the same float64 needs to be read back, never with an exponent."""
    return np.format_float_positional(value, trim="-")


def colour_of(text: str | None) -> tuple[int, int, int] | None:
    """Red, green, blue of ``#RRGGBB``; None for anything else."""
    if text is None or not _HEX_COLOUR.fullmatch(text):
        return None
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def hexadecimal(colour: tuple[int, int, int]) -> str:
    """``#RRGGBB`` of red, green, blue."""
    return "#" + "".join(f"{part:02X}" for part in colour)
