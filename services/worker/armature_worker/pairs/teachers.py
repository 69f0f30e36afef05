"""Teachers: base models of the platform and endpoints that write answers below an instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from armature.contracts.chat import ChatFormat
from armature.contracts.datasets import Prompt
from armature.contracts.specs.pairs import BaseModelTeacher, InstructionPlace, PairsGenerateSpec, teacher_role
from armature.errors import ContextLengthExceeded, InvalidRequest
from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel, eos_token_ids, vocabulary_size
from armature.inference.request import GuidedRequest
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.dialogues import Messages, as_messages
from armature.modeling.tokenization.instructions import encode_instructed_prompt, instruct
from armature.modeling.tokenization.prompts import encode_chat
from armature_worker.context.ports import RecipeContext
from armature_worker.data.tokenized import try_rows
from armature_worker.models.chat_endpoint import ChatEndpoint, Completion, open_endpoint
from armature_worker.models.checkpoints import checkpoint_metadata
from armature_worker.pairs.plan import Ask


@dataclass(frozen=True)
class Draft:
    """An answer as written; ``finished`` unless the token limit cut it."""

    text: str
    finished: bool


class Teacher(Protocol):
    """A writer of answers."""

    def answer(self, asks: Sequence[Ask]) -> list[Draft]:
        """Write an answer to each prompt below its instruction."""


class Teachers:
    """The teachers of a spec, one base model in memory at a time."""

    def __init__(self, spec: PairsGenerateSpec, context: RecipeContext) -> None:
        self._spec, self._context = spec, context
        self._open: tuple[int, Teacher] | None = None

    def answer(self, asks: Sequence[Ask]) -> list[Draft]:
        """Write all answers, each by its teacher; neighbours with one teacher are written together."""
        return [
            draft for index, part in groupby(asks, _teacher_of) for draft in self._teacher(index).answer(list(part))
        ]

    def _teacher(self, index: int) -> Teacher:
        if self._open is None or self._open[0] != index:
            self._open = None  # frees the model before the next one is loaded
            self._open = index, open_teacher(self._spec, index, self._context)
        return self._open[1]


def open_teacher(spec: PairsGenerateSpec, index: int, context: RecipeContext) -> Teacher:
    """Load or look up the spec's teacher of that index.

    Raises:
        InvalidRequest: The worker's settings have no such endpoint.
    """
    teacher = spec.teachers[index]
    if isinstance(teacher, BaseModelTeacher):
        return ModelTeacher(spec, index, context)
    return EndpointWriter(spec, open_endpoint(context, teacher.endpoint, teacher.model, f"spec.teachers.{index}"))


class ModelTeacher:
    """A base model, sampled through the engine that serves it."""

    def __init__(self, spec: PairsGenerateSpec, index: int, context: RecipeContext) -> None:
        self._sampling, self._chat = spec.sampling, spec.chat
        artifact = context.artifacts[teacher_role(index)]
        self._tokenizer = load_tokenizer(artifact.path)
        self._context_length = checkpoint_metadata(artifact).context_length
        try_rows(spec, context, self._tokenizer, spec.chat)
        model = load_model(artifact.path, context.device)
        self._model = GuidedModel(model, eos_token_ids(model, self._tokenizer), vocabulary_size(self._tokenizer, model))

    def answer(self, asks: Sequence[Ask]) -> list[Draft]:
        """See the port.

        Raises:
            ContextLengthExceeded: A prompt and its instruction leave no room for ``max_tokens``.
            InvalidRequest: The model can not encode a prompt.
        """
        requests = [self._request(ask) for ask in asks]
        drafts = []
        for tokens in sample_sequences(self._model, requests, max_slots=self._sampling.batch_size):
            finished = tokens[-1].finish_reason == "stop"
            ids = [token.token for token in (tokens[:-1] if finished else tokens)]
            drafts.append(Draft(str(self._tokenizer.decode(ids, skip_special_tokens=True)), finished))
        return drafts

    def _request(self, ask: Ask) -> GuidedRequest:
        try:
            prompt = _ENCODERS[self._sampling.instruction](self._tokenizer, ask.prompt, ask.instruction, self._chat)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="spec.prompts", code=error.error_code) from error
        sampling = self._sampling
        if len(prompt) + sampling.max_tokens > self._context_length:
            raise ContextLengthExceeded(
                f"a prompt and its instruction of {len(prompt)} tokens and max_tokens exceed the context of "
                f"{self._context_length}",
                param="spec.prompts",
            )
        return GuidedRequest(
            tuple(prompt), sampling.max_tokens, ask.seed, temperature=sampling.temperature, top_p=sampling.top_p
        )


class EndpointWriter:
    """A model behind an endpoint."""

    def __init__(self, spec: PairsGenerateSpec, endpoint: ChatEndpoint) -> None:
        self._sampling, self._endpoint = spec.sampling, endpoint

    def answer(self, asks: Sequence[Ask]) -> list[Draft]:
        """See the port; the seed is passed on, and may be ignored there."""
        sampling = self._sampling
        place = instruct if sampling.instruction == "system" else append_instruction
        dialogues = [place(as_messages(ask.prompt), ask.instruction) for ask in asks]
        options = [
            {
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": ask.seed,
            }
            for ask in asks
        ]
        return [_draft(answer) for answer in self._endpoint.complete(dialogues, options)]


def append_instruction(messages: Sequence[dict[str, str]], instruction: str) -> Messages:
    """Return the dialogue with the instruction after its last message, which is the user's."""
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n\n({instruction})"}]


def _encode_appended(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str, chat: ChatFormat
) -> list[int]:
    return encode_chat(tokenizer, append_instruction(as_messages(prompt), instruction), chat)


_ENCODERS: dict[InstructionPlace, Callable[[PreTrainedTokenizerBase, Prompt, str, ChatFormat], list[int]]] = {
    "user": _encode_appended,
    "system": encode_instructed_prompt,
}


def _draft(answer: Completion) -> Draft:
    return Draft(answer.text, answer.finished)


def _teacher_of(ask: Ask) -> int:
    return ask.teacher


def by_teacher(asks: Sequence[Ask]) -> Iterator[Ask]:
    """Yield the asks in the order of their teachers, so that each model is loaded once."""
    yield from sorted(asks, key=_teacher_of)
