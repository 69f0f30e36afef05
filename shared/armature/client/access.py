"""Addresses and API key of the platform: from arguments, or else from the environment."""

from __future__ import annotations

import os

import httpx

from armature.client.errors import ConfigurationError

API_URL, DECODER_URL, API_KEY = "ARMATURE_API_URL", "ARMATURE_DECODER_URL", "ARMATURE_API_KEY"
"""Environment variables that replace missing arguments."""


def find_url(given: str | None, name: str, default: str | None = None) -> str:
    """Choose a service's address: the one given, else the environment variable's, else the default.

    Raises:
        ConfigurationError: There is none, or it is no HTTP address.
    """
    url = given or os.environ.get(name) or default
    if not url:
        raise ConfigurationError(f"{name} is not set: the address of the service, such as http://127.0.0.1:8000")
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{name} is not a valid address: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigurationError(f"{name} must begin with http:// or https:// and name a host")
    return url


def find_key(given: str | None = None) -> str:
    """Choose the API key: the one given, else that of the environment. No message repeats it.

    Raises:
        ConfigurationError: There is none, or it has characters that no key has.
    """
    key = given or os.environ.get(API_KEY)
    if not key:
        raise ConfigurationError(f"{API_KEY} is not set: an API key, ak_...")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"{API_KEY} contains blanks, line ends or other characters that no key has")
    return key
