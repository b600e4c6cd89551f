"""How every command treats its paths: ``~`` is expanded, and its outputs are checked before any work.

A parameter says in its annotation that it is an output, and of what kind; every other path is an input.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from staging.commands.conditions import refuse_idle
from staging.commands.everywhere import Config, Quiet, Verbose, speak
from staging.commands.help_texts import paragraphs, with_placeholder
from staging.commands.notices import say
from staging.commands.options import OverrideMpp, Overwrite, Source
from staging.errors import ConfigurationError
from wsi.outputs import OutputKind, check_output, refuse_twins, refuse_unusable
from wsi.store import sweep_beside

EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

Made = Iterable[tuple[Path, OutputKind]]
Command = TypeVar("Command", bound=Callable[..., None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Marks a parameter as an output.

    Attributes:
        kind: its kind, given its path and all arguments of the command.
        beside: what else is written beside it, given the same.
        resumes: whether an earlier call was interrupted there, so that what it left is this command's own; given the
            same.
        is_kept: an earlier output is resumed or refused by the command, and never replaced.
    """

    kind: Callable[[Path, Mapping[str, Any]], OutputKind]
    beside: Callable[[Path, Mapping[str, Any]], Made] = lambda _path, _given: ()
    resumes: Callable[[Path, Mapping[str, Any]], bool] = lambda _path, _given: False
    is_kept: bool = False


def always(kind: OutputKind) -> Callable[[Path, Mapping[str, Any]], OutputKind]:
    """The same kind, whatever the arguments."""
    return lambda _path, _given: kind


def guarded(command: Command) -> Command:
    """Give a command its paths expanded, and only if the rule of ``wsi.outputs`` allows its outputs.

    One with ``slide_mpp`` gets ``--override-mpp``. A command with outputs gets ``--overwrite``, and is told of it if it
    has such a parameter. Every command gets the options of ``everywhere``, and placeholders in its help.
    """
    hints = get_type_hints(command, include_extras=True)
    outputs = {name: mark for name, hint in hints.items() if (mark := _mark(hint, Output)) is not None}
    texts = {name for name, hint in hints.items() if _mark(hint, Source) is not None}
    added: dict[str, Any] = {"verbose": Verbose, "quiet": Quiet, "config": Config}
    if "slide_mpp" in hints:
        added = {"override_mpp": OverrideMpp, **added}
    if "overwrite" not in hints and not all(mark.is_kept for mark in outputs.values()):
        added = {"overwrite": Overwrite, **added}

    signature = inspect.signature(command)

    @wraps(command)
    def checked(**given: Any) -> None:  # noqa: ANN401  (the command's own arguments)
        extra = {name: given.pop(name, False) for name in added}
        speak(verbose=extra["verbose"], quiet=extra["quiet"])
        given = {name: _expanded(value, is_path=name in texts) for name, value in given.items()}
        if extra.get("override_mpp"):
            given["slide_mpp"] = _overriding(extra["override_mpp"], given["slide_mpp"])
        given |= {name: _without_dots(path) for name in outputs if (path := given[name]) is not None}
        overwrite = (extra | given).get("overwrite", False)
        refuse_idle(signature, hints, given)
        inputs = [path for name, value in given.items() if name not in outputs for path in _paths(value, name in texts)]
        _check(outputs, given, inputs, overwrite=overwrite)
        try:
            command(**given)
        except KeyboardInterrupt:
            _hush()
            say("interrupted; a command that resumes goes on from here when it is called again")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    parameters = [
        *(one.replace(annotation=with_placeholder(hints[one.name], one.name)) for one in signature.parameters.values()),
        *(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if hint in (Config, OverrideMpp) else False,
                annotation=with_placeholder(hint, name),
            )
            for name, hint in added.items()
        ),
    ]
    checked.__annotations__ = hints | added
    checked.__doc__ = paragraphs(command.__doc__ or "")
    checked.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    del checked.__wrapped__  # typer would read the parameters there
    return checked  # type: ignore[return-value]


def _hush() -> None:
    """Say no more: what was left in the middle complains for pages while the interpreter ends."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None


def _overriding(um: float, other: object) -> object:
    """Return what --override-mpp means.

    Raises:
        ConfigurationError: --slide-mpp is given, too.
    """
    from wsi.readers.resolution import OverridingMpp  # noqa: PLC0415  (keeps --help quick)

    if other is not None:
        raise ConfigurationError(None, "--slide-mpp and --override-mpp exclude each other", mend="give only one")
    return OverridingMpp(um)


def _check(outputs: Mapping[str, Output], given: Mapping[str, Any], inputs: list[Path], *, overwrite: bool) -> None:
    named = {name: path for name in outputs if (path := given[name]) is not None}
    for path in named.values():
        refuse_unusable(path)
    refuse_twins(named.values())
    for name, path in named.items():
        output = outputs[name]
        is_own = overwrite or (path.name != "" and output.resumes(path, given))
        check_output(path, output.kind(path, given), inputs=inputs, overwrite=is_own)
        beside = list(output.beside(path, given))
        for other, kind in beside:
            check_output(other, kind, inputs=inputs, overwrite=is_own)
        for one in (path, *(other for other, _ in beside)):
            sweep_beside(one)


def _without_dots(path: Path) -> Path:
    """Return a path of which every folder that is still to be made is part of the result.

    ``new/../slide.tif`` is slide.tif as soon as ``new`` exists; ``.`` has no name that another could be derived from.
    """
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _mark(hint: object, kind: type[Any]) -> Any:  # noqa: ANN401  (an instance of the kind)
    """Return the mark of a kind in an annotation, if there is one."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, kind)), None)


def _expanded(value: Any, *, is_path: bool) -> Any:  # noqa: ANN401  (any argument)
    """Expand ``~`` in a path, or in each of several."""
    if isinstance(value, list):
        return [_expanded(one, is_path=is_path) for one in value]
    if isinstance(value, Path) or (is_path and isinstance(value, str) and value.startswith("~")):
        try:
            return type(value)(Path(value).expanduser())
        except RuntimeError:  # no such user: a file that is named so
            return value
    return value


def _paths(value: object, is_path: bool) -> Iterator[Path]:  # noqa: FBT001  (of the parameter)
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, Path) or (is_path and isinstance(one, str) and "://" not in one):
            yield Path(one)
