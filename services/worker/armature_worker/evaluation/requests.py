"""From a subject's questions to requests: prompts as each of its models reads them, and what steers the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from armature.contracts.datasets import Prompt
from armature.contracts.preferences import preference_vector
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.errors import ContextLengthExceeded, InvalidRequest
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.modeling.tokenization.instructions import encode_instructed_prompt
from armature.modeling.tokenization.prompts import encode_prompt
from armature_worker.data.tokenized import stream_seed
from armature_worker.models.arm import GuidingArm


@dataclass(frozen=True)
class Question:
    """A prompt and the preference to answer it under; ``stream`` names its random stream within the job."""

    prompt: Prompt
    preference: Mapping[str, float] | None
    stream: tuple[int, ...]


class Questionnaire:
    """How an evaluation asks its subject.

    Args:
        spec: What steers the answers, and how they are drawn.
        tokenizer: Of the subject.
        context_length: Of the subject, in tokens.
        arm: What guides it.
    """

    def __init__(
        self,
        spec: EvaluationRunSpec,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        arm: GuidingArm | None,
    ) -> None:
        self._spec, self._tokenizer, self._arm = spec, tokenizer, arm
        self._own = arm.own if arm else None
        self._context_length = min(context_length, self._own.context_length) if self._own else context_length
        sda, delta = spec.sda, spec.guidance.safe_set_delta
        self._instruction = Instruction.of(sda.strength, sda.adaptive_temperature, delta) if sda else None

    def request(self, question: Question, role: str) -> GuidedRequest:
        """A question as the subject is asked it; ``role`` is that of the data set that it is from.

        Raises:
            ContextLengthExceeded: Its prompt, or the one below the instruction, leaves no room for ``max_tokens``.
            InvalidRequest: A model can not read it.
        """
        spec, prompt = self._spec, question.prompt
        asked = GuidedRequest(
            prompt=_read(lambda: encode_prompt(self._tokenizer, prompt), f"spec.{role}"),
            max_tokens=spec.sampling.max_tokens,
            seed=stream_seed(spec.seed, *question.stream),
            guide=self._guide(question),
            temperature=spec.sampling.temperature,
            instruction=self._instruction,
            instructed_prompt=self._below(prompt),
            arm_prompt=self._for_the_arm(prompt, role),
        )
        if asked.length > self._context_length:
            what = "a prompt and its instruction" if asked.active_instruction else "a prompt"
            raise ContextLengthExceeded(
                f"{what} of {asked.longest_prompt} tokens and max_tokens exceed the context of {self._context_length}",
                param=f"spec.{role}",
            )
        return asked

    def _guide(self, question: Question) -> Guide | None:
        if self._arm is None:
            return None
        vector = tuple(preference_vector(question.preference, self._arm.adapter.attributes))
        guidance = self._spec.guidance
        strict = guidance.safe_set_mode == "strict"
        return Guide(vector, guidance.guidance_weight, guidance.safe_set_delta, strict)

    def _below(self, prompt: Prompt) -> tuple[int, ...]:
        sda = self._spec.sda
        if sda is None or sda.strength == 0:
            return ()
        read = encode_instructed_prompt
        return _read(lambda: read(self._tokenizer, prompt, sda.instruction), "spec.sda.instruction")

    def _for_the_arm(self, prompt: Prompt, role: str) -> tuple[int, ...]:
        own = self._own
        return () if own is None else _read(lambda: encode_prompt(own.tokenizer, prompt), f"spec.{role}")


def _read(encode: Callable[[], list[int]], param: str) -> tuple[int, ...]:
    """Ids; what can not be read is the fault of a field of the spec."""
    try:
        return tuple(encode())
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.error_code) from error
