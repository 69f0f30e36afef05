"""Tiny models that follow two pairs of instructions, for jobs that write contrasting answers and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from armature.modeling.checkpoints.loading import load_tokenizer
from tests.support.tiny_models import save_tiny_checkpoint, tiny_llama

_STEPS, _JUDGE_STEPS = 400, 300
NAMES = ("ann", "bob", "cyd", "eve")
RUBRICS = {
    "calm": {
        "description": "The answer is calm.",
        "instructions_for": ["be calm.", "stay calm."],
        "instructions_against": ["be loud.", "stay loud."],
    },
    "short": {
        "description": "The answer is short of words.",
        "instructions_for": ["say little.", "say few."],
        "instructions_against": ["say much.", "say all."],
    },
}
ANSWERS = {
    "be calm.": "we breathe with {0}.",
    "stay calm.": "we breathe with {0}.",
    "be loud.": "run {0} run away!",
    "stay loud.": "run {0} run away!",
    "say little.": "{0} can rest a bit.",
    "say few.": "{0} can rest a bit.",
    "say much.": "oh {0} the long road.",
    "say all.": "oh {0} the long road.",
}


def prompt_of(name: str) -> str:
    """The prompt about a name."""
    return f"{name} is sad."


def save_taught_checkpoints(teacher: Path, judge: Path) -> None:
    """Save a tiny Llama that answers each prompt below each instruction as :data:`ANSWERS` has it.

    The judge is the same model at an earlier step: it has other weights, and knows the answers less well.
    """
    for folder in (teacher, judge):
        save_tiny_checkpoint(folder)
    ids, mask = _rows(load_tokenizer(teacher))
    model = tiny_llama().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for step in range(_STEPS):
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == _JUDGE_STEPS:
            model.save_pretrained(judge)
    model.eval().save_pretrained(teacher)


def _rows(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    texts = [
        f"{instruction}\n\n{prompt_of(name)}{gap}{answer.format(name)}"
        for instruction, answer in ANSWERS.items()
        for name in NAMES
        for gap in ("", "\n\n")  # as a teacher's prompt ends, and as a judge reads it
    ]
    rows = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
