"""From a validated request to a running generation: its bundle, its guidance, its token ids."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from armature.contracts.answers import Alignment
from armature.contracts.generation import ChatCompletionRequest, CompletionRequest, GenerationRequest
from armature.contracts.serving import ServedModel, ServedTenant, ServedVersion
from armature.errors import ArmatureError, InvalidRequest, Unavailable
from armature.http.rates import WrongKeys
from armature.inference.request import MEASURE_SELDOM, GuidedRequest
from armature_decoder.bundles.bundle import BundleLease, Runtime, for_caller
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.generation import Generation
from armature_decoder.guidance import plan_guidance
from armature_decoder.guidance.base import Applied, GuidancePlan, either
from armature_decoder.http.responses import (
    ChatResponseShape,
    ResponseHeading,
    ResponseShape,
    TextResponseShape,
    new_response_id,
)
from armature_decoder.limits.drain import DrainGate
from armature_decoder.limits.token_quota import Reservation, TenantQuotas
from armature_decoder.profiles import Profiles
from armature_decoder.prompts import EncodedPrompt, Prompt, chat_prompt, check_ids, encode_prompt, text_prompt
from armature_decoder.request_metrics import RequestMetrics
from armature_decoder.settings import DecoderSettings

_SEEDS = 2**63


@dataclass
class Running:
    """A submitted request. Close it exactly once, however it ends: that frees its slots and its bundle."""

    heading: ResponseHeading
    shape: ResponseShape
    generation: Generation
    lease: BundleLease
    reservation: Reservation
    gate: DrainGate

    def close(self) -> None:
        """Cancel what still runs, give the bundle back, and the tokens that were set aside and not used."""
        self.generation.cancel()
        self.lease.release()
        self.reservation.settle(self.generation.usage.total_tokens)
        self.gate.leave()


@dataclass(frozen=True)
class DecoderService:
    """Starts generations."""

    profiles: Profiles
    settings: DecoderSettings
    metrics: RequestMetrics
    wrong_keys: WrongKeys
    quotas: TenantQuotas
    gate: DrainGate

    async def start_chat(self, tenant: ServedTenant, request: ChatCompletionRequest) -> Running:
        """Begin to answer a dialogue.

        Raises:
            ArmatureError: The model is unknown or not ready, or the request does not fit it.
        """
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        return await self._start(tenant, request, [chat_prompt(messages)], ChatResponseShape())

    async def start_completion(self, tenant: ServedTenant, request: CompletionRequest) -> Running:
        """Begin to continue texts; raises as :meth:`start_chat` does."""
        prompts = [text_prompt(prompt, param) for param, prompt in request.prompts.items()]
        return await self._start(tenant, request, prompts, TextResponseShape())

    async def _start(
        self, tenant: ServedTenant, request: GenerationRequest, prompts: Sequence[Prompt], shape: ResponseShape
    ) -> Running:
        with ExitStack() as undo:
            self.gate.enter()
            undo.callback(self.gate.leave)
            model, version, lease = self.profiles.acquire(tenant, request.model, request.user, request.harm_scale)
            undo.callback(lease.release)
            plan = plan_guidance(version.manifest, request)
            runtime = await self._ready(lease)
            if request.scores_prompt:
                _check_scorable(plan, runtime.loaded)
            bias, choices = _logit_bias(request, runtime.loaded), request.n or 1
            if choices * len(prompts) > self.settings.max_waiting:
                raise InvalidRequest(f"{self.settings.max_waiting} answers may be asked for at once", param="n")
            limits = request.token_limit, self.settings.max_tokens
            encoded = [await encode_prompt(prompt, plan, runtime.loaded, *limits) for prompt in prompts]
            reservation = self.quotas.reserve(tenant, sum(len(one.ids) + choices * one.max_tokens for one in encoded))
            undo.callback(reservation.settle, 0)
            lengths = [len(one.ids) for one in encoded]
            generation = Generation(
                runtime, tenant.id, request.stops, bool(request.logprob_parts), self.metrics, lengths
            )
            undo.callback(generation.cancel)
            _add_choices(generation, request, plan, encoded, bias)
            heading = ResponseHeading(
                model=request.model,
                system_fingerprint=f"fp_{version.manifest.bundle_digest()[:16]}",
                alignment=_alignment(model, version, plan.applied),
                id=new_response_id(shape),
            )
            running = Running(heading, shape, generation, lease, reservation, self.gate)
            generation.submit()
            undo.pop_all()
        return running

    async def _ready(self, lease: BundleLease) -> Runtime:
        try:
            if lease.settled.done():
                return lease.settled.result()
            return await asyncio.wait_for(asyncio.wrap_future(lease.settled), self.settings.load_wait)
        except ArmatureError as error:
            raise for_caller(error) from None
        except TimeoutError:
            raise Unavailable("the model is being loaded; try again soon", code="not_ready") from None


def _add_choices(
    generation: Generation,
    request: GenerationRequest,
    plan: GuidancePlan,
    prompts: Sequence[EncodedPrompt],
    bias: tuple[tuple[int, float], ...],
) -> None:
    """Add ``n`` answers to each prompt, the i-th of all seeded with ``seed + i``."""
    seed = request.seed if request.seed is not None else secrets.randbelow(_SEEDS)
    is_text = isinstance(request, CompletionRequest)
    for prompt in prompts:
        first = len(generation.choices)
        for number in range(first, first + (request.n or 1)):
            sequence = GuidedRequest(
                prompt=prompt.ids,
                instructed_prompt=prompt.instructed,
                arm_prompt=prompt.arm,
                max_tokens=prompt.max_tokens,
                seed=(seed + number) % _SEEDS,
                guide=plan.guide,
                instruction=plan.instruction,
                temperature=either(request.temperature, 1.0),
                top_p=either(request.top_p, 1.0),
                top_k=either(request.top_k, 0),
                min_p=either(request.min_p, 0.0),
                logit_bias=bias,
                top_logprobs=request.logprob_count,
                score_prompt=request.scores_prompt and number == first,
                namespace=generation.tenant,
                measured_every=MEASURE_SELDOM,
            )
            context, echo = prompt.ids if is_text else (), prompt.echo if request.echoes else None
            generation.add(sequence, context, echo, scored_by=first if request.scores_prompt else None)


def _check_scorable(plan: GuidancePlan, bundle: LoadedBundle) -> None:
    """Refuse to score a prompt that streams do not share: its tokens would have several distributions.

    Raises:
        InvalidRequest: Naming what to switch off.
    """
    for param, has_other_prompt in (
        ("sda.strength", plan.instruction is not None),
        ("guidance_weight", bundle.model.arm is not None and plan.guide is not None and plan.guide.weight > 0),
    ):
        if has_other_prompt:
            message = f"this model scores a prompt only with a {param} of 0: another prompt steers it"
            raise InvalidRequest(message, param=param, code="unsupported_field")


def _logit_bias(request: GenerationRequest, bundle: LoadedBundle) -> tuple[tuple[int, float], ...]:
    """The request's bias by token.

    Raises:
        InvalidRequest: A token that the model does not have.
    """
    bias = {int(token): nats for token, nats in (request.logit_bias or {}).items()}
    check_ids(list(bias), bundle, "logit_bias")
    return tuple(bias.items())


def _alignment(model: ServedModel, version: ServedVersion, applied: Applied) -> Alignment:
    manifest = version.manifest
    return Alignment(
        profile=model.profile,
        alias=model.alias,
        version=version.version,
        base_digest=manifest.base.digest,
        harm_vector_digest=manifest.harm_vector.digest if manifest.harm_vector else None,
        harm_scale=manifest.harm_scale if manifest.harm_vector else 0.0,
        arm_digest=manifest.arm.digest if manifest.arm else None,
        **vars(applied),
    )
