"""JSON read value by value, so that a file of any length needs memory for one value of a long list at a time."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from annotations.errors import AnnotationFormatError

MOST_CHARACTERS = 1 << 26
"""Of one value: decoded, it takes about 1 GB."""

_CHUNK = 1 << 20  # characters
_NO_SPACE = re.compile(r"[^ \t\r\n]")
# A cut within a literal or an escape is reported where this began, at most as many characters before the end.
_CUT_WITHIN = 16
# A number may go on if so many characters after it are not known: 1|e-5.
_NUMBER_GOES_ON = 3


class JsonText:
    """The text of a JSON file from which values are taken one after another.

    Attributes:
        has_nan: whether the value taken last holds NaN or an infinity, which JSON does not have but programs write.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.has_nan = False
        self._path = path
        self._file = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        self._decoder = json.JSONDecoder(parse_constant=self._constant)
        self._text, self._at, self._line = "", 0, 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file.

        Raises:
            ValueError: the file is not UTF-8.
        """
        while (found := _NO_SPACE.search(self._text, self._at)) is None:
            self._at = len(self._text)
            if not self._read():
                return ""
        self._at = found.start()
        return found[0]

    def value(self) -> Any:  # noqa: ANN401  (whatever JSON can hold)
        """Take the next value.

        Raises:
            AnnotationFormatError: it is not JSON, or too long to be held in memory.
            ValueError, RecursionError: it is not UTF-8, has too long a number, or is nested too deeply.
        """
        self.has_nan = False
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _CUT_WITHIN
                if is_cut and self._read():
                    continue
                raise self._fault(error.msg, error.pos) from error
            is_cut = self._text[end - 1] not in '}]"' and len(self._text) - end < _NUMBER_GOES_ON
            if not is_cut or not self._read():
                self._at = end
                return value

    def elements(self) -> Iterator[Any]:
        """Take the elements of the list that comes next, one by one.

        Raises:
            AnnotationFormatError, ValueError, RecursionError: as for value.
        """
        for _ in self._items("]"):
            yield self.value()

    def names(self) -> Iterator[str]:
        """Take the names of the object that comes next; whoever iterates takes the value after each name.

        Raises:
            AnnotationFormatError, ValueError, RecursionError: as for value.
        """
        if self.peek() != "{":
            raise self._fault("Expecting an object or a list", self._at)
        for first in self._items("}"):
            if first != '"':
                raise self._fault("Expecting property name enclosed in double quotes", self._at)
            name = str(self.value())
            self._take(":")
            yield name

    def end(self) -> None:
        """Refuse anything after the last value.

        Raises:
            AnnotationFormatError: there is more.
        """
        if self.peek():
            raise self._fault("Extra data", self._at)

    def _items(self, last: str) -> Iterator[str]:
        """The first character of every item up to the closing bracket; the opening one comes next."""
        self.peek()
        self._at += 1
        if self.peek() == last:
            self._at += 1
            return
        yield self.peek()
        while self.peek() != last:
            self._take(",")
            yield self.peek()
        self._at += 1

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self._fault(f"Expecting {character!r} delimiter", self._at)
        self._at += 1

    def _read(self) -> bool:
        """Read on, at least as much as is left; whether there was more. Offsets in the text change if there was."""
        left = self._text[self._at :]
        if len(left) > MOST_CHARACTERS:
            raise AnnotationFormatError(
                self._path,
                f"one object has more than {MOST_CHARACTERS:,} characters, which do not fit in memory",
                where=f"line {self._line_of(self._at)}",
                mend="split it into several objects",
            )
        more = self._file.read(max(_CHUNK, len(left)))
        if not more:
            return False
        self._line = self._line_of(self._at)
        self._text, self._at = left + more, 0
        return True

    def _line_of(self, at: int) -> int:
        return self._line + self._text.count("\n", 0, at)

    def _constant(self, constant: str) -> float:
        self.has_nan = True
        return math.nan if constant == "NaN" else math.inf

    def _fault(self, reason: str, at: int) -> AnnotationFormatError:
        return AnnotationFormatError(
            self._path, f"is not JSON: {reason}", where=f"line {self._line_of(at)}", mend="export it again"
        )
