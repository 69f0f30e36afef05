"""docs/methods has a page per job kind, and the page names every field of its spec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from armature.contracts.specs import SPECS

PAGES = Path(__file__).resolve().parents[3] / "docs" / "methods"


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models inside an annotation such as ``A | B | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, UnionType):
        for part in get_args(annotation):
            yield from models(part)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        for part in inner:
            yield from fields(part, f"{prefix}{name}.")
        if not inner and name not in {"kind", "type"}:
            yield prefix + name


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_every_field_is_on_the_page(kind: str) -> None:
    page = (PAGES / f"{SPECS[kind].__module__.rsplit('.', 1)[1]}.md").read_text()
    listed = list(fields(SPECS[kind]))
    assert listed
    missing = [name for name in listed if f"`{name}`" not in page and f"`{name.removeprefix('source.')}`" not in page]
    assert missing == []
