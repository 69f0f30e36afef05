"""Corrections of the framework's OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from fastapi import Query
from pydantic import BaseModel, Field

from armature.http.openapi import DescribedApp


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: dict[Annotated[str, Field(pattern="^[a-z]+$")], int] = {}
    seed: Annotated[int, Field(lt=2**63)] = 0


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.fixture
def document() -> dict[str, Any]:
    app = DescribedApp()

    @app.post("/owners")
    def adopt(owner: Owner, after: Annotated[int | None, Query(ge=1)] = None) -> None:
        """For its description only."""

    assert app.openapi() is app.openapi()
    return app.openapi()


def test_a_discriminator_is_required(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert [schemas[name]["required"] for name in ("Cat", "Dog", "Owner")] == [["kind"], ["kind"], ["pet"]]


def test_a_parameter_is_not_null(document: dict[str, Any]) -> None:
    (parameter,) = document["paths"]["/owners"]["post"]["parameters"]
    assert (parameter["required"], parameter["schema"]) == (False, {"type": "integer", "minimum": 1, "title": "After"})


def test_keys_fit_their_pattern_and_bounds_are_exact(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["Dog"]["properties"]
    assert fields["tricks"]["additionalProperties"] is False
    assert str(fields["seed"]["exclusiveMaximum"]) == str(2**63)
