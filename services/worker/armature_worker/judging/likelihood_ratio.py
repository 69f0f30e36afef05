"""The likelihood-ratio judge: under which of two instructions a model finds an answer likelier.

::

    s(y) = (log p(y | x, for) - log p(y | x, against)) / |y|        |y| in tokens
    margin = s(first) - s(second)

Source: DLMA (arXiv 2402.11907). The answer's own likelihood cancels, so fluent answers gain nothing; per token,
since a sum grows with the answer. What differs: the model is another one than the answers' writer, and the wording is
the one after that which the answers were written under, so that a quotation of the instruction gains little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from armature.algorithms.preference_loss import token_log_probs
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import Message, Prompt
from armature.errors import InvalidRequest
from armature.modeling.answer_logits import logits_at
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.dialogues import as_messages
from armature.modeling.tokenization.instructions import instruct
from armature_worker.context.ports import LocalArtifact
from armature_worker.data.tokenized import Example, collate, tokenise
from armature_worker.host.memory_estimate import JUDGED_LOGITS
from armature_worker.judging.port import Comparison, Verdict
from armature_worker.models.checkpoints import checkpoint_metadata

Scored = tuple[Prompt, str, str, int]
"""Prompt, answer, attribute, wording."""


class LikelihoodRatio:
    """A base model as a judge. Scores are kept: an answer that is compared several times is scored once.

    Args:
        artifact: The base model.
        device: The device to load onto.
        min_margin: Nats per token below which two answers are tied.
        chat: How dialogues are written.
    """

    def __init__(self, artifact: LocalArtifact, device: str, min_margin: float, chat: ChatFormat = AS_SENT) -> None:
        self.min_margin, self._chat = min_margin, chat
        self._device = device
        self._tokenizer = load_tokenizer(artifact.path)
        self._max_length = checkpoint_metadata(artifact).context_length
        self._model = load_model(artifact.path, device)
        self._scores: dict[Scored, float | None] = {}

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """See the port. An answer that does not fit into the context gets no verdict.

        Raises:
            InvalidRequest: The model can not encode a prompt below an instruction.
        """
        self._score(comparisons)
        return [Verdict(self._margin(comparison)) for comparison in comparisons]

    def _margin(self, comparison: Comparison) -> float | None:
        first, second = (self._scores[scored] for scored in _scored(comparison))
        return None if first is None or second is None else first - second

    def _score(self, comparisons: Sequence[Comparison]) -> None:
        """Score what was not scored before, likelihoods under both instructions in the same batches."""
        contrasts = {
            scored: comparison.rubric.contrast(comparison.wording + 1)
            for comparison in comparisons
            for scored in _scored(comparison)
            if scored not in self._scores
        }
        examples: list[Example] = []
        owners: list[Scored] = []
        for scored, instructions in contrasts.items():
            both = [self._encode(scored, instruction) for instruction in instructions]
            fits = [example for example in both if example is not None]
            if len(fits) < len(both):
                self._scores[scored] = None
                continue
            owners.append(scored)
            examples += fits
        means = self._mean_log_probs(examples)
        for index, scored in enumerate(owners):
            self._scores[scored] = means[2 * index] - means[2 * index + 1]

    def _encode(self, scored: Scored, instruction: str) -> Example | None:
        """Encode an answer below an instruction; None if the context has no room for all of it."""
        prompt, answer = scored[0], scored[1]
        plain = not self._tokenizer.chat_template
        messages = instruct(as_messages(prompt), instruction, plain=plain)
        instructed: Prompt = f"{messages[0]['content']}\n\n"  # two paragraphs, where no template parts the turns
        if not plain:
            instructed = tuple(Message.model_validate(message) for message in messages)
        try:
            encoded = tokenise(self._tokenizer, instructed, [answer], self._max_length + 1, self._chat)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="spec.prompts", code=error.error_code) from error
        return None if encoded is None or len(encoded[0].ids) > self._max_length else encoded[0]

    @torch.inference_mode()
    def _mean_log_probs(self, examples: Sequence[Example]) -> list[float]:
        """Compute the mean log-probability of each example's answer tokens, in nats."""
        means = [0.0] * len(examples)
        for rows in self._batches(examples):
            batch = collate([examples[row] for row in rows], self._device)
            with logits_at(self._model, batch.predictors):
                logits = self._model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False).logits
            by_token = token_log_probs(logits[0], batch.targets)
            counts = batch.completion_mask.sum(-1).tolist()
            for row, values in zip(rows, torch.split(by_token, counts), strict=True):
                means[row] = values.mean().item()
        return means

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Yield batches of similar lengths whose answers' logits stay within :data:`JUDGED_LOGITS`."""
        most = JUDGED_LOGITS // int(self._model.config.get_text_config().vocab_size)
        batch, tokens = list[int](), 0
        for row in sorted(range(len(examples)), key=lambda index: len(examples[index].ids)):
            own = len(examples[row].ids) - examples[row].completion_start
            if batch and tokens + own > most:
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += own
        if batch:
            yield batch


def _scored(comparison: Comparison) -> list[Scored]:
    return [(comparison.prompt, answer, comparison.attribute, comparison.wording) for answer in comparison.answers]
