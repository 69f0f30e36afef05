"""What the reference back end promises beyond the suite of all back ends (``test_backends.py``)."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from armature.inference.transformers.runner import TransformersRunner
from tests.support.adapters import add_random_adapter
from tests.support.rows import TwinRows, join_rows
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ["empathy", "truthfulness", "helpfulness"]
VERTICES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return add_random_adapter(tiny_llama(seed=3), ATTRIBUTES)


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
    for runner in (TransformersRunner(model), TransformersRunner(adapted, len(ATTRIBUTES))):
        rows = TwinRows(runner)
        logits = join_rows(rows, [prompt], [None])
        for step, expected in enumerate(reference.logits):
            assert torch.equal(logits.safe, expected.float())
            logits = rows.step(reference.sequences[:, len(prompt) + step])


def test_padding_columns_are_cut_when_the_longest_row_leaves(model: PeftModel) -> None:
    runner = TransformersRunner(model, len(ATTRIBUTES))
    rows = TwinRows(runner)
    join_rows(rows, [list(range(3, 60)), [7, 8]], [None, VERTICES[1]])
    rows.keep([1])
    (group,) = runner._groups
    assert group.kv.mask.shape == (2, 2)
    assert group.kv.cache.layers[0].keys.shape[-2] == 2
