"""The demo's base model: a word-level tokenizer and a Llama trained on the world's dialogues."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from armature_cli.demo.world import World, vocabulary

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<user>", "<assistant>", "<end>"
CONTEXT_LENGTH = 256
WARMUP_STEPS = 20
IGNORED = -100

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + " ' + message['content'] + ' " + END + "' }}"
    "{% else %}{{ '" + USER + " ' + message['content'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer: one token per word, so every text of the world decodes to itself."""
    specials = [PAD, UNKNOWN, USER, ASSISTANT, END]
    vocabulary = {word: index for index, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Build an untrained Llama of 4 layers and about 0.9 million parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            initializer_range=0.06,  # about 1/sqrt(d); the usual 0.02 needs twice the steps at this size
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[tuple[str, str]],
    *,
    batch_size: int = 12,
    learning_rate: float = 4e-3,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> None:
    """Train on every dialogue once.

    AdamW, warm-up then cosine to zero; the loss is that of the answers, in nats per token.
    """
    batches = _batches(dialogues, batch_size)
    total = len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / total))
    )
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = answer_loss(model, *encode(tokenizer, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress(step, total, float(loss.detach()))
    model.eval()


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the labelled tokens; logits are computed for those positions alone."""
    hidden = model.model(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).last_hidden_state
    targets = labels[:, 1:]
    answered = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[:, :-1][answered]), targets[answered])


def _batches(dialogues: Sequence[tuple[str, str]], size: int) -> Sequence[Sequence[tuple[str, str]]]:
    """Batches of dialogues of similar length in random order: a fifth less padding to compute."""
    ordered = sorted(dialogues, key=lambda dialogue: len(" ".join(dialogue).split()))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    random.Random(len(ordered)).shuffle(batches)
    return batches


def encode(
    tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode dialogues as token ids and labels, each (batch, seq), padded on the right.

    Only tokens of answers have labels.
    """
    rows = []
    for prompt, answer in dialogues:
        question = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        end = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((start, end))
    width = max(len(start) + len(end) for start, end in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for index, (start, end) in enumerate(rows):
        stop = len(start) + len(end)
        ids[index, :stop] = torch.tensor(start + end)
        labels[index, len(start) : stop] = torch.tensor(end)
    return ids, labels


def raise_model(world: World, dialogues: int, folder: Path, progress: Callable[[int, int, float], None]) -> list[Path]:
    """Train a model on ``dialogues`` dialogues of the world and write it as a plain Hugging Face folder.

    Returns:
        The folder's files.
    """
    torch.set_num_threads(1)  # threads of such small steps mostly wait for each other
    tokenizer = build_tokenizer(vocabulary())
    model = build_model(tokenizer, world.seed)
    pretrain(model, tokenizer, world.dialogues(dialogues), progress=progress)
    shutil.rmtree(folder, ignore_errors=True)
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())
