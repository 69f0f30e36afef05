"""The base of every contract (frozen, strict, no unknown fields, no NaN), ids and canonical JSON."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, WithJsonSchema


class FieldError(ValueError):
    """An error of a validator over several fields, about one of them.

    Args:
        field: The field's dotted path, from the validated model.
        message: The error, without the field's name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class Contract(BaseModel):
    """A frozen model that crosses a process boundary.

    ``strict`` refuses ``"0.5"`` for a number and ``true`` for 1. Literals replace enums, so that strictness holds for
    JSON and Python input alike.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="null", protected_namespaces=()
    )


class View(Contract):
    """The body of a response. Clients must tolerate new fields, so views are parsed leniently."""

    model_config = ConfigDict(extra="ignore", strict=False)
    _request_id: str | None = PrivateAttr(None)
    """Id of the answered request in the platform's logs; set by the client, as OpenAI's package does."""

    def answering(self, request_id: str | None) -> Self:
        """Set the id of the request that this view answers, and return the view."""
        self._request_id = request_id
        return self


def open_enum(values: Any) -> Any:
    """Annotate a view's string field with its current values; a client accepts later ones too."""
    return WithJsonSchema({"type": "string", "enum": list(get_args(values))})


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 in lower-case hex")]
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$",
        description="1 to 64 of a-z, 0-9, dot, underscore, hyphen; begins and ends with a letter or digit",
    ),
]
UnixSeconds = Annotated[int, Field(ge=0, description="seconds since the epoch, UTC")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

ID_PREFIXES = {
    "installation": "ins",
    "tenant": "ten",
    "api_key": "key",
    "file": "file",
    "dataset": "ds",
    "base_model": "mdl",
    "artifact": "art",
    "job": "job",
    "profile": "prf",
    "event": "evt",
}


def new_id(resource: str) -> str:
    """Make an id such as ``job_019a...``: prefix, 12 hex digits of the time in ms, 16 random ones.

    Ids of one kind sort by creation time, which keeps indexes and key-set pages in order.
    """
    return f"{ID_PREFIXES[resource]}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def canonical_json(value: Any) -> bytes:
    """Serialize a JSON value to its canonical bytes: sorted keys, no spaces, UTF-8, no NaN.

    Digests are taken over them.

    Raises:
        ValueError: The value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Compute the SHA-256 (hex) of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
