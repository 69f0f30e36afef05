"""An instruction as the second stage, through the stock ``openai`` client."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from armature.algorithms.instruction_steering import amplification
from armature.contracts.sda import AdaptiveTemperature, Sda, SdaBounds
from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.modeling.tokenization.instructions import encode_instructed_chat, encode_instructed_text
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from tests.support.generate import generate_guided
from tests.support.serving import DecoderProcess, PublishedBundle
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

HELLO: Any = [{"role": "user", "content": "hello"}]
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
TEXT = "Be kind."
STAGE = Sda(
    instruction=TEXT,
    strength=2.5,
    adaptive_temperature=AdaptiveTemperature(sigma=0.01, least=0.5),
    bounds=SdaBounds(max_strength=6.0),
)
INSTRUCTION = Instruction(2.5, 0.01, 0.5, 6.0)


@pytest.fixture(scope="module")
def bundle(serving_bundles: dict[str, PublishedBundle]) -> PublishedBundle:
    return serving_bundles["one"]


@pytest.fixture(scope="module")
def client(decoder_process: DecoderProcess, bundle: PublishedBundle) -> Iterator[OpenAI]:
    """Of a tenant whose profiles have the stage: as it is, with a fixed text, without an ARM; and one that has none."""
    installation, manifest = decoder_process.installation, bundle.manifest
    installation.add_tenant("steered")
    fixed = STAGE.model_copy(update={"bounds": SdaBounds(own_instruction=False)})
    no_arm = {"arm": None, "attributes": [], "loss_form": None}
    for name, changes in {
        "told": {"sda": STAGE},
        "fixed": {"sda": fixed},
        "alone": {"sda": STAGE, **no_arm},
        "plain": {},
    }.items():
        installation.point("steered", name, manifest.model_copy(update=changes))
    token = installation.add_key("steered")
    installation.publish()
    time.sleep(0.5)
    decoder_process.wait_ready(token, "told", "fixed", "alone", "plain")
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=token, max_retries=0) as client:
        yield client


def chat(client: OpenAI, model: str = "told", sda: dict[str, Any] | None = None, **fields: Any) -> Any:
    fields = {"model": model, "messages": HELLO, "max_tokens": 16, "seed": 9, **fields}
    return client.chat.completions.create(**fields, extra_body={"sda": sda} if sda is not None else {})


def asked(instruction: Instruction | None = INSTRUCTION, text: str = TEXT, **fields: Any) -> GuidedRequest:
    request = GuidedRequest(
        tuple(encode_chat(TOKENIZER, HELLO)), 16, 9, Guide((1 / 3,) * 3, 2.0, 6.0), instruction=instruction
    )
    below = tuple(encode_instructed_chat(TOKENIZER, HELLO, text)) if instruction else ()
    return dataclasses.replace(request, instructed_prompt=below, **fields)


def said(model: GuidedModel, request: GuidedRequest) -> str:
    return str(TOKENIZER.decode(generate_guided(model, [request])[0], skip_special_tokens=True))


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_instruction_and_arm_are_reported_in_the_answer(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client)
    assert text_of(answer) == said(bundle.reference, asked()) != said(bundle.reference, asked(None))
    applied = answer.model_extra["alignment"]["sda"]
    assert applied == {
        "instruction": TEXT,
        "strength": 2.5,
        "adaptive_temperature": {"sigma": 0.01, "least": 0.5},
        "safe_set_delta": 6.0,
    }
    assert answer.usage.prompt_tokens == len(asked().prompt)  # what the client sent


def test_a_request_brings_its_own_instruction_and_strength(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client, sda={"instruction": "Be brief.", "strength": 5.0})
    stronger = dataclasses.replace(INSTRUCTION, strength=5.0)
    assert text_of(answer) == said(bundle.reference, asked(stronger, "Be brief."))
    assert answer.model_extra["alignment"]["sda"]["instruction"] == "Be brief."


def test_a_good_score_leaves_less_to_amplify(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client, sda={"score": 50})
    strength = 1 + 1.5 * amplification(50)
    assert answer.model_extra["alignment"]["sda"]["strength"] == pytest.approx(strength)
    assert text_of(answer) == said(bundle.reference, asked(dataclasses.replace(INSTRUCTION, strength=strength)))
    assert chat(client, sda={"score": 100}).model_extra["alignment"]["sda"]["strength"] == 1.0


def test_strength_0_is_exactly_without(client: OpenAI) -> None:
    off, plain = chat(client, sda={"strength": 0.0}, logprobs=True), chat(client, "plain", logprobs=True)
    assert off.choices[0].model_dump() == plain.choices[0].model_dump()
    assert off.model_extra["alignment"]["sda"] is None


def test_it_needs_no_arm_and_keeps_to_the_safe_set(client: OpenAI, bundle: PublishedBundle) -> None:
    for delta in (6.0, 0.3):
        answer = client.chat.completions.create(
            model="alone",
            messages=HELLO,
            max_tokens=16,
            seed=9,
            extra_body={"safe_set_delta": delta, "sda": {"strength": 6.0}},
        )
        instruction = dataclasses.replace(INSTRUCTION, strength=6.0, safe_set_delta=delta)
        assert text_of(answer) == said(bundle.reference, asked(instruction, guide=None))
        assert answer.model_extra["alignment"]["sda"]["safe_set_delta"] == delta


def test_choices_streams_stops_and_log_probabilities(client: OpenAI, bundle: PublishedBundle) -> None:
    whole = chat(client, n=3, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in whole.choices] == [
        said(bundle.reference, asked(seed=9 + i)) for i in range(3)
    ]
    sampled = sample_sequences(bundle.reference, [asked(top_logprobs=2)])[0]
    told = [token.logprob for token in whole.choices[0].logprobs.content]
    assert told == pytest.approx([token.logprob for token in sampled], abs=1e-3)
    chunks = list(chat(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(whole)
    assert chunks[0].model_extra["alignment"]["sda"]["strength"] == 2.5
    stop = text_of(whole)[2:4]
    assert text_of(chat(client, stop=stop)) == text_of(whole).split(stop)[0]


def test_texts_and_token_ids_come_after_the_instruction(client: OpenAI, bundle: PublishedBundle) -> None:
    ids = encode_text(TOKENIZER, "once")
    for prompt in ("once", ids):
        answer = client.completions.create(model="told", prompt=prompt, max_tokens=8, seed=3)
        below = tuple(encode_instructed_text(TOKENIZER, prompt, TEXT))
        request = asked(prompt=tuple(ids), max_tokens=8, seed=3)
        assert answer.choices[0].text == said(bundle.reference, dataclasses.replace(request, instructed_prompt=below))


@pytest.mark.parametrize(
    ("model", "body", "status", "code", "param"),
    [
        ("plain", {"sda": {"strength": 1.0}}, 422, "no_sda", "sda"),
        ("told", {"sda": {"strength": 6.5}}, 422, "out_of_bounds", "sda.strength"),
        ("fixed", {"sda": {"instruction": "Be rude."}}, 422, "out_of_bounds", "sda.instruction"),
        ("told", {"sda": {"instruction": ""}}, 422, "invalid_request", "sda.instruction"),
        ("told", {"sda": {"strength": -1}}, 422, "invalid_request", "sda.strength"),
        ("told", {"sda": {"score": 0}}, 422, "invalid_request", "sda.score"),
        ("told", {"sda": {"kappa": 2}}, 422, "unknown_field", "sda.kappa"),
        ("told", {"sda": {"instruction": "x" * 250}}, 400, "context_length_exceeded", "messages"),
        ("alone", {"preference": {"empathy": 1.0}}, 422, "no_arm", "preference"),
    ],
)
def test_bad_steering_is_refused(
    client: OpenAI, model: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, extra_body=body)
    error: Any = refused.value.body
    assert (refused.value.status_code, error["code"], error["param"]) == (status, code, param)


def test_a_prompt_is_scored_without_an_instruction_only(client: OpenAI) -> None:
    scored = {"model": "told", "prompt": "once", "max_tokens": 0, "echo": True, "logprobs": 0}
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**scored)
    assert refused.value.body["param"] == "sda.strength"
    answer = client.completions.create(**scored, extra_body={"sda": {"strength": 0}})
    assert len(answer.choices[0].logprobs.tokens) == len(encode_text(TOKENIZER, "once"))
