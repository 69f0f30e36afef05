"""Mistakes that others made in this field: each has a test of its name, wherever its code is."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TRAPS = {
    1: "guidance of weight zero is the base, also beside infinities",
    2: "the temperature acts on the product, once",
    3: "equal sizes of vocabularies do not make equal tokens",
    4: "masks come from lengths: the pad id may be the end of sequence",
    5: "tied tensors are one tensor",
    6: "differences of bfloat16 weights are lost unless taken, and kept, in float32",
    7: "the adapter's scale divides by the conditioned rank alone",
    8: "attributes are known by name, never by place",
    9: "a Dirichlet rarely visits the centroid and the vertices",
    10: "recomputed activations see the preference of their forward pass",
    11: "decoding uses the form of reward that training used",
    12: "the loss's beta is not the guidance weight",
    13: "for one pair all gradients are collinear: conflicts are resolved over a step",
    14: "tokens may merge across the seam of prompt and answer",
    15: "the beginning of sequence comes once",
    16: "stripping a phrase strips its characters",
    17: "a limit on the total length must not cut what is new",
    18: "rows that a filter drops stay dropped",
    19: "an adapter that depends on a preference can not be merged",
    20: "a cache belongs to the preference that it was made with",
    21: "a mean divides by as many as were summed",
    22: "judgements that are missing are counted and shown",
    23: "a sample does not depend on its neighbours",
    24: "harm in tests is a nonsense activity",
}


def test_each_trap_has_a_test_of_its_name():
    pattern = re.compile(r"^(?:async )?def test_t(\d+)_", re.MULTILINE)
    named = {int(number) for path in TESTS.rglob("test_*.py") for number in pattern.findall(path.read_text())}
    assert set(TRAPS) <= named


def test_t16_nothing_strips_a_phrase():
    """``text.strip("the answer")`` takes away any of those characters, not the phrase."""
    for path in (folder for root in ("services", "shared") for folder in (TESTS.parent / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("strip", "lstrip", "rstrip"):
                phrases = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert not any(sum(map(str.isalpha, phrase)) > 1 for phrase in phrases), f"{path}:{node.lineno}"
