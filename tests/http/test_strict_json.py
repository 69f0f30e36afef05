"""The strict parser reads all valid JSON, and refuses anything else with a reason."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.errors import ArmatureError
from armature.strict_json import MAX_DEPTH, parse_json

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)


@given(values, st.booleans())
def test_sane_json_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=100) | st.text(alphabet='{}[]",:0123456789eE.+-\\u dfNaIinty', max_size=60).map(str.encode))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    with contextlib.suppress(ArmatureError):
        parse_json(data)


REFUSED = {
    "NaN": (b'{"a": [NaN]}', 422, "non_finite_number", "a.0"),
    "Infinity": (b'{"a": {"b": -Infinity}}', 422, "non_finite_number", "a.b"),
    "1e999": (b'{"a": 1e999}', 422, "non_finite_number", "a"),
    "duplicate key": (b'{"a": {"b": 1, "b": 1}}', 400, "duplicate_key", None),
    "400 digits": (b'{"a": ' + b"9" * 400 + b"}", 422, "invalid_request", "a"),
    "5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", 400, "malformed_body", None),
    "200k brackets": (b"[" * 200_000, 400, "malformed_body", None),
    "balanced brackets": (b"[" * 900 + b"]" * 900, 400, "malformed_body", None),
    "lone surrogate": (b'{"a": ["\\ud800"]}', 422, "invalid_request", "a.0"),
    "surrogate in a key": (b'{"a": {"\\udfff": 1}}', 422, "invalid_request", "a"),
    "NUL": (b'{"a": "x\\u0000y"}', 422, "invalid_request", "a"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), 400, "malformed_body", None),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), 400, "malformed_body", None),
    "bad UTF-8": (b'{"a": "\xc3\x28"}', 400, "malformed_body", None),
    "overlong UTF-8": (b'{"a": "\xc0\x80"}', 400, "malformed_body", None),
    "trailing comma": (b'{"a": 1,}', 400, "malformed_body", None),
    "two values": (b"{} {}", 400, "malformed_body", None),
    "single quotes": (b"{'a': 1}", 400, "malformed_body", None),
    "comment": (b"{} // x", 400, "malformed_body", None),
    "nothing": (b"", 400, "malformed_body", None),
}


@pytest.mark.bad_input(11, 13)
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_place_and_are_quick(name: str) -> None:
    data, status, code, param = REFUSED[name]
    started = time.perf_counter()
    with pytest.raises(ArmatureError) as refused:
        parse_json(data)
    assert time.perf_counter() - started < 0.05
    assert (refused.value.status, refused.value.error_code, refused.value.param) == (status, code, param)


def test_values_just_within_the_limits_are_read() -> None:
    assert parse_json(b"\xef\xbb\xbf" + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(str(2**64).encode()) == 2**64
