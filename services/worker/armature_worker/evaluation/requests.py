"""Build guided requests for an evaluation: prompts encoded for each model, the guide, the instruction."""

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
class EvaluationRequest:
    """A prompt and the preference to answer it under; ``stream`` numbers its random stream in the job."""

    prompt: Prompt
    preference: Mapping[str, float] | None
    stream: tuple[int, ...]


class RequestBuilder:
    """Builder of an evaluation's guided requests.

    Args:
        spec: Has the settings of guidance, instruction and sampling.
        tokenizer: The backbone's.
        context_length: The backbone's, in tokens.
        arm: The ARM that guides the backbone, if any.
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

    def build(self, request: EvaluationRequest, role: str) -> GuidedRequest:
        """Encode a request; ``role`` is the role of its data set, for error messages.

        Raises:
            ContextLengthExceeded: The prompt, with or without the instruction, leaves no room for ``max_tokens``.
            InvalidRequest: A model can not encode the prompt.
        """
        spec, prompt = self._spec, request.prompt
        guided = GuidedRequest(
            prompt=_encode(lambda: encode_prompt(self._tokenizer, prompt, self._spec.chat), f"spec.{role}"),
            max_tokens=spec.sampling.max_tokens,
            seed=stream_seed(spec.seed, *request.stream),
            guide=self._guide(request),
            temperature=spec.sampling.temperature,
            instruction=self._instruction,
            instructed_prompt=self._encode_instructed(prompt),
            arm_prompt=self._encode_for_arm(prompt, role),
        )
        if guided.length > self._context_length:
            what = "a prompt and its instruction" if guided.active_instruction else "a prompt"
            raise ContextLengthExceeded(
                f"{what} of {guided.longest_prompt} tokens and max_tokens exceed the context of {self._context_length}",
                param=f"spec.{role}",
            )
        return guided

    def _guide(self, request: EvaluationRequest) -> Guide | None:
        if self._arm is None:
            return None
        vector = tuple(preference_vector(request.preference, self._arm.adapter.attributes))
        guidance = self._spec.guidance
        strict = guidance.safe_set_mode == "strict"
        return Guide(vector, guidance.guidance_weight, guidance.safe_set_delta, strict)

    def _encode_instructed(self, prompt: Prompt) -> tuple[int, ...]:
        sda = self._spec.sda
        if sda is None or sda.strength == 0:
            return ()
        encode, chat = encode_instructed_prompt, self._spec.chat
        return _encode(lambda: encode(self._tokenizer, prompt, sda.instruction, chat), "spec.sda.instruction")

    def _encode_for_arm(self, prompt: Prompt, role: str) -> tuple[int, ...]:
        own = self._own
        return (
            ()
            if own is None
            else _encode(lambda: encode_prompt(own.tokenizer, prompt, self._spec.chat), f"spec.{role}")
        )


def _encode(encode: Callable[[], list[int]], param: str) -> tuple[int, ...]:
    """Encode a prompt; an error names ``param``, the field of the spec."""
    try:
        return tuple(encode())
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param=param, code=error.error_code) from error
