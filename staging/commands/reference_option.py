"""``-r``, ``--reference`` of commands that take the reference as an argument, so that it is ``-r`` everywhere."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

_ARGUMENTS = ("reference", "masks")


class TakesReference(TyperCommand):
    """A command whose first or last argument is the reference, which ``-r`` and ``--reference`` give, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  (of click, which typer hides)
        """Move what the option gives to the argument's end of the line."""
        first = next(one.name for one in self.params if isinstance(one, TyperArgument))
        given, others = ([], args) if ctx.resilient_parsing else _taken(args)  # a shell completes half a line
        return super().parse_args(ctx, [*given, *others] if first in _ARGUMENTS else [*others, *given])


def _taken(args: list[str]) -> tuple[list[str], list[str]]:
    """Split a line into what ``-r`` gives, and all the rest.

    Raises:
        BadParameter: it gives nothing.
    """
    end = args.index("--") if "--" in args else len(args)
    for at, word in enumerate(args[:end]):
        name, equals, value = word.partition("=")
        if name == "--reference" and equals:
            return [value], [*args[:at], *args[at + 1 :]]
        if word in ("-r", "--reference"):
            if at + 1 == end:
                raise typer.BadParameter(f"{word} needs the path of the reference")
            return [args[at + 1]], [*args[:at], *args[at + 2 :]]
        if word.startswith("-r") and word != "-r":
            return [word[2:]], [*args[:at], *args[at + 1 :]]
    return [], args
