"""From a checked request to a running generation: which bundle, which tokens, which stages."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from armature.contracts.answers import Alignment
from armature.contracts.generation import ChatCompletionRequest, CompletionRequest, GenerationRequest
from armature.contracts.serving import ServedModel, ServedTenant, ServedVersion
from armature.errors import InvalidRequest, Unavailable
from armature.http.rates import WrongKeys
from armature.inference.request import SELDOM, Guide, GuidedRequest
from armature_decoder.bundles.bundle import Runtime
from armature_decoder.bundles.cache import BundleLease
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.generation import Generation, Order
from armature_decoder.guidance import plan_stages
from armature_decoder.guidance.base import StagePlan
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
        limit = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
        return await self._start(tenant, request, _Wish([chat_prompt(messages)], limit), ChatResponseShape())

    async def start_completion(self, tenant: ServedTenant, request: CompletionRequest) -> Running:
        """Begin to continue texts; raises as :meth:`start_chat` does."""
        prompts = [text_prompt(prompt, param) for param, prompt in request.prompts.items()]
        wish = _Wish(prompts, request.max_tokens, echo=bool(request.echo))
        return await self._start(tenant, request, wish, TextResponseShape())

    async def _start(
        self, tenant: ServedTenant, request: GenerationRequest, wish: _Wish, shape: ResponseShape
    ) -> Running:
        with ExitStack() as undo:
            self.gate.enter()
            undo.callback(self.gate.leave)
            model, version, lease = self.profiles.acquire(tenant, request.model, request.user, request.harm_scale)
            undo.callback(lease.release)
            plan = plan_stages(version.manifest, request)
            runtime = await self._ready(lease)
            if wish.echo and request.logprob_count is not None:
                _check_scorable(plan, runtime.loaded)
            fields = {**_sampling(request), **plan.sequence, "logit_bias": _bias(request, runtime.loaded)}
            fields["cache_scope"] = tenant.id
            choices, room = request.n or 1, self.settings.max_tokens
            if choices * len(wish.prompts) > self.settings.max_waiting:
                raise InvalidRequest(f"{self.settings.max_waiting} answers may be asked for at once", param="n")
            encoded = [await encode_prompt(one, plan, runtime.loaded, wish.max_tokens, room) for one in wish.prompts]
            needed = sum(len(one.ids) + choices * one.max_tokens for one in encoded)
            reservation = self.quotas.reserve(tenant, needed)
            undo.callback(reservation.settle, 0)
            generation = Generation(
                runtime=runtime,
                tenant=tenant.id,
                orders=_orders(request, wish, encoded, fields),
                stops=request.stops,
                parts=bool(request.logprob_parts),
                metrics=self.metrics,
            )
            generation.submit()
            undo.pop_all()
        heading = ResponseHeading(
            model=request.model,
            system_fingerprint=f"fp_{version.manifest.bundle_digest()[:16]}",
            alignment=_alignment(model, version, plan.applied),
            id=new_response_id(shape),
        )
        return Running(heading, shape, generation, lease, reservation, self.gate)

    async def _ready(self, lease: BundleLease) -> Runtime:
        if lease.settled.done():
            return lease.settled.result()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(lease.settled), self.settings.load_wait)
        except TimeoutError:
            raise Unavailable("the model is being loaded; try again soon", code="not_ready") from None


@dataclass(frozen=True)
class _Wish:
    """What the two routes differ in."""

    prompts: Sequence[Prompt]
    max_tokens: int | None
    echo: bool = False


def _orders(
    request: GenerationRequest, wish: _Wish, encoded: Sequence[EncodedPrompt], fields: Mapping[str, Any]
) -> list[Order]:
    """The answers that are wanted: ``n`` to each prompt, the i-th of all seeded with ``seed + i``."""
    base = request.seed if request.seed is not None else secrets.randbelow(_SEEDS)
    scored, is_text = wish.echo and request.logprob_count is not None, isinstance(request, CompletionRequest)
    orders = list[Order]()
    for one in encoded:
        first = len(orders)
        for _ in range(request.n or 1):
            sequence = GuidedRequest(
                prompt=one.ids,
                instructed_prompt=one.instructed,
                arm_prompt=one.arm,
                max_tokens=one.max_tokens,
                seed=(base + len(orders)) % _SEEDS,
                top_logprobs=request.logprob_count,
                score_prompt=scored and len(orders) == first,
                measured_every=SELDOM,
                **fields,
            )
            context = one.ids if is_text else ()
            echo = one.echo if wish.echo else None
            orders.append(Order(sequence, context, echo, first if scored else None))
    return orders


def _check_scorable(plan: StagePlan, bundle: LoadedBundle) -> None:
    """A prompt's own tokens have a distribution each only where all streams read the same prompt.

    Raises:
        InvalidRequest: Naming what to switch off.
    """
    guide: Guide | None = plan.sequence.get("guide")
    for param, reads_another in (
        ("sda.strength", plan.instruction is not None),
        ("guidance_weight", bundle.model.arm is not None and guide is not None and guide.weight > 0),
    ):
        if reads_another:
            message = f"this model scores a prompt only with a {param} of 0: another prompt steers it"
            raise InvalidRequest(message, param=param, code="unsupported_field")


def _bias(request: GenerationRequest, bundle: LoadedBundle) -> tuple[tuple[int, float], ...]:
    """The request's bias by token.

    Raises:
        InvalidRequest: A token that the model does not have.
    """
    bias = {int(token): nats for token, nats in (request.logit_bias or {}).items()}
    check_ids(list(bias), bundle, "logit_bias")
    return tuple(bias.items())


def _sampling(request: GenerationRequest) -> dict[str, Any]:
    """The sampling fields that the request gives; the others keep :class:`GuidedRequest`'s defaults."""
    given = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return {name: value for name, value in given.items() if value is not None}


def _alignment(model: ServedModel, version: ServedVersion, applied: Mapping[str, Any]) -> Alignment:
    manifest = version.manifest
    return Alignment(
        profile=model.profile,
        alias=model.alias,
        version=version.version,
        base_digest=manifest.base.digest,
        harm_vector_digest=manifest.harm_vector.digest if manifest.harm_vector else None,
        harm_scale=manifest.harm_scale if manifest.harm_vector else 0.0,
        arm_digest=manifest.arm.digest if manifest.arm else None,
        **applied,
    )
