"""API keys on the wire: read them from a request, compare them in constant time."""

from __future__ import annotations

import hmac
import re

from starlette.requests import Request

from armature.contracts.tenants import hash_secret, parse_key
from armature.errors import Unauthenticated

_BEARER = re.compile(r"bearer ([\x21-\x7e]{1,256})", re.IGNORECASE)
_NO_KEY = ("", hash_secret(""))
_NO_SECRET = hash_secret("no key has this secret: the token's alphabet has no spaces")


def bearer_token(request: Request) -> str:
    """Return the token of the request's only ``Authorization: Bearer`` header.

    Raises:
        Unauthenticated: The header is missing, repeated, or has another form.
    """
    headers = request.headers.getlist("authorization")
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise Unauthenticated("send your API key as 'Authorization: Bearer <key>'")
    return match[1]


def address_of(request: Request) -> str:
    """Return the client's address; behind a proxy, uvicorn reads it from the headers of trusted proxies."""
    return request.client.host if request.client else "unknown"


def split_token(token: str) -> tuple[str, str]:
    """Split a token into (key id, SHA-256 of the secret).

    A malformed token yields an id that no key has, so that it takes the same path and time as a wrong one.
    """
    return parse_key(token) or _NO_KEY


def same_secret(presented_sha256: str, stored_sha256: str | None) -> bool:
    """Compare two hashes in constant time; an unknown key (None) takes the same path as a wrong secret."""
    return hmac.compare_digest(presented_sha256, stored_sha256 or _NO_SECRET)
