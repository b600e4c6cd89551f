"""How the help of every command looks: one style of placeholders, no line breaks of the source."""

from __future__ import annotations

import inspect
from copy import copy
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.models import ArgumentInfo, OptionInfo


class Group(TyperGroup):
    """A group of commands whose help shows a placeholder once, and none for flags."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401  (of typer, which does not export it)
        """Return the parameters of the group itself."""
        return _tidy(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Return a command of the group."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _tidy(command.get_params(ctx))
        return command


def _tidy(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if isinstance(one, TyperArgument):
            one.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005  (typer calls it)
        elif isinstance(one, TyperOption) and one.is_flag and one.metavar is None:
            one.metavar = ""
    return parameters


_OF_TYPES = {Path: "PATH", str: "TEXT", int: "N", float: "X", bool: ""}


def paragraphs(text: str) -> str:
    """A docstring with each paragraph as one line: the terminal breaks them."""
    return "\n\n".join(" ".join(one.split()) for one in inspect.cleandoc(text).split("\n\n"))


def with_placeholder(hint: object, name: str) -> object:
    """A parameter's annotation, its placeholder filled in: N, X, PATH, TEXT, the choices, or nothing for a flag."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *marks = get_args(hint)
    filled = [_filled(one, kind, name) for one in marks]
    return Annotated[(kind, *filled)]


def _filled(mark: object, kind: object, name: str) -> object:
    if not isinstance(mark, OptionInfo | ArgumentInfo) or mark.metavar is not None:
        return mark
    info = copy(mark)
    info.metavar = _placeholder(kind) if isinstance(mark, OptionInfo) else name.upper()
    return info


def _placeholder(kind: Any) -> str | None:  # noqa: ANN401  (any annotation)
    """What stands for a value of a type."""
    arguments = [one for one in get_args(kind) if one is not NoneType]
    origin = get_origin(kind)
    if origin is Literal:
        return "|".join(str(one) for one in arguments)
    if origin in (Union, UnionType, list):
        return _placeholder(arguments[0])
    if origin is tuple:
        return " ".join(str(_placeholder(one)) for one in arguments)
    return _OF_TYPES.get(kind)
