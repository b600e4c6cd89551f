"""What groups of annotations mean: maps from group names to roles, built in or from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from annotations.annotation import Annotation, Role, group_key
from annotations.errors import GroupMapError, MissingRoleError
from annotations.files.xml import shortened
from wsi.inputs import read_text

# The organisers' own groups, for callers who want only these to take precedence over the known ones.
GROUP_MAPS: Mapping[str, Mapping[str, Role]] = MappingProxyType(
    {
        "camelyon16": MappingProxyType(
            {
                "_0": Role.TUMOUR,
                "_1": Role.TUMOUR,
                "_2": Role.CUT_OUT,
                "Tumor": Role.TUMOUR,
                "Exclusion": Role.CUT_OUT,
                "None": Role.CUT_OUT,
            }
        ),
        "camelyon17": MappingProxyType({"metastases": Role.TUMOUR, "normal": Role.CUT_OUT}),
    }
)

ROLE_WORDS: Mapping[str, Role] = MappingProxyType(
    {"tumour": Role.TUMOUR, "cut out": Role.CUT_OUT, "tissue": Role.TISSUE, "ignore": Role.IGNORE}
)
_SPELLINGS = {"tumor": "tumour", "cut-out": "cut out", "cut_out": "cut out"}
_TABLE = "groups"
_EXAMPLE = 'write for example [groups] and "Lesion A" = "tumour"'


def group_map(name_or_file: str | Path) -> dict[str, Role]:
    """A group map by its name (``camelyon16``, ``camelyon17``, in any case) or from a TOML file.

    Raises:
        GroupMapError: there is no such map or file, or the file is not a group map.
    """
    built_in = GROUP_MAPS.get(str(name_or_file).casefold())
    if built_in is not None:
        return dict(built_in)
    if not Path(name_or_file).exists():
        raise GroupMapError(
            name_or_file, "there is no such group map", mend=f"name a TOML file or one of {', '.join(GROUP_MAPS)}"
        )
    return read_group_map(name_or_file)


def read_group_map(path: str | Path) -> dict[str, Role]:
    """Read a group map from a TOML file: a table ``[groups]`` of group names and roles.

    The roles are ``tumour``, ``cut out``, ``tissue`` and ``ignore``. The map is meant for the readers' ``groups``
    argument: its groups take precedence over the built-in ones, and case does not matter.

    Raises:
        GroupMapError: no file, not TOML, no table ``[groups]``, an empty one, a role that does not exist, or two groups
            that differ only in case; names the key and the allowed words.
    """
    path = Path(path)
    table = _table(path)
    roles: dict[str, Role] = {}
    seen: dict[str, str] = {}
    for name, word in table.items():
        where = f"[{_TABLE}] {shortened(name)!r}"
        role = _role(word)
        if role is None:
            raise GroupMapError(
                path,
                f"the role {shortened(word)!r} is unknown",
                where=where,
                mend=f"use one of {', '.join(ROLE_WORDS)}",
            )
        twin = seen.setdefault(group_key(name), name)
        if twin != name and roles[twin] is not role:
            raise GroupMapError(
                path, f"{twin!r} has another role, and case does not matter", where=where, mend="keep one of them"
            )
        roles[name] = role
    return roles


def has_role(annotations: Iterable[Annotation], role: Role) -> bool:
    """Whether any annotation is an outline with an area and the given role."""
    return any(annotation.role is role and annotation.outline is not None for annotation in annotations)


def require_role(
    annotations: Iterable[Annotation], role: Role, path: str | Path | None = None, *, unless: str = "give --allow-empty"
) -> None:
    """Refuse annotations none of which is an outline with an area and the given role.

    Otherwise a wrong group map leads to blank masks without an error: the commonest failure with annotation files.

    Args:
        annotations: of one slide.
        role: the required role.
        path: the file that they were read from, for the message.
        unless: what to do if the file is right, for the message.

    Raises:
        MissingRoleError: there is none; the message lists the groups found and what they mean.
    """
    annotations = tuple(annotations)
    if has_role(annotations, role):
        return
    found = {annotation.group: annotation.role for annotation in reversed(annotations)}
    listed = ", ".join(f"{shortened(group)} ({meaning.value})" for group, meaning in sorted(found.items()))
    raise MissingRoleError(
        path,
        f"no outline with an area is {role.value}",
        where=None,
        mend=f"set the right roles with --groups, or {unless}; the file has {listed or 'no annotations'}",
    )


def _table(path: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(read_text(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise GroupMapError(path, "there is no such file", mend="check the path") from error
    except OSError as error:
        raise GroupMapError(path, f"cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise GroupMapError(path, f"is not TOML: {error}", mend=_EXAMPLE) from error
    table = content.get(_TABLE)
    if not isinstance(table, dict) or not table:
        raise GroupMapError(path, f"has no table [{_TABLE}] with groups", mend=_EXAMPLE)
    unknown = sorted(set(content) - {_TABLE})
    if unknown:
        raise GroupMapError(
            path, f"has {unknown[0]!r} beside [{_TABLE}]", mend=f"move groups into the table [{_TABLE}]"
        )
    return table


def _role(word: object) -> Role | None:
    if not isinstance(word, str):
        return None
    plain = word.strip().casefold()
    return ROLE_WORDS.get(_SPELLINGS.get(plain, plain))
