"""docs/glossary.md is in order, and says where each term lives."""

from __future__ import annotations

import re

from tests.support.pages import table_rows
from tests.support.source_tree import TREE

TERMS = table_rows("docs/glossary.md", ("term", "meaning", "where"))


def test_terms_are_in_order_and_once() -> None:
    terms = [term.lower() for term, _, _ in TERMS]
    assert len(terms) > 30
    assert terms == sorted(set(terms))


def test_each_term_lives_in_files_that_exist() -> None:
    places = {term: re.findall(r"`([^`]+)`", where) for term, _, where in TERMS}
    assert [term for term, paths in places.items() if not paths or not TREE.issuperset(paths)] == []
