"""Every kind of bad input that the platform promises to refuse has a test, and each test named here exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
_BODIES = "decoder/test_bad_input.py::test_a_body_that_is_not_strict_json_is_refused"
_FIELDS = "decoder/test_bad_input.py::test_a_wrong_field_is_named"
_SAFETENSORS = "modeling/test_safetensors_files.py::test_b6_30_34_35_36_headers_that_lie"
_CHECKPOINTS = "modeling/test_checkpoints.py::test_b6_38_40_files_that_are_no_model"
_PARTS = "api/test_profiles.py::test_b6_27_28_versions_that_can_not_work_are_refused"

BAD_INPUT: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("NaN for a weight", (_BODIES,)),
    2: ("an infinity, and a number too large for a double", (_BODIES,)),
    3: ("NaN in a body that is wrong anyway: no echo", ()),
    4: ("a preference of the wrong length, or for an unknown attribute", (_FIELDS, _PARTS)),
    5: (
        "negative weights, and none at all",
        (_FIELDS, "contracts/test_preferences.py::test_no_positive_weight_is_no_preference"),
    ),
    6: ("text for a number, true for 1", (_FIELDS,)),
    7: ("a key given twice", (_BODIES,)),
    8: ("an integer of 400 digits", ()),
    9: ("an integer of 5000 digits, brackets without end", (_BODIES,)),
    10: ("a lone surrogate", (_BODIES,)),
    11: ("a NUL in a text", ("http/test_strict_json.py::test_refusals_name_the_place_and_are_quick",)),
    12: ("fields that are the platform's own", (_FIELDS,)),
    13: ("UTF-16", ("http/test_strict_json.py::test_refusals_name_the_place_and_are_quick",)),
    14: ("bytes that are no UTF-8", (_BODIES,)),
    15: ("another content type", ()),
    16: ("a body that is too large, or too slow", (_BODIES,)),
    17: ("no body, null, a list", (_BODIES,)),
    18: ("sampling out of range", (_FIELDS,)),
    19: ("too many stop strings, too long ones, empty ones", (_FIELDS,)),
    20: ("a bias on a token that is not there", (_FIELDS,)),
    21: (
        "a prompt that is longer than the context",
        ("decoder/test_bad_input.py::test_a_huge_prompt_is_refused_unread",),
    ),
    22: (
        "a prompt that spells special tokens",
        (
            "modeling/test_prompts.py::test_user_text_never_becomes_a_special_token",
            "decoder/test_openai_client.py::test_special_tokens_in_a_prompt_are_text",
        ),
    ),
    23: ("dialogues that are none", (_FIELDS,)),
    24: ("a chat template of the client's", (_FIELDS,)),
    25: (
        "guidance and scales out of range",
        (_FIELDS, "contracts/test_specs.py::test_harm_scale_is_a_finite_number_of_at_least_zero"),
    ),
    26: ("another tenant's model", ()),
    27: (
        "an ARM of another base of the same shape",
        (_PARTS, "decoder/test_bundle_cache.py::test_b6_27_28_parts_that_were_not_made_for_each_other_are_refused"),
    ),
    28: (
        "an ARM of another tokenizer",
        (
            _PARTS,
            "modeling/test_checkpoints.py::test_tokenizer_digest_covers_tokens_and_ids_not_the_template",
        ),
    ),
    29: (
        "another adapter under the same name while requests run",
        ("decoder/test_hot_swap.py::test_an_alias_moves_under_load_and_every_stream_is_whole",),
    ),
    30: (
        "a safetensors header that lies",
        (_SAFETENSORS, "modeling/test_safetensors_files.py::test_b6_30_impossible_lengths"),
    ),
    31: (
        "weights that are not finite",
        ("modeling/test_safetensors_files.py::test_b6_31_non_finite_weights_are_found",),
    ),
    32: (
        "one flipped bit",
        (
            "modeling/test_safetensors_files.py::test_b6_32_one_flipped_bit_changes_the_hash",
            "decoder/test_hot_swap.py::test_a_corrupt_version_takes_nothing_down",
        ),
    ),
    33: (
        "700,000 tensors",
        ("modeling/test_safetensors_files.py::test_b6_33_seven_hundred_thousand_tensors_are_refused_at_once",),
    ),
    34: ("a tensor named twice", (_SAFETENSORS,)),
    35: ("tensor names that are paths", (_SAFETENSORS,)),
    36: ("tensors of other types", (_SAFETENSORS,)),
    37: (
        "missing, extra and renamed tensors",
        ("modeling/test_adapters.py::test_b6_37_loading_is_strict_about_tensors",),
    ),
    38: ("a pickle by another name", (_CHECKPOINTS,)),
    39: (
        "an adapter configuration that makes no sense",
        (
            "modeling/test_adapters.py::test_b6_39_loading_is_strict_about_the_config",
            "worker/recipes/test_arm_import.py::test_configs_that_mean_something_else_are_refused",
        ),
    ),
    40: ("a model configuration that brings code or has no size", (_CHECKPOINTS,)),
    41: ("files of odd shapes", ()),
    42: ("a bad line far down", ()),
    43: ("pairs without a difference, rows that mix forms", ()),
    44: ("no common prefix", ()),
    45: ("rows beyond all size", ()),
    46: ("labels and scores out of range", ()),
    47: (
        "harmful and harmless pairs swapped: no check sees it, the gate does",
        ("api/test_aliases.py::test_b6_64_a_gated_alias_moves_only_to_versions_that_passed",),
    ),
    48: ("a file of another purpose or tenant, or deleted", ()),
    49: ("a hostile file name", ()),
    50: ("bytes other than announced", ()),
    51: (
        "hyperparameters out of range",
        ("contracts/test_arm_spec.py::test_training_settings_out_of_range_are_refused",),
    ),
    52: (
        "a harm vector that is empty",
        ("worker/recipes/test_harm_vector.py::test_b6_52_nothing_to_learn_is_an_empty_vector",),
    ),
    53: ("the same data in two roles", ()),
    54: ("metadata beyond its bounds", ()),
    55: (
        "idempotency keys that are none, and that come again",
        (
            "api/test_idempotency.py::test_what_is_created_twice_with_one_key_is_there_once",
            "api/test_api_process.py::test_a_crowd_of_identical_posts_makes_one_job",
        ),
    ),
    56: ("cursors and limits", ()),
    57: ("ids that name nothing", ()),
    58: ("transitions that are not there", ()),
    59: ("wrong keys", ()),
    60: ("keys without the scope", ("decoder/test_route_authorisation.py::test_every_route_needs_a_key_of_its_scope",)),
    61: ("bursts", ()),
    62: ("headers and methods", ()),
    63: ("URLs of inner addresses", ()),
    64: (
        "racing moves of an alias, and versions that may not have it",
        ("api/test_aliases.py::test_of_racing_alias_moves_one_wins",),
    ),
}
"""What, and tests of it. Tests whose name begins with ``test_b6_`` and the numbers are found by themselves."""


def existing() -> set[str]:
    """Every test function as ``file::name``."""
    return {
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def numbers(test: str) -> set[int]:
    """The rows that a test's name says it is about."""
    found = set()
    for word in test.partition("::test_b6_")[2].split("_"):
        if not word.isdecimal():
            break
        found.add(int(word))
    return found


def test_every_kind_of_bad_input_has_its_tests() -> None:
    tests = existing()
    by_name = {number for test in tests for number in numbers(test)}
    assert set(BAD_INPUT) == set(range(1, 65))
    assert by_name <= set(BAD_INPUT)
    assert [number for number, (_, listed) in BAD_INPUT.items() if not listed and number not in by_name] == []
    assert {test for _, listed in BAD_INPUT.values() for test in listed} - tests == set()


@pytest.mark.parametrize(
    ("test", "rows"), [("a.py::test_b6_01_02_nan_4", {1, 2}), ("a.py::test_b6_nan", set()), ("a.py::test_1", set())]
)
def test_rows_are_read_from_names(test: str, rows: set[int]) -> None:
    assert numbers(test) == rows
