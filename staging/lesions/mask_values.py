"""Which value of a mask means tumour: masks in the wild mean different things by 1, 2 and 255."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from staging.errors import ConfigurationError

_MOST_NAMED = 8


def tumour_value_of(path: str | PathLike[str], present: Sequence[int], *, option: str) -> int | None:
    """The value of tumour among those that a mask holds; None where it holds background only.

    0 and 255 are CAMELYON16's, 0 and 1 ASAP's or a plain mask's; 2 is normal tissue as ASAP writes it and tumour in the
    masks of the object store, so that it is never guessed.

    Args:
        path: of the mask.
        present: its values, lowest first.
        option: the command line's that says the value, for the message.

    Raises:
        ConfigurationError: the values may mean several things, or nothing known.
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
        else ", which are no known kind of mask"
    )
    raise ConfigurationError(path, f"holds the values {shown}{why}", mend=f"say which is tumour with {option}")
