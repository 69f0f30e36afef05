"""Strict JSON: UTF-8, distinct keys, finite and bounded numbers, text that the database can store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from armature.errors import DuplicateKey, InvalidRequest, MalformedBody, NonFiniteNumber

MAX_DEPTH = 64
MAX_INTEGER = 2**64
_LONG_INTEGER = 400
"""Digits from which an integer is beyond a double, too."""
_EXACT = 2**53
"""Below this bound every whole float stands for exactly one integer."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(data: bytes, *, max_integer: int = MAX_INTEGER, whole_floats: bool = True) -> Any:
    """Parse a JSON text in UTF-8, with or without a byte-order mark.

    Args:
        data: The text.
        max_integer: The largest magnitude of an integer.
        whole_floats: Keep ``2.0`` a float. If off, it becomes an integer, which JSON Schema and the contracts accept
            for one.

    Raises:
        MalformedBody: Not UTF-8, not JSON, or nested deeper than :data:`MAX_DEPTH`.
        DuplicateKey: An object has a key twice.
        NonFiniteNumber: NaN, an infinity, or a number too large for a double.
        InvalidRequest: An integer beyond ``max_integer``, or text with a NUL or a lone surrogate (the database can not
            store the one, UTF-8 not encode the other).
    """
    try:
        parse_float = float if whole_floats else _number
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct_keys, parse_float=parse_float)
    except UnicodeDecodeError:
        raise MalformedBody("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, thousands of open brackets
        raise MalformedBody("not valid JSON: a number is too long or the nesting too deep") from None
    _check(value, max_integer)
    return value


class Repeated(dict[str, Any]):
    """An object that has some of its keys twice; :func:`check_json` refuses it."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = frozenset(name for name in self if names.count(name) > 1)


def read_json(text: str) -> Any:
    """Parse a JSON text whatever its values are, for :func:`check_json` to judge those that count.

    NaN and infinities become floats, an integer of hundreds of digits becomes infinity, and an object with a key twice
    becomes :class:`Repeated`.

    Raises:
        MalformedBody: Not JSON, or nested too deep to parse.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise MalformedBody("not valid JSON: the nesting is too deep") from None


def check_json(value: Any, max_integer: int = MAX_INTEGER) -> None:
    """Refuse what a parsed JSON value may hold and the platform can not use; raises as :func:`parse_json`."""
    _check(value, max_integer)


def _any_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else Repeated(pairs)


def _any_integer(text: str) -> float:
    return int(text) if len(text) < _LONG_INTEGER else math.inf  # int() of thousands of digits raises


_DECODER = json.JSONDecoder(object_pairs_hook=_any_keys, parse_int=_any_integer)


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise DuplicateKey("an object has a key twice")
    return value


def _check(value: Any, max_integer: int) -> None:
    """Check every scalar and the depth, with an explicit stack instead of recursion."""
    _check_scalar(value, max_integer, "")
    pending: list[tuple[str, int, Any]] = [("", 1, value)]
    while pending:
        path, depth, container = pending.pop()
        if depth > MAX_DEPTH:
            raise MalformedBody(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(container, Repeated):
            raise DuplicateKey("an object has a key twice", param=path or None)
        for key, child in _items(container):
            _check_scalar(key, MAX_INTEGER, path)
            if isinstance(child, dict | list):
                pending.append((_join(path, key), depth + 1, child))
            else:
                _check_scalar(child, max_integer, path, key)


def _items(container: Any) -> Iterable[tuple[str | int, Any]]:
    match container:
        case dict():
            return container.items()
        case list():
            return enumerate(container)
        case _:
            return ()


def _check_scalar(value: Any, max_integer: int, path: str, key: str | int = "") -> None:
    """Refuse a scalar that can not be stored. Its ``path`` and ``key`` are joined only for an error."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteNumber("must be a finite number", param=_join(path, key) or None)
    if isinstance(value, int) and abs(value) > max_integer:
        raise InvalidRequest(
            f"the integer does not fit into {max_integer.bit_length() - 1} bits", param=_join(path, key) or None
        )
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidRequest("text must not contain NUL characters", param=_join(path, key) or None)
        if not value.isascii() and _SURROGATE.search(value):
            raise InvalidRequest("text must not contain lone surrogates", param=_join(path, key) or None)


def _join(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path and key != "" else path or str(key)
