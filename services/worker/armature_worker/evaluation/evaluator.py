"""Ask a subject, with or without guidance, and score what it answers; its likelihood of given answers.

A subject is a backbone (a base, with or without a harm vector subtracted) and, optionally, an ARM on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

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
from armature_worker.data.tokenized import Example, by_length, collate, load_rows
from armature_worker.evaluation.requests import Question, Questionnaire
from armature_worker.models.arm import attach_arm, find_arm
from armature_worker.models.backbone import describe_backbone, load_backbone

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, token ids, completion mask) of a batch -> one figure per row."""
ReportProgress = Callable[[str, int, int], None]
"""(data set's role, done, of how many); raises to stop the job, as :meth:`RecipeContext.progress` does."""


@dataclass(frozen=True)
class Answer:
    """What the subject said, how it scores, and how far guidance moved it, in nats per token."""

    question: Question
    text: str
    score: AnswerScore
    divergence: float

    def as_row(self) -> dict[str, Any]:
        """For ``samples.jsonl``."""
        prompt = self.question.prompt
        shown = prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
        asked = {"prompt": shown, "preference": self.question.preference}
        return {**asked, "answer": self.text, **asdict(self.score), "kl_to_safe": self.divergence}


class Subject:
    """A loaded subject and its scorer."""

    def __init__(self, spec: EvaluationRunSpec, context: RecipeContext, progress: ReportProgress | None = None) -> None:
        """Load everything that the spec names. Progress goes to the context unless another place is given.

        Raises:
            AdapterBaseMismatch: The parts were not made for each other.
            InvalidDataset: The lexicon does not score one of the attributes.
            InvalidRequest: The ARM does not know one of them.
            TokenizerMismatch: The ARM's own model has other tokens.
        """
        self.spec, self._device, self._progress = spec, context.device, progress or context.progress
        base = context.artifacts["base_model"]
        assert isinstance(base.manifest.metadata, CheckpointMetadata)
        self.backbone = describe_backbone(spec, context)
        self.tokenizer = load_tokenizer(base.path)
        self.context_length = base.manifest.metadata.context_length
        self._scorer = LexiconScorer(_load_lexicon(spec, context))
        arm = find_arm(spec, context, self.tokenizer)
        self._questionnaire = Questionnaire(spec, self.tokenizer, self.context_length, arm)
        self._model = load_backbone(spec, context)
        known = vocabulary_size(self.tokenizer, self._model)
        plain = GuidedModel(self._model, eos_token_ids(self._model, self.tokenizer), known)
        self._guided = plain if arm is None else attach_arm(plain, arm, context)

    @property
    def guided(self) -> bool:
        """Whether there is an ARM to guide it."""
        return bool(self._guided.attributes)

    @property
    def backbone_model(self) -> PreTrainedModel:
        """The backbone itself; who edits its weights in place undoes that."""
        return self._model

    def answer(self, questions: Sequence[Question], role: str) -> list[Answer]:
        """Answer all questions, reporting progress under the data set's role. All are read before the first is asked.

        Raises:
            ContextLengthExceeded: A prompt leaves no room for ``max_tokens``.
            InvalidRequest: A model can not read a prompt, or the instruction above it.
        """
        answers: list[Answer] = []
        size = self.spec.sampling.batch_size
        requests = [self._questionnaire.request(question, role) for question in questions]
        for start in range(0, len(questions), size):
            self._progress(role, start, len(questions))
            part = slice(start, start + size)
            sequences = sample_sequences(self._guided, requests[part], max_slots=size)
            answers += [
                self._judge(question, tokens) for question, tokens in zip(questions[part], sequences, strict=True)
            ]
        self._progress(role, len(questions), len(questions))
        return answers

    def log_likelihoods(self, examples: Sequence[Example], role: str) -> list[float]:
        """Log-probability of each completion under the backbone, the ARM off, in nats."""
        return self._read(examples, role, sequence_log_probs)

    def critical_gaps(self, examples: Sequence[Example], role: str) -> list[float]:
        """The delta below which the safe set keeps each completion from being said, in nats."""
        return self._read(examples, role, critical_gaps)

    @torch.inference_mode()
    def _read(self, examples: Sequence[Example], role: str, measure: Measure) -> list[float]:
        """One figure per given completion, from the backbone's logits."""
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

    def _judge(self, question: Question, tokens: Sequence[Sampled]) -> Answer:
        ended = tokens[-1].finish_reason == "stop"
        text = self.tokenizer.decode([token.token for token in (tokens[:-1] if ended else tokens)])
        divergence = sum(token.divergence or 0.0 for token in tokens) / len(tokens)  # each is measured
        return Answer(question, text, self._scorer.score(text, ended), divergence)


def _load_lexicon(spec: EvaluationRunSpec, context: RecipeContext) -> dict[str, Any]:
    (lexicon,) = load_rows(context.files["lexicon"], Lexicon)
    if missing := [name for name in spec.attributes if name not in lexicon.attributes]:
        raise InvalidDataset(f"the lexicon has no patterns for {', '.join(missing)}", param="spec.lexicon")
    return lexicon.model_dump()
