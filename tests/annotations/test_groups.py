"""What groups mean: maps from files, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.annotation import GROUP_ROLES, Annotation, Group, Role
from annotations.errors import GroupMapError, MissingRoleError
from annotations.files.asap import read_asap, write_asap
from annotations.groups import GROUP_MAPS, ROLE_WORDS, group_map, read_group_map, require_role

SQUARE = np.array([(0.0, 0.0), (9.0, 0.0), (9.0, 9.0)])


def drawn(group: str, role: Role, kind: str = "Polygon") -> Annotation:
    return Annotation(name="a", group=group, role=role, kind=kind, vertices=SQUARE)


def file_of(folder: Path, text: str) -> Path:
    path = folder / "map.toml"
    path.write_text(text)
    return path


def test_a_map_gives_every_group_its_role(tmp_path: Path) -> None:
    text = (
        '[groups]\n"Lesion A" = "tumour"\nhole = "Cut out"\ncut = "cut-out"\ns = "tissue"\nfold = "ignore"\nt = "tumor"'
    )
    found = read_group_map(file_of(tmp_path, text))
    assert found == {
        "Lesion A": Role.TUMOUR,
        "hole": Role.CUT_OUT,
        "cut": Role.CUT_OUT,
        "s": Role.TISSUE,
        "fold": Role.IGNORE,
        "t": Role.TUMOUR,
    }
    assert set(ROLE_WORDS.values()) == set(Role)
    write_asap(tmp_path / "a.xml", [drawn("LESION A", Role.TUMOUR)])
    assert read_asap(tmp_path / "a.xml", found)[0].role is Role.TUMOUR


group_names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(group_names, st.sampled_from(sorted(ROLE_WORDS)), min_size=1, max_size=4))
def test_any_map_comes_back(tmp_path: Path, words: dict[str, str]) -> None:
    if len({name.strip().casefold() for name in words}) < len(words):
        return
    rows = "".join(
        '"' + "".join(f"\\U{ord(character):08X}" for character in name) + f'" = "{word}"\n'
        for name, word in words.items()
    )
    found = read_group_map(file_of(tmp_path, f"[groups]\n{rows}"))
    assert found == {name: ROLE_WORDS[word] for name, word in words.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[groups]\n"Lesion A" = "cancer"',
            r"'Lesion A': the role 'cancer' is unknown \(use one of tumour, cut out, tissue",
        ),
        ("[groups]\na = 1", "'a': the role '1' is unknown"),
        ("[groups]\n[groups.a]\nb = 'tumour'", "'a': the role "),
        ("[groups]\na = 'tumour'\nA = 'tissue'", "'a' has another role"),
        ("[groups]", r"no table \[groups\]"),
        ("", r"no table \[groups\]"),
        ("groups = 3", r"no table \[groups\]"),
        ("[group]\na = 'tumour'", r"no table \[groups\]"),
        ("a = 'tumour'\n[groups]\nb = 'tumour'", r"'a' beside \[groups\]"),
        ("[groups]\na = 'tumour'\na = 'tumour'", "is not TOML"),
        ("tumour", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(GroupMapError, match=message) as caught:
        read_group_map(path)
    assert str(path) in str(caught.value)


def test_a_missing_map_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(GroupMapError, match="there is no such file"):
            read_group_map(path)
    with pytest.raises(GroupMapError, match="camelyon16, camelyon17"):
        group_map("camelyon18")


def test_built_in_maps_agree_with_the_known_groups(tmp_path: Path) -> None:
    for name, roles in GROUP_MAPS.items():
        assert group_map(name.upper()) == roles
        assert all(GROUP_ROLES[group.casefold()] is role for group, role in roles.items())
    path = file_of(tmp_path, "[groups]\na = 'tissue'")
    assert group_map(path) == {"a": Role.TISSUE}


def test_a_role_that_is_there_is_enough() -> None:
    require_role([drawn("normal", Role.CUT_OUT), drawn("Tumor", Role.TUMOUR)], Role.TUMOUR)


@pytest.mark.parametrize(
    ("annotations", "listed"),
    [
        ([drawn("None", Role.CUT_OUT), drawn("tissue", Role.TISSUE)], r"None \(cut out of tumour\), tissue \(tissue\)"),
        ([drawn("Tumor", Role.TUMOUR, kind="PointSet")], r"Tumor \(tumour\)"),
        ([], "no annotations"),
    ],
)
def test_a_role_that_is_not_there_is_an_error(annotations: list[Annotation], listed: str) -> None:
    with pytest.raises(MissingRoleError, match=rf"a.xml: no outline with an area is tumour \(.*{listed}"):
        require_role(annotations, Role.TUMOUR, "a.xml")


@pytest.mark.parametrize("colour", [(0, 0, 256), (-1, 0, 0), (1, 2)])
def test_a_colour_is_three_bytes(colour: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="red, green, blue"):
        Group(name="a", colour=colour)  # type: ignore[arg-type]
