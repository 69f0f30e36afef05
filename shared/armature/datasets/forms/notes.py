"""What reading a row left out or changed, by code, so that a scan can tell the counts."""

from __future__ import annotations

from collections import Counter

Notes = Counter[str]
NOTES = {
    "empty_answers": "rows have an empty answer and are left out",
    "different_prompts": "pairs differ before their last answer and are left out",
    "tool_messages": "messages of tools and calls of tools are left out",
    "repeated_prompts": "answers began with their prompt; that beginning is cut off",
    "other_prompts": "prompts are no message of their own dialogue, which is used without them",
    "unpaired_ranks": "answers of middle or equal rank have no partner and are left out",
    "unrated_answers": "answers have no rating and are left out",
    "later_turns": "later questions of a row are left out; the first is the prompt",
}
"""Code to message; the count goes before."""
