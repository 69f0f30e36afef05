"""Data sets for training: batches by step, masks by length, restored trainer state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armature.contracts.datasets import Message
from armature.errors import InvalidRequest
from armature.modeling.tokenization.prompts import encode_chat
from armature_worker.data.tokenized import Example, batch_indices, by_length, collate, generator, stream_seed, tokenise
from armature_worker.training.trainer_state import load_trainer_state, save_trainer_state
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=7)


@given(seed=st.integers(0, 2**63 - 1), rows=st.integers(1, 20), batch_size=st.integers(1, 30))
def test_epochs_follow_each_other_and_each_is_a_permutation(seed: int, rows: int, batch_size: int) -> None:
    steps = -(-3 * rows // batch_size)
    drawn = [index for step in range(steps) for index in batch_indices(seed, step, rows, batch_size)]
    for epoch in range(3):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_streams_are_functions_of_their_names() -> None:
    assert stream_seed(1, 2, 3) == stream_seed(1, 2, 3)
    assert len({stream_seed(1), stream_seed(1, 1), stream_seed(1, 2), stream_seed(2, 1), stream_seed(1, 1, 1)}) == 5
    assert torch.equal(*(torch.rand(3, generator=generator(2**63 - 1, 7)) for _ in range(2)))


@pytest.mark.trap(4)
@given(LENGTHS)
def test_masks_come_from_lengths_and_not_from_the_pad_id(lengths: list[int]) -> None:
    examples = [Example([0] * length, length // 2) for length in lengths]
    batch = collate(examples, "cpu")
    assert batch.ids.shape == (len(lengths), max(lengths))
    assert batch.attention_mask.sum(-1).tolist() == lengths
    assert batch.completion_mask.sum(-1).tolist() == [length - length // 2 for length in lengths]
    for row, length in enumerate(lengths):
        assert batch.completion_mask[row].nonzero().flatten().tolist() == list(range(length // 2, length))


@given(LENGTHS, st.integers(1, 4))
def test_passes_see_every_row_once_in_order_of_length(lengths: list[int], batch_size: int) -> None:
    examples = [Example([1] * length, 1) for length in lengths]
    batches = list(by_length(examples, batch_size))
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert max(map(len, batches)) <= batch_size


def test_the_loss_sees_the_completion_and_its_end() -> None:
    for tokenizer in (byte_tokenizer(), byte_tokenizer(CHAT_TEMPLATE)):
        examples = tokenise(tokenizer, "hi", [" yes", " no"], 64)
        assert examples is not None
        for example, answer in zip(examples, (" yes", " no"), strict=True):
            completion = example.ids[example.completion_start :]
            assert tokenizer.decode(completion[:-1]) == answer
            assert completion[-1] == tokenizer.eos_token_id
        assert examples[0].ids[: examples[0].completion_start] == examples[1].ids[: examples[1].completion_start]


@pytest.mark.trap(17)
def test_cutting_keeps_the_front_and_drops_empty_completions() -> None:
    tokenizer = byte_tokenizer()
    cut = tokenise(tokenizer, "abc", ["defg"], 5)
    assert cut is not None
    assert tokenizer.decode(cut[0].ids) == "abcde"
    assert tokenise(tokenizer, "abc", ["defg"], 3) is None
    assert tokenise(tokenizer, "abc", ["defg"], 2) is None


def test_a_dialogue_is_a_prompt_under_the_models_own_template() -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    prompt = tuple(Message(role=role, content=content) for role, content in turns)
    (example,) = tokenise(tokenizer, prompt, ["answer"], 256) or []
    before = encode_chat(tokenizer, [{"role": role, "content": content} for role, content in turns])
    assert example.ids[: example.completion_start] == before
    assert tokenizer.decode(example.ids[example.completion_start : -1]) == "answer"
    single = tokenise(tokenizer, (Message(role="user", content="u"),), ["answer"], 256)
    assert single == tokenise(tokenizer, "u", ["answer"], 256)
    plain = byte_tokenizer()
    assert tokenise(plain, (Message(role="user", content="u"),), [" a"], 64) == tokenise(plain, "u", [" a"], 64)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenise(plain, prompt, [" a"], 64)


def test_a_restored_trainer_state_continues_bit_identically(tmp_path: Path) -> None:
    def run(steps: int, start: int = 0) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        parameters = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2, 2))}
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
        if start:
            assert load_trainer_state(tmp_path / "state", parameters, optimizer) == start
        for step in range(start, steps):
            optimizer.zero_grad()
            loss = sum(((p - step) ** 2).sum() for p in parameters.values())
            assert isinstance(loss, torch.Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return parameters, optimizer

    whole, _ = run(6)
    save_trainer_state(tmp_path / "state", 4, *run(4))
    resumed, _ = run(6, start=4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
