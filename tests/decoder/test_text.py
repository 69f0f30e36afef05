"""Text leaves whole: no half characters, nothing of a stop string, and streaming adds up to the whole."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from armature_decoder.text import Detokenizer, StopStrings
from tests.support.tiny_models import byte_tokenizer

BYTES = byte_tokenizer()


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with a leading-space mark, and bytes as a fallback."""
    words = ["▁hello", "▁world", "lo", "é"]
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


PIECES = sentencepiece_like()


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int], prefix: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prefix or [])
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@given(st.text(max_size=40))
def test_any_text_survives_byte_by_byte(text: str) -> None:
    pieces = streamed(BYTES, BYTES(text, add_special_tokens=False).input_ids)
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces) or "�" in text


def test_a_character_appears_with_its_last_byte() -> None:
    ids = BYTES("a€", add_special_tokens=False).input_ids
    assert streamed(BYTES, ids) == ["a", "", "", "€", ""]
    assert streamed(BYTES, ids[:3]) == ["a", "", "", "�"]


def test_special_tokens_have_no_text() -> None:
    assert "".join(streamed(BYTES, [BYTES.eos_token_id, *BYTES("x", add_special_tokens=False).input_ids])) == "x"


def test_the_leading_space_depends_on_what_came_before() -> None:
    hello, world = PIECES.convert_tokens_to_ids(["▁hello", "▁world"])
    assert streamed(PIECES, [hello, world]) == ["hello", " world", ""]
    assert streamed(PIECES, [world], prefix=[hello]) == [" world", ""]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["byte level", "byte fallback"])
def test_random_ids_are_held_back_for_one_character_at_most(tokenizer: PreTrainedTokenizerFast) -> None:
    for seed in range(100):
        draw = random.Random(seed)
        ids = [draw.randrange(len(tokenizer)) for _ in range(40)]
        detokenizer = Detokenizer(tokenizer)
        for id in ids:
            detokenizer.push(id)
            assert len(detokenizer._ids) - detokenizer._done <= 9


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_cut_at_the_first_hit_however_the_text_is_split(pieces: list[str], stops: list[str]) -> None:
    text, cutter, shown = "".join(pieces), StopStrings(stops), ""
    for piece in pieces:
        shown += cutter.push(piece)
        if cutter.hit:
            break
    shown += cutter.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
    else:  # a longer stop that begins earlier may still have been unfinished when a shorter one was whole
        assert cutter.hit
        assert shown == text[: len(shown)]
        assert any(text.startswith(stop, len(shown)) for stop in stops)
        assert not any(stop in shown for stop in stops)


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    cutter = StopStrings(["END"])
    assert [cutter.push(piece) for piece in ("so E", "N", "X E", "N", "D more")] == ["so ", "", "ENX ", "", ""]
    assert cutter.hit
