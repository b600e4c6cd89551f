from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.errors import PathologyError, SlideError, TileError, plain, without_secrets


def test_an_error_names_file_reason_and_mend_and_survives_a_pickle() -> None:
    error = TileError("a.tif", "cannot be decoded", where="level 0, tile row 3", mend="copy it again")
    assert str(error) == "a.tif, level 0, tile row 3: cannot be decoded (copy it again)"
    back = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
    assert (type(back), str(back), back.where) == (TileError, str(error), error.where)
    assert str(PathologyError(None, "is wrong")) == "is wrong"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pw@host/a%20b.tif?X-Amz-Signature=abc#f: cannot", "https://host/a%20b.tif: cannot"),
        ("s3://bucket/key.tif", "s3://bucket/key.tif"),
        ("s3://KEY:SECRET@bucket/key.tif", "s3://bucket/key.tif"),
        ("see https://host/x?sig=1 (try http://u@h/y?z=2)", "see https://host/x (try http://h/y)"),
        ("a.tif?x=1", "a.tif?x=1"),
    ],
)
def test_urls_are_shown_without_their_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert str(SlideError(None, text)) == shown


@given(st.text())
def test_what_is_shown_holds_no_control_character_and_plain_text_stays(text: str) -> None:
    shown = plain(text)
    assert shown.encode("utf-8").decode() == shown
    assert all(character.isprintable() or character.isspace() for character in shown)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert plain(shown) == shown
    if text.isprintable():
        assert shown == text


def test_a_message_cannot_forge_a_line() -> None:
    error = SlideError("a\nsentinode: all good\x1b[2J\udce9.tif", "is no slide")
    assert str(error) == r"a\nsentinode: all good\x1b[2J\udce9.tif: is no slide"


def test_a_message_is_not_as_long_as_what_it_is_about() -> None:
    assert len(str(PathologyError("a.csv", "x" * 10**6, mend="shorten it"))) < 5000
    assert str(PathologyError("a.csv", "x" * 10**6, mend="shorten it")).endswith("… (shorten it)")
