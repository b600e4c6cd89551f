"""The options of every command: how much it says, and a file with its options."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from staging.errors import ConfigurationError
from wsi.errors import plain, without_secrets
from wsi.inputs import read_text

_PANEL = "Everywhere"
_FLOORS = ("wsi", "annotations", "staging")


def _read_options(context: typer.Context, path: Path | None) -> None:
    """Take the defaults of a command's options from its table in a TOML file.

    Raises:
        ConfigurationError: it cannot be read, has no such command, or the command no such option.
    """
    if path is None:
        return
    words = context.command_path.split()[1:]
    try:
        table: Any = tomllib.loads(read_text(path.expanduser()))
    except (OSError, ValueError, RecursionError) as error:
        nested = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else nested
        raise ConfigurationError(path, f"is no TOML file of options: {reason}", mend="see --help") from error
    _refuse_strangers(path, table, context.find_root().command)
    for word in words:
        table = table.get(word, {})
    names = {name.removeprefix("--"): one for one in context.command.params for name in one.opts if name[:2] == "--"}
    defaults = {}
    for key, value in table.items():
        option = names.get(key)
        if option is None or option.name is None or option.name == "config":
            raise ConfigurationError(
                path, f"{' '.join(words)} has no option --{key}", where=f"[{'.'.join(words)}]", mend="see its --help"
            )
        _refuse_boolean(path, option, value, where=f"[{'.'.join(words)}] {key}")
        try:
            option.process_value(context, value)
        except typer.BadParameter as error:
            reason = error.message.removeprefix("Value error, ").partition(" for <class")[0].rstrip(".")
            where = f"[{'.'.join(words)}] {key}"
            raise ConfigurationError(path, f"is {str(value)[:60]!r}: {reason}", where=where) from error
        defaults[option.name] = value
    context.default_map = defaults


def _refuse_boolean(path: Path, option: Any, value: object, *, where: str) -> None:  # noqa: ANN401  (of click)
    """Refuse true and false for an option that takes a value: they would be read as 1 and 0.

    Raises:
        ConfigurationError: it is one.
    """
    if isinstance(value, bool) and not getattr(option, "is_flag", False):
        raise ConfigurationError(path, f"is {str(value).lower()}, but the option takes a value", where=where)


def _refuse_strangers(path: Path, tables: dict[str, Any], group: Any, within: str = "") -> None:  # noqa: ANN401
    """Refuse what is in a file of options but is for no command, so that a misspelt one is not ignored.

    Raises:
        ConfigurationError: there is something.
    """
    for name, table in tables.items():
        command = group.commands.get(name)
        if command is None or not isinstance(table, dict):
            what = f"there is no command {within}{name}" if command is None else f"[{within}{name}] is not a table"
            mend = f"write [{name}] without quotes" if "." in name else "name tables like commands, as in [run]"
            raise ConfigurationError(path, what, mend=mend)
        if hasattr(command, "commands"):
            _refuse_strangers(path, table, command, f"{within}{name}.")


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also log on stderr, with a traceback for what was unexpected.", rich_help_panel=_PANEL
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress; warnings and errors remain.", rich_help_panel=_PANEL)
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with a table for each command, as in \\[run] threshold = 0.6; what is typed goes first.",
        show_default=False,
        callback=_read_options,
        is_eager=True,
        expose_value=False,
        rich_help_panel=_PANEL,
    ),
]


def speak(*, verbose: bool, quiet: bool) -> None:
    """Send the log to stderr, in lines that no name can forge."""
    for floor in _FLOORS:
        log = logging.getLogger(floor)
        log.setLevel(logging.DEBUG if verbose else logging.NOTSET)
        if not any(isinstance(one, _Lines) for one in log.handlers):
            log.addHandler(_Lines())
    logging.getLogger("staging.progress").setLevel(logging.ERROR if quiet else logging.NOTSET)


def is_quiet() -> bool:
    """Return whether the command prints no progress."""
    return not logging.getLogger("staging.progress").isEnabledFor(logging.WARNING)


class _Lines(logging.Handler):
    """Lines on stderr, as it is now; a traceback follows its line."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"sentinode: {plain(without_secrets(record.getMessage()))}", err=True)
        if record.exc_info:
            for line in logging.Formatter().formatException(record.exc_info).splitlines():
                typer.echo(plain(without_secrets(line)), err=True)
