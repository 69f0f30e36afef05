"""Where the platform is, and with which key: what is given, or else the environment."""

from __future__ import annotations

import os

import httpx

from armature.client.errors import ConfigurationError

API_URL, DECODER_URL, API_KEY = "ARMATURE_API_URL", "ARMATURE_DECODER_URL", "ARMATURE_API_KEY"
"""Environment variables that stand in for arguments left out."""


def find_url(given: str | None, name: str, default: str | None = None) -> str:
    """A service's address: the one given, else that in the environment variable, else the default.

    Raises:
        ConfigurationError: There is none, or it is no address.
    """
    url = given or os.environ.get(name) or default
    if not url:
        raise ConfigurationError(f"{name} is not set: where the service answers, such as http://127.0.0.1:8000")
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{name} is no address: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigurationError(f"{name} must begin with http:// or https:// and name a host")
    return url


def find_key(given: str | None = None) -> str:
    """The API key: the one given, else that in the environment. No message repeats it.

    Raises:
        ConfigurationError: There is none, or it can not be one.
    """
    key = given or os.environ.get(API_KEY)
    if not key:
        raise ConfigurationError(f"{API_KEY} is not set: the key to use, ak_...")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"{API_KEY} holds blanks, line ends or other characters that no key has")
    return key
