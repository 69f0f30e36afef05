"""The twin forward equals two separate models, whatever shares the batch with it."""

from __future__ import annotations

import random

import pytest
import torch
from peft import PeftModel

from armature.errors import InvalidRequest
from armature.modeling.peft_pblora import preferences
from armature.modeling.twin_rows import TwinLogits, TwinRows
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ["empathy", "truthfulness", "helpfulness"]
VERTICES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return add_random_adapter(tiny_llama(seed=3), ATTRIBUTES)


def separate(model: PeftModel, ids: list[int], preference: list[float] | None) -> torch.Tensor:
    """The last position's logits of one sequence, without cache, padding or neighbours."""
    p = torch.tensor([preference or [0.0] * len(ATTRIBUTES)])
    with torch.inference_mode(), preferences(model, p, gate=torch.tensor([preference is not None])):
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


def assert_twin(
    model: PeftModel, logits: TwinLogits, slot: int, ids: list[int], preference: list[float] | None
) -> None:
    torch.testing.assert_close(logits.safe[slot], separate(model, ids, None), **TOLERANCE)
    torch.testing.assert_close(logits.arm[slot], separate(model, ids, preference), **TOLERANCE)


def test_twin_rows_equal_two_separate_forwards(model: PeftModel) -> None:
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    weights = [VERTICES[0], VERTICES[2], None]
    rows = TwinRows(model, len(ATTRIBUTES))
    logits = rows.join(prompts, weights)
    sequences = [list(prompt) for prompt in prompts]
    for _ in range(4):
        for slot, (ids, weight) in enumerate(zip(sequences, weights, strict=True)):
            assert_twin(model, logits, slot, ids, weight)
        tokens = logits.arm.argmax(-1)
        for ids, token in zip(sequences, tokens.tolist(), strict=True):
            ids.append(token)
        logits = rows.step(tokens)
    assert not torch.allclose(logits.safe[0], logits.arm[0], atol=1e-2)  # the adapter does something
    assert torch.equal(logits.safe[2], logits.arm[2])


def test_requests_join_and_leave_without_touching_each_other(model: PeftModel) -> None:
    draw = random.Random(0)
    rows, live = TwinRows(model, len(ATTRIBUTES)), []
    for _ in range(40):
        if live and draw.random() < 0.3:
            kept = sorted(draw.sample(range(len(live)), draw.randrange(len(live))))
            rows.keep(kept)
            live = [live[slot] for slot in kept]
        if live:
            tokens = [draw.randrange(3, 259) for _ in live]
            logits = rows.step(torch.tensor(tokens))
            for slot, (ids, weight) in enumerate(live):
                ids.append(tokens[slot])
                assert_twin(model, logits, slot, ids, weight)
        if len(live) < 5 and draw.random() < 0.5:
            joiners = [
                ([draw.randrange(3, 259) for _ in range(draw.randrange(1, 12))], draw.choice([*VERTICES, None]))
                for _ in range(draw.randrange(1, 3))
            ]
            logits = rows.join([ids for ids, _ in joiners], [weight for _, weight in joiners])
            for slot, (ids, weight) in enumerate(joiners):
                assert_twin(model, logits, slot, ids, weight)
            live += [(list(ids), weight) for ids, weight in joiners]
        assert len(rows) == len(live)


def test_a_plain_model_gives_generate_bit_for_bit() -> None:
    model, prompt = tiny_llama(seed=1), [4, 8, 15, 16, 23]
    reference = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    adapted = add_random_adapter(tiny_llama(seed=1), ATTRIBUTES)
    for rows in (TwinRows(model), TwinRows(adapted, len(ATTRIBUTES))):
        logits = rows.join([prompt], [None])
        for step, expected in enumerate(reference.logits):
            assert torch.equal(logits.safe, expected.float())
            logits = rows.step(reference.sequences[:, len(prompt) + step])


def test_padding_columns_are_cut_when_the_longest_row_leaves(model: PeftModel) -> None:
    rows = TwinRows(model, len(ATTRIBUTES))
    rows.join([list(range(3, 60)), [7, 8]], [None, VERTICES[1]])
    rows.keep([1])
    assert rows._kv is not None
    assert rows._kv.mask.shape == (2, 2)
    assert rows._kv.cache.layers[0].keys.shape[-2] == 2


def test_a_preference_needs_an_adapter_and_its_length(model: PeftModel) -> None:
    with pytest.raises(InvalidRequest):
        TwinRows(tiny_llama()).join([[3]], [[1.0]])
    rows = TwinRows(model, len(ATTRIBUTES))
    with pytest.raises(InvalidRequest):
        rows.join([[3]], [[1.0]])
    assert len(rows) == 0


def test_ids_past_the_vocabulary_are_dropped(model: PeftModel) -> None:
    assert TwinRows(model, len(ATTRIBUTES), vocab_size=200).join([[3]], [None]).safe.shape == (1, 200)
