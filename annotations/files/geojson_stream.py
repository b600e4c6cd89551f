"""The features of a GeoJSON file, taken one by one: its text may be far longer than memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError
from annotations.files.json_text import JsonText
from wsi.inputs import open_regular

_MOST_BYTES = 1 << 32
_MEMORY_PER_BYTE = 1.7  # of the annotations, measured on cells (benchmarks/geojson.py)


def features_in(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """Each feature of a FeatureCollection, of a list, of one feature, or around one geometry.

    Yields:
        (feature, unchecked; the names in its properties whose values were NaN or infinite and have been left out).

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no content.
        AnnotationFormatError: not JSON, not GeoJSON, or more than memory holds; the features before were yielded.
    """
    try:
        _check_size(path, path.stat().st_size)
        with open_regular(path) as file:
            for feature, has_nan in _features(path, JsonText(path, file)):
                lost: list[str] = []
                if has_nan and isinstance(feature, dict):
                    feature["properties"] = _finite(feature.get("properties"), lost)
                yield feature, lost
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AnnotationNotFoundError(path, "there is no annotation file", mend="check the path") from error
    except OSError as error:
        raise AnnotationFormatError(path, f"cannot be read: {error.strerror or error}") from error
    except AnnotationFormatError:
        raise
    except RecursionError as error:
        raise AnnotationFormatError(path, "is nested too deeply to be annotations", mend="export it again") from error
    except ValueError as error:
        raise AnnotationFormatError(path, f"is not JSON: {error}", mend="export it again") from error


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        memory = size * _MEMORY_PER_BYTE / 2**30
        raise AnnotationFormatError(
            path,
            f"has {size:,} bytes: its annotations would need about {memory:.1f} GiB of memory",
            mend=f"split it, or leave detections out; at most {_MOST_BYTES:,} bytes are read",
        )


def _features(path: Path, text: JsonText) -> Iterator[tuple[Any, bool]]:
    """Each feature, and whether it holds NaN or an infinity."""
    first = text.peek()
    if not first:
        raise EmptyFileError(path, "the file is empty", mend="export it again")
    if first == "[":
        yield from ((element, text.has_nan) for element in text.elements())
        text.end()
        return
    content: dict[str, Any] = {}
    has_nan = has_list = False
    for name in text.names():
        if name == "features" and text.peek() == "[":
            has_list = True
            yield from ((element, text.has_nan) for element in text.elements())
        else:
            content[name] = text.value()
            has_nan |= text.has_nan
    text.end()
    kind = content.get("type")
    if kind == "Feature":
        yield content, has_nan
    elif "coordinates" in content or "geometries" in content:
        yield {"geometry": content}, has_nan
    elif kind != "FeatureCollection" or not has_list:
        raise AnnotationFormatError(path, "is not GeoJSON", mend="export it from QuPath as GeoJSON")


def _finite(value: Any, lost: list[str]) -> Any:  # noqa: ANN401  (whatever JSON can hold)
    """A value without what is NaN or infinite in it, whose names are added to ``lost``."""
    if isinstance(value, dict):
        lost += (name for name, one in value.items() if _is_infinite(one))
        return {name: _finite(one, lost) for name, one in value.items() if not _is_infinite(one)}
    if isinstance(value, list):
        # QuPath before 0.4 lists its measurements, each with a name and a value.
        odd = [isinstance(one, dict) and _is_infinite(one.get("value")) for one in value]
        lost += (str(one.get("name")) for one, is_odd in zip(value, odd, strict=True) if is_odd)
        return [_finite(one, lost) for one, is_odd in zip(value, odd, strict=True) if not is_odd]
    return None if _is_infinite(value) else value


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
