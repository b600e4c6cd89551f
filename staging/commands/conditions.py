"""Options that have an effect only beside another are refused without it, not ignored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from staging.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class OnlyIf:
    """Marks an option that has an effect only under a condition.

    Attributes:
        holds: whether it holds, given all arguments of the command.
        text: the condition, as in "--folds has no effect without --train".
    """

    holds: Callable[[Mapping[str, Any]], bool]
    text: str


def only_with(*names: str) -> OnlyIf:
    """Only beside one of these other options."""
    return OnlyIf(
        lambda given: any(bool(given[name]) for name in names), " or ".join(f"without {option(name)}" for name in names)
    )


def option(name: str) -> str:
    """Return how a parameter is typed."""
    return f"--{name.replace('_', '-')}"


def refuse_idle(signature: inspect.Signature, hints: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse options other than their defaults that have no effect.

    Raises:
        ConfigurationError: there is one.
    """
    for name, hint in hints.items():
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        for mark in marks:
            is_typed = isinstance(mark, OnlyIf) and given[name] != signature.parameters[name].default
            if is_typed and not mark.holds(given):
                raise ConfigurationError(None, f"{option(name)} has no effect {mark.text}", mend="leave it out")
