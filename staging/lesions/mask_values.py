"""Which value of a mask means tumour: in masks from different sources 1, 2 and 255 mean different things."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from staging.errors import ConfigurationError

_MOST_NAMED = 8


def tumour_value_of(path: str | PathLike[str], present: Sequence[int], *, option: str) -> int | None:
    """Return the value of tumour among the values of a mask; None if it is all background.

    0 and 255 are CAMELYON16's, 0 and 1 ASAP's or a plain mask's; 2 is normal tissue in ASAP's masks and tumour in those
    of the object store, so it is never guessed.

    Args:
        path: file of the mask.
        present: its values, lowest first.
        option: the command-line option that gives the value, for the message.

    Raises:
        ConfigurationError: the values are ambiguous or unknown.
    """
    held = set(present)
    if held <= {0}:
        return None
    for value in (255, 1):
        if held <= {0, value}:
            return value
    shown = ", ".join(map(str, present[:_MOST_NAMED])) + (" ..." if len(present) > _MOST_NAMED else "")
    why = (
        ": 1 is tumour where ASAP wrote it, 2 in the masks of the object store"
        if held <= {0, 1, 2}
        else ", which match no known kind of mask"
    )
    raise ConfigurationError(path, f"has the values {shown}{why}", mend=f"say which is tumour with {option}")
