"""Evaluate a model: sample and score answers, with or without guidance, and measure given answers.

The model is a backbone (a base, with or without a harm vector subtracted), optionally guided by an ARM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.answer_patterns import PatternScorer
from armature.algorithms.lexicon import AnswerScore, LexiconScorer
from armature.algorithms.preference_loss import sequence_log_probs
from armature.algorithms.safe_sets import critical_gaps
from armature.contracts.artifacts import CheckpointMetadata
from armature.contracts.datasets import Lexicon
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import InvalidDataset
from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel, eos_token_ids, vocabulary_size
from armature.inference.sampler import Sampled
from armature.modeling.checkpoints.loading import load_tokenizer
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import Example, RowEncoder, by_length, collate, load_rows, try_rows
from armature_worker.evaluation.requests import EvaluationRequest, RequestBuilder
from armature_worker.models.arm import attach_arm, find_arm
from armature_worker.models.backbone import describe_backbone, load_backbone

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, token ids, completion mask) of a batch -> one figure per row."""
ReportProgress = Callable[[str, int, int], None]
"""(role of the data set, done, total); raises to stop the job, as :meth:`RecipeContext.progress` does."""


@dataclass(frozen=True)
class ScoredAnswer:
    """A sampled answer, its score, and how far guidance moved it, in nats per token."""

    request: EvaluationRequest
    text: str
    score: AnswerScore
    divergence: float

    def as_row(self) -> dict[str, Any]:
        """Format the answer as a row of ``samples.jsonl``."""
        prompt = self.request.prompt
        shown = prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
        request = {"prompt": shown, "preference": self.request.preference}
        return {**request, "answer": self.text, **asdict(self.score), "kl_to_safe": self.divergence}


class Evaluator:
    """A loaded model, guided or not, and the scorer of its answers."""

    def __init__(self, spec: EvaluationRunSpec, context: RecipeContext, progress: ReportProgress | None = None) -> None:
        """Load all that the spec names. Progress goes to ``context`` unless ``progress`` is given.

        Raises:
            AdapterBaseMismatch: The ARM or the harm vector was made for another model.
            InvalidDataset: The lexicon does not score one of the attributes, or the chat template refuses a row.
            InvalidRequest: The ARM does not know one of the attributes.
            TokenizerMismatch: A separate ARM's model has other tokens.
        """
        self.spec, self._device, self._progress = spec, context.device, progress or context.progress
        base = context.artifacts["base_model"]
        assert isinstance(base.manifest.metadata, CheckpointMetadata)
        self.backbone = describe_backbone(spec, context)
        self.tokenizer = load_tokenizer(base.path)
        self.context_length = base.manifest.metadata.context_length
        self._scorer = _load_scorer(spec, context)
        arm = find_arm(spec, context, self.tokenizer)
        self._builder = RequestBuilder(spec, self.tokenizer, self.context_length, arm)
        try_rows(spec, context, self.tokenizer, spec.chat)
        self._model = load_backbone(spec, context)
        known = vocabulary_size(self.tokenizer, self._model)
        plain = GuidedModel(self._model, eos_token_ids(self._model, self.tokenizer), known)
        self._guided = plain if arm is None else attach_arm(plain, arm, context)

    @property
    def guided(self) -> bool:
        """Whether an ARM guides the backbone."""
        return bool(self._guided.attributes)

    @property
    def backbone_model(self) -> PreTrainedModel:
        """The backbone; a caller that edits its weights in place must undo that."""
        return self._model

    def encoder(self, context: RecipeContext, role: str) -> RowEncoder:
        """Make the encoder of the rows of a data set."""
        return RowEncoder.of(context, role, self.tokenizer, self.spec.chat)

    def answer(self, requests: Sequence[EvaluationRequest], role: str) -> list[ScoredAnswer]:
        """Sample and score an answer to each request; report progress under the data set's role.

        All requests are encoded first, so that a bad one fails before any is sampled.

        Raises:
            ContextLengthExceeded: A prompt leaves no room for ``max_tokens``.
            InvalidRequest: A model can not encode a prompt, or the instruction above it.
        """
        answers: list[ScoredAnswer] = []
        size = self.spec.sampling.batch_size
        encoded = [self._builder.build(request, role) for request in requests]
        for start in range(0, len(requests), size):
            self._progress(role, start, len(requests))
            part = slice(start, start + size)
            sequences = sample_sequences(self._guided, encoded[part], max_slots=size)
            answers += [self._score(request, tokens) for request, tokens in zip(requests[part], sequences, strict=True)]
        self._progress(role, len(requests), len(requests))
        return answers

    def log_likelihoods(self, examples: Sequence[Example], role: str) -> list[float]:
        """Compute each completion's log-probability under the backbone, the ARM off, in nats."""
        return self._measure(examples, role, sequence_log_probs)

    def critical_gaps(self, examples: Sequence[Example], role: str) -> list[float]:
        """Compute the delta below which the safe set excludes each completion, in nats."""
        return self._measure(examples, role, critical_gaps)

    @torch.inference_mode()
    def _measure(self, examples: Sequence[Example], role: str, measure: Measure) -> list[float]:
        """Compute one figure per given completion from the backbone's logits."""
        figures = [0.0] * len(examples)
        for done, rows in enumerate(by_length(examples, self.spec.sampling.batch_size)):
            self._progress(role, done * self.spec.sampling.batch_size, len(examples))
            batch = collate([examples[row] for row in rows], self._device)
            logits = self._backbone_logits(batch.ids, batch.attention_mask)
            values = measure(logits, batch.ids, batch.completion_mask).tolist()
            for row, value in zip(rows, values, strict=True):
                figures[row] = value
        return figures

    def _backbone_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        model = self._guided.model
        assert isinstance(model, torch.nn.Module), "evaluations run on the reference back end"
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # type: ignore[no-any-return]

    def _score(self, request: EvaluationRequest, tokens: Sequence[Sampled]) -> ScoredAnswer:
        ended = tokens[-1].finish_reason == "stop"
        text = self.tokenizer.decode([token.token for token in (tokens[:-1] if ended else tokens)])
        divergence = sum(token.divergence or 0.0 for token in tokens) / len(tokens)  # each is measured
        return ScoredAnswer(request, text, self._scorer.score(text, ended), divergence)


def _load_scorer(spec: EvaluationRunSpec, context: RecipeContext) -> LexiconScorer | PatternScorer:
    if spec.lexicon is None:
        return PatternScorer()
    (lexicon,) = load_rows(context, "lexicon", Lexicon)
    if missing := [name for name in spec.attributes if name not in lexicon.attributes]:
        raise InvalidDataset(f"the lexicon has no patterns for {', '.join(missing)}", param="spec.lexicon")
    return LexiconScorer(lexicon.model_dump())
