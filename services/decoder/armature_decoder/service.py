"""From a checked request to a running generation: which bundle, which tokens, which stages."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from armature.contracts.generation import Alignment, ChatCompletionRequest, CompletionRequest, GenerationRequest
from armature.contracts.serving import ServedModel, ServedTenant, ServedVersion
from armature.errors import ContextLengthExceeded, InvalidRequest, Unavailable
from armature.http.rates import WrongKeys
from armature.modeling.guided_batch import GuidedRequest
from armature.modeling.prompts import encode_chat, encode_text
from armature_decoder.answers import ChatShape, Heading, Shape, TextShape, new_answer_id
from armature_decoder.budgets import Share, TenantBudgets
from armature_decoder.bundles.bundle import Runtime
from armature_decoder.bundles.cache import Lease
from armature_decoder.bundles.loader import LoadedBundle
from armature_decoder.generation import Generation
from armature_decoder.metrics import RequestMetrics
from armature_decoder.profiles import Profiles
from armature_decoder.settings import DecoderSettings
from armature_decoder.stages import plan_stages

_CHARS_PER_TOKEN = 8
"""No tokenizer in use makes texts shorter than this, so a longer one is refused unread."""
_SEEDS = 2**63


@dataclass
class Running:
    """A submitted request. Close it exactly once, however it ends: that frees its slots and its bundle."""

    heading: Heading
    shape: Shape
    generation: Generation
    lease: Lease
    share: Share

    def close(self) -> None:
        """Cancel what still runs, give the bundle back, and the tokens that were set aside and not used."""
        self.generation.cancel()
        self.lease.release()
        self.share.settle(self.generation.usage.total_tokens)


@dataclass(frozen=True)
class DecoderService:
    """Starts generations."""

    profiles: Profiles
    settings: DecoderSettings
    metrics: RequestMetrics
    wrong_keys: WrongKeys
    budgets: TenantBudgets

    async def start_chat(self, tenant: ServedTenant, request: ChatCompletionRequest) -> Running:
        """Begin to answer a dialogue.

        Raises:
            ArmatureError: The model is unknown or not ready, or the request does not fit it.
        """
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        limit = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
        prompt = _Prompt(
            param="messages",
            chars=sum(len(message["content"]) for message in messages),
            encode=lambda bundle: encode_chat(bundle.tokenizer, messages),
            max_tokens=limit,
            extra={"top_logprobs": top_logprobs},
        )
        return await self._start(tenant, request, prompt, ChatShape())

    async def start_completion(self, tenant: ServedTenant, request: CompletionRequest) -> Running:
        """Begin to continue a text; raises as :meth:`start_chat` does."""
        prompt = _Prompt(
            param="prompt",
            chars=len(request.prompt),
            encode=lambda bundle: encode_text(bundle.tokenizer, request.prompt),
            max_tokens=request.max_tokens,
            extra={},
        )
        return await self._start(tenant, request, prompt, TextShape())

    async def _start(self, tenant: ServedTenant, request: GenerationRequest, prompt: _Prompt, shape: Shape) -> Running:
        model, version, lease = self.profiles.acquire(tenant, request.model, request.user)
        with ExitStack() as undo:
            undo.callback(lease.release)
            plan = plan_stages(version.manifest, request)
            runtime = await self._ready(lease)
            ids, max_tokens = await self._encode(prompt, runtime.loaded)
            choices = request.n or 1
            share = self.budgets.set_aside(tenant, len(ids) + choices * max_tokens)
            undo.callback(share.settle, 0)
            base = request.seed if request.seed is not None else secrets.randbelow(_SEEDS)
            sampling = {**_sampling(request), **prompt.extra, **plan.sequence}
            generation = Generation(
                engine=runtime.engine,
                tenant=tenant.id,
                sequences=[
                    GuidedRequest(ids, max_tokens, (base + index) % _SEEDS, cache_scope=tenant.id, **sampling)
                    for index in range(choices)
                ],
                tokenizer=runtime.loaded.tokenizer,
                stops=request.stops,
                context=ids if isinstance(shape, TextShape) else (),
                metrics=self.metrics,
            )
            generation.submit()
            undo.pop_all()
        heading = Heading(
            model=request.model,
            system_fingerprint=f"fp_{version.manifest.bundle_digest()[:16]}",
            alignment=_alignment(model, version, plan.applied),
            id=new_answer_id(shape),
        )
        return Running(heading, shape, generation, lease, share)

    async def _ready(self, lease: Lease) -> Runtime:
        if lease.settled.done():
            return lease.settled.result()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(lease.settled), self.settings.load_wait)
        except TimeoutError:
            raise Unavailable("the model is being loaded; try again soon", code="not_ready") from None

    async def _encode(self, prompt: _Prompt, bundle: LoadedBundle) -> tuple[tuple[int, ...], int]:
        context = bundle.context_length
        if prompt.chars > _CHARS_PER_TOKEN * context:
            raise ContextLengthExceeded(
                f"the prompt has {prompt.chars} characters; the context is {context} tokens", param=prompt.param
            )
        ids = await asyncio.get_running_loop().run_in_executor(bundle.encoding, prompt.encode, bundle)
        if not ids:
            raise InvalidRequest("the prompt has no tokens", param=prompt.param)
        left, needed = context - len(ids), prompt.max_tokens or 1
        if left < needed:
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens and {needed} are asked for; the context is {context}",
                param=prompt.param,
            )
        if prompt.max_tokens and prompt.max_tokens > self.settings.max_tokens:
            raise InvalidRequest(f"must not exceed {self.settings.max_tokens}", param="max_tokens")
        return tuple(ids), prompt.max_tokens or min(left, self.settings.max_tokens)


@dataclass(frozen=True)
class _Prompt:
    """What the two routes differ in: which field holds the prompt, how it becomes ids, how many tokens may follow."""

    param: str
    chars: int
    encode: Callable[[LoadedBundle], list[int]]
    max_tokens: int | None
    extra: dict[str, Any]


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
