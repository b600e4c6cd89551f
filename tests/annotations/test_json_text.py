"""JSON taken value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotations.files.json_text import JsonText

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(json_values, max_size=6),
    around=st.dictionaries(st.text(max_size=4).filter(lambda name: name != "features"), json_values, max_size=3),
    layout=st.tuples(st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans()),
)
def test_reading_in_pieces_takes_what_reading_at_once_does(
    tmp_path: Path, values: list[Any], around: dict[str, Any], layout: tuple[int, int | None, bool]
) -> None:
    chunk, indent, is_ascii = layout
    whole = {**around, "features": values, "after": around}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole, indent=indent, ensure_ascii=is_ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr("annotations.files.json_text._CHUNK", chunk)
        text = JsonText(path, file)
        found: dict[str, Any] = {}
        for name in text.names():
            found[name] = list(text.elements()) if name == "features" else text.value()
        text.end()
    assert found == json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values, indent=indent))
    with path.open("rb") as file:
        assert JsonText(path, file).value() == values
