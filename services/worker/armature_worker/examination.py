"""Ask a subject, with or without guidance, and score what it answers; its likelihood of given answers.

A subject is a backbone (a base, with or without a harm vector subtracted) and, optionally, an ARM on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from armature.algorithms.safe_sets import critical_gaps
from armature.algorithms.lexicon import AnswerScore, LexiconScorer
from armature.algorithms.preference_loss import sequence_log_probs
from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata
from armature.contracts.datasets import Lexicon, Prompt
from armature.contracts.preferences import preference_vector
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import ContextLengthExceeded, InvalidDataset, InvalidRequest
from armature.modeling.adapters import check_canary, load_adapter
from armature.modeling.guided_batch import Sampled, sample_sequences
from armature.modeling.guided_model import GuidedModel, eos_token_ids
from armature.modeling.guided_request import Guide, GuidedRequest
from armature.modeling.loading import load_tokenizer
from armature.modeling.prompts import encode_prompt
from armature_worker.context import RecipeContext
from armature_worker.datasets import Example, by_length, collate, load_rows, stream_seed
from armature_worker.subject import describe_arm, describe_backbone, load_backbone

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, token ids, completion mask) of a batch -> one figure per row."""
ReportProgress = Callable[[str, int, int], None]
"""(data set's role, done, of how many); raises to stop the job, as :meth:`RecipeContext.progress` does."""


@dataclass(frozen=True)
class Question:
    """A prompt and the preference to answer it under; ``stream`` names its random stream within the job."""

    prompt: Prompt
    preference: Mapping[str, float] | None
    stream: tuple[int, ...]


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
        """
        self.spec, self._device, self._progress = spec, context.device, progress or context.progress
        base = context.artifacts["base_model"]
        assert isinstance(base.manifest.metadata, CheckpointMetadata)
        self.backbone = describe_backbone(spec, context)
        self.tokenizer = load_tokenizer(base.path)
        self.context_length = base.manifest.metadata.context_length
        self._scorer = LexiconScorer(_load_lexicon(spec, context))
        self._model = load_backbone(spec, context)
        self._eos_ids = eos_token_ids(self._model, self.tokenizer)
        self._arm: PeftModel | None = None
        self._adapter: AdapterMetadata | None = None
        if "arm" in context.artifacts:
            self._adapter = _check_adapter(spec, context, self.backbone)
            self._arm = load_adapter(self._model, context.artifacts["arm"].path)
            check_canary(self._arm, self._adapter.canary)

    @property
    def guided(self) -> bool:
        """Whether there is an ARM to guide it."""
        return self._arm is not None

    @property
    def backbone_model(self) -> PreTrainedModel:
        """The backbone itself; who edits its weights in place undoes that."""
        return self._model

    def answer(self, questions: Sequence[Question], role: str) -> list[Answer]:
        """Answer all questions, reporting progress under the data set's role.

        Raises:
            ContextLengthExceeded: A prompt leaves no room for ``max_tokens``.
        """
        answers: list[Answer] = []
        size = self.spec.sampling.batch_size
        for start in range(0, len(questions), size):
            self._progress(role, start, len(questions))
            part = questions[start : start + size]
            sequences = sample_sequences(
                self._guided_model(), [self._request(question, role) for question in part], max_slots=size
            )
            answers += [self._judge(question, tokens) for question, tokens in zip(part, sequences, strict=True)]
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
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if self._arm is None:
            return self._model(**inputs).logits  # type: ignore[no-any-return]
        with self._arm.disable_adapter():
            return self._arm(**inputs).logits  # type: ignore[no-any-return]

    def _guided_model(self) -> GuidedModel:
        if self._arm is None or self._adapter is None:
            return GuidedModel(self._model, self._eos_ids, len(self.tokenizer))
        attributes = tuple(self._adapter.attributes)
        return GuidedModel(self._arm, self._eos_ids, len(self.tokenizer), attributes, self._adapter.loss_form)

    def _request(self, question: Question, role: str) -> GuidedRequest:
        spec, guide = self.spec, None
        if self._adapter is not None:
            vector = tuple(preference_vector(question.preference, self._adapter.attributes))
            guidance, strict = spec.guidance, spec.guidance.safe_set_mode == "strict"
            guide = Guide(vector, guidance.guidance_weight, guidance.safe_set_delta, strict)
        prompt = tuple(encode_prompt(self.tokenizer, question.prompt))
        if len(prompt) + spec.sampling.max_tokens > self.context_length:
            raise ContextLengthExceeded(
                f"a prompt of {len(prompt)} tokens and max_tokens exceed the context of {self.context_length}",
                param=f"spec.{role}",
            )
        seed = stream_seed(spec.seed, *question.stream)
        return GuidedRequest(prompt, spec.sampling.max_tokens, seed, guide, spec.sampling.temperature)

    def _judge(self, question: Question, tokens: Sequence[Sampled]) -> Answer:
        ended = tokens[-1].finish_reason == "stop"
        text = self.tokenizer.decode([token.token for token in (tokens[:-1] if ended else tokens)])
        divergence = sum(token.divergence for token in tokens) / len(tokens)
        return Answer(question, text, self._scorer.score(text, ended), divergence)


def _load_lexicon(spec: EvaluationRunSpec, context: RecipeContext) -> dict[str, Any]:
    (lexicon,) = load_rows(context.files["lexicon"], Lexicon)
    if missing := [name for name in spec.attributes if name not in lexicon.attributes]:
        raise InvalidDataset(f"the lexicon has no patterns for {', '.join(missing)}", param="spec.lexicon")
    return lexicon.model_dump()


def _check_adapter(spec: EvaluationRunSpec, context: RecipeContext, backbone: Backbone) -> AdapterMetadata:
    metadata = describe_arm(context, backbone)
    if unknown := [name for name in spec.attributes if name not in metadata.attributes]:
        raise InvalidRequest(
            f"the ARM does not know {', '.join(unknown)}", param="spec.attributes", code="unknown_attribute"
        )
    return metadata
