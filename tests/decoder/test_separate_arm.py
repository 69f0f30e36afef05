"""An ARM on a small model of its own guides a bigger base, through the stock ``openai`` client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from armature.contracts.sda import Sda
from armature.errors import AdapterBaseMismatch, TokenizerMismatch
from armature.inference.batch import sample_sequences
from armature.inference.lean.model import LeanModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.modeling.tokenization.instructions import encode_instructed_chat
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from armature.storage.local import LocalArtifactStore
from armature_decoder.bundles.disk import DiskCache
from armature_decoder.bundles.loader import BundleLoader, BundleParts, LoadedBundle, WorkingMemory
from armature_decoder.bundles.shared_bases import SharedBases
from tests.support.generate import generate_guided
from tests.support.separate_bundles import ARM_TEMPLATE, publish_separate_bundle
from tests.support.serving import DecoderProcess, PublishedBundle
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, swapped_tokenizer

HELLO: Any = [{"role": "user", "content": "hello"}]
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
PROMPT = tuple(encode_chat(TOKENIZER, HELLO))
ARM_PROMPT = tuple(encode_chat(byte_tokenizer(ARM_TEMPLATE), HELLO))
LOADER = BundleLoader("cpu", None, WorkingMemory(kv=1 << 18, prefixes=1 << 18, max_slots=4))


@pytest.fixture(scope="module")
def bundle(serving_root: Path) -> PublishedBundle:
    return publish_separate_bundle(LocalArtifactStore(serving_root / "store"), serving_root / "separate")


@pytest.fixture(scope="module")
def client(decoder_process: DecoderProcess, bundle: PublishedBundle) -> Iterator[OpenAI]:
    installation = decoder_process.installation
    installation.add_tenant("weak")
    sda = Sda(instruction="Be kind.", strength=2.0, adaptive_temperature=None)
    installation.point("weak", "care", bundle.manifest)
    installation.point("weak", "told", bundle.manifest.model_copy(update={"sda": sda}))
    token = installation.add_key("weak")
    installation.publish()
    time.sleep(0.5)
    decoder_process.wait_ready(token, "care", "told")
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=token, max_retries=0) as client:
        yield client


def chat(client: OpenAI, model: str = "care", extra: dict[str, Any] | None = None, **fields: Any) -> Any:
    fields = {"model": model, "messages": HELLO, "max_tokens": 20, "seed": 9, **fields}
    return client.chat.completions.create(**fields, extra_body={"preference": {"empathy": 1.0}, **(extra or {})})


def expected(bundle: PublishedBundle, **fields: Any) -> str:
    guided = {"guide": Guide((1.0, 0.0), 2.0, 6.0), "arm_prompt": ARM_PROMPT, "seed": 9, **fields}
    return str(
        TOKENIZER.decode(
            generate_guided(bundle.reference, [GuidedRequest(PROMPT, 20, **guided)])[0], skip_special_tokens=True
        )
    )


def test_the_small_model_guides_the_large_one(client: OpenAI, bundle: PublishedBundle) -> None:
    assert PROMPT != ARM_PROMPT
    answer = chat(client, n=2)
    assert [choice.message.content for choice in answer.choices] == [expected(bundle), expected(bundle, seed=10)]
    assert answer.choices[0].message.content != expected(bundle, guide=None)
    alignment, manifest = answer.model_extra["alignment"], bundle.manifest
    assert manifest.arm is not None
    assert (alignment["arm_digest"], alignment["base_digest"]) == (manifest.arm.digest, manifest.base.digest)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, stream=True))
    assert streamed == answer.choices[0].message.content
    unguided = chat(client, extra={"guidance_weight": 0})
    assert unguided.choices[0].message.content == expected(bundle, guide=None)


def test_an_instruction_composes_with_a_separate_arm(client: OpenAI, bundle: PublishedBundle) -> None:
    below = tuple(encode_instructed_chat(TOKENIZER, HELLO, "Be kind."))
    instruction = Instruction(2.0, safe_set_delta=6.0)
    wanted = expected(bundle, instruction=instruction, instructed_prompt=below)
    assert chat(client, "told").choices[0].message.content == wanted != expected(bundle)


def test_a_prompt_is_scored_by_the_base_alone(client: OpenAI, bundle: PublishedBundle) -> None:
    scored: dict[str, Any] = {"model": "care", "prompt": "once", "max_tokens": 0, "echo": True, "logprobs": 0}
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**scored)
    error: Any = refused.value.body
    assert (error["code"], error["param"]) == ("unsupported_field", "guidance_weight")
    answer = client.completions.create(**scored, extra_body={"guidance_weight": 0})
    ids = encode_text(TOKENIZER, "once")
    logprobs = [token for token in answer.choices[0].logprobs.token_logprobs if token is not None]
    assert len(logprobs) == len(ids) - 1
    first = GuidedRequest(tuple(ids[:1]), 1, top_logprobs=259)
    top = dict(sample_sequences(bundle.reference, [first])[0][0].top)
    assert logprobs[0] == pytest.approx(top[ids[1]], abs=1e-4)


def fetch(root: Path, bundle: PublishedBundle, **changes: Any) -> BundleParts:
    manifest = bundle.manifest.model_copy(update=changes)
    disk = DiskCache(LocalArtifactStore(root / "store"), root / "disk", 1 << 30)
    assert manifest.arm is not None
    assert manifest.arm_backbone is not None
    return BundleParts(
        manifest, disk.fetch(manifest.base), None, disk.fetch(manifest.arm), disk.fetch(manifest.arm_backbone)
    )


def load(parts: BundleParts) -> LoadedBundle:
    shared = SharedBases()
    shared.claim("the test", LOADER.needs(parts).bases, new=True)
    return LOADER.load(parts, shared)


def test_both_models_are_loaded_and_counted(tmp_path: Path) -> None:
    bundle = publish_separate_bundle(LocalArtifactStore(tmp_path / "store"), tmp_path / "work")
    parts = fetch(tmp_path, bundle)
    loaded = load(parts)
    assert isinstance(loaded.model.model, LeanModel)
    assert isinstance(loaded.model.arm, LeanModel)
    alone = BundleParts(parts.manifest.model_copy(update={"arm": None}), parts.base, None, None)
    assert parts.arm_backbone is not None
    small: Any = parts.arm_backbone.manifest.metadata
    adapter: Any = parts.arm.manifest.metadata if parts.arm else None
    more = LOADER.needs(parts).total - LOADER.needs(alone).total
    assert more >= 4 * (small.parameters + adapter.parameters)


def test_parts_that_were_not_made_for_each_other_are_refused(tmp_path: Path) -> None:
    bundle = publish_separate_bundle(LocalArtifactStore(tmp_path / "store"), tmp_path / "work")
    with pytest.raises(AdapterBaseMismatch, match="model_digest of the ARM"):
        load(fetch(tmp_path, bundle, arm_backbone=bundle.manifest.base))


@pytest.mark.trap(3)
def test_an_arm_backbone_of_other_ids_is_refused(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path / "store")
    bundle = publish_separate_bundle(store, tmp_path / "work", swapped_tokenizer())
    with pytest.raises(TokenizerMismatch, match="'a' is"):
        load(fetch(tmp_path, bundle))
