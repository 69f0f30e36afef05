"""What the OpenAPI document says more exactly than the framework does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

Schema = dict[str, Any]

_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
"""The framework makes floats of them, which beyond 2^53 are not the bounds any more."""


class DescribedApp(FastAPI):
    """An app whose document says what is accepted, no more."""

    def openapi(self) -> Schema:
        """The document; made once."""
        if not self.openapi_schema:
            document = super().openapi()
            for parameter in _parameters(document):
                _forbid_null(parameter["schema"])
            for schema in _objects(document):
                if "mapping" in schema.get("discriminator", {}):
                    _require_tag(document, schema["discriminator"])
                if "patternProperties" in schema:  # of keys that fit no pattern nothing is said otherwise
                    schema.setdefault("additionalProperties", False)
                if schema.get("type") == "integer":
                    schema.update({bound: int(schema[bound]) for bound in _BOUNDS & schema.keys()})
        return self.openapi_schema or {}


def _parameters(document: Schema) -> Iterator[Schema]:
    for operations in document["paths"].values():
        for operation in operations.values():
            yield from operation.get("parameters", [])


def _forbid_null(schema: Schema) -> None:
    """A parameter is there or not; what has no JSON can not be null."""
    options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
    schema.update(options[0] if len(options) == 1 else {"anyOf": options} if options else {})


def _objects(node: Any) -> Iterator[Schema]:
    """Every object within."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _objects(child)


def _require_tag(document: Schema, discriminator: Schema) -> None:
    """The field that tells members apart has to be sent, though in Python it has a default."""
    for reference in discriminator["mapping"].values():
        member = document["components"]["schemas"][reference.rpartition("/")[2]]
        required = member.setdefault("required", [])
        if discriminator["propertyName"] not in required:
            required.append(discriminator["propertyName"])
