"""Corrections of FastAPI's OpenAPI document, which describes more than the routes accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

Schema = dict[str, Any]

_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
"""FastAPI converts them to floats, which are inexact beyond 2^53."""


class DescribedApp(FastAPI):
    """An app whose OpenAPI document describes exactly what is accepted."""

    def openapi(self) -> Schema:
        """Return the document, generated once and cached."""
        if not self.openapi_schema:
            document = super().openapi()
            for parameter in _parameters(document):
                _forbid_null(parameter["schema"])
            for schema in _objects(document):
                if "mapping" in schema.get("discriminator", {}):
                    _require_tag(document, schema["discriminator"])
                if "patternProperties" in schema:  # JSON Schema would allow keys that match no pattern
                    schema.setdefault("additionalProperties", False)
                if schema.get("type") == "integer":
                    schema.update({bound: int(schema[bound]) for bound in _BOUNDS & schema.keys()})
        return self.openapi_schema or {}


def _parameters(document: Schema) -> Iterator[Schema]:
    for operations in document["paths"].values():
        for operation in operations.values():
            yield from operation.get("parameters", [])


def _forbid_null(schema: Schema) -> None:
    """Remove the null alternative of a parameter: a query or header can be absent, not null."""
    options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
    schema.update(options[0] if len(options) == 1 else {"anyOf": options} if options else {})


def _objects(node: Any) -> Iterator[Schema]:
    """Yield every object nested in ``node``, itself included."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _objects(child)


def _require_tag(document: Schema, discriminator: Schema) -> None:
    """Mark the discriminator field as required in each member, despite its default in Python."""
    for reference in discriminator["mapping"].values():
        member = document["components"]["schemas"][reference.rpartition("/")[2]]
        required = member.setdefault("required", [])
        if discriminator["propertyName"] not in required:
            required.append(discriminator["propertyName"])
