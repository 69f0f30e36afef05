"""What steers one request, through the stock ``openai`` client: the answer, its parts, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import openai
import pytest
from openai import OpenAI

from armature.contracts.answers import Alignment
from armature.contracts.profiles import Stages
from armature.inference.batch import sample_sequences
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.tokenization.prompts import encode_chat
from armature_decoder.guidance import STAGES
from armature_decoder.guidance.base import Applied
from tests.support.generate import generate_guided
from tests.support.processes import wait_until
from tests.support.serving import DecoderProcess, PublishedBundle, publish_bundle
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

HELLO: Any = [{"role": "user", "content": "hello"}]
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
PROMPT = tuple(encode_chat(TOKENIZER, HELLO))
EMPATHY = (1.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def bundle(serving_bundles: dict[str, PublishedBundle]) -> PublishedBundle:
    return serving_bundles["one"]


def test_each_stage_of_a_version_is_planned_and_said_to_be_applied() -> None:
    applied = {field.name for field in dataclasses.fields(Applied)}
    assert Stages.model_fields.keys() <= STAGES.keys()
    assert Stages.model_fields.keys() <= applied <= Alignment.model_fields.keys()


def chat(client: OpenAI, extra: dict[str, Any] | None = None, **fields: Any) -> Any:
    body = {"preference": {"empathy": 1.0}, **(extra or {})}
    fields = {"model": "care", "messages": HELLO, "max_tokens": 24, "seed": 9, **fields}
    return client.chat.completions.create(**fields, extra_body=body)


def expected(bundle: PublishedBundle, **fields: Any) -> str:
    request = GuidedRequest(PROMPT, **{"max_tokens": 24, "seed": 9, "guide": Guide(EMPATHY, 2.0, 6.0), **fields})
    return str(TOKENIZER.decode(generate_guided(bundle.reference, [request])[0], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({"temperature": 0.6, "top_p": 0.7}, {}),
        ({"temperature": 1.5}, {"top_k": 4}),
        ({"temperature": 1.5}, {"min_p": 0.2}),
        ({"temperature": 0.0}, {}),
    ],
    ids=lambda fields: ",".join(fields),
)
def test_sampling_is_that_of_the_request(
    client: OpenAI, bundle: PublishedBundle, fields: dict[str, Any], extra: dict[str, Any]
) -> None:
    answer = chat(client, extra, **fields)
    assert answer.choices[0].message.content == expected(bundle, **fields, **extra)
    assert answer.choices[0].message.content != expected(bundle)


def test_n_answers_are_those_of_n_seeds(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client, n=3, seed=40)
    assert [choice.message.content for choice in answer.choices] == [expected(bundle, seed=40 + i) for i in range(3)]


def test_a_bias_forces_and_bans_tokens_that_are_safe(client: OpenAI, bundle: PublishedBundle) -> None:
    wanted, unwanted = TOKENIZER.convert_tokens_to_ids(["a", "b"])
    answer = chat(client, {"safe_set_delta": 100.0}, logit_bias={str(wanted): 100, str(unwanted): -100})
    assert answer.choices[0].message.content == "a" * 24
    biased = ((wanted, 100.0), (unwanted, -100.0))
    narrow = chat(client, {"safe_set_delta": 0.5}, logit_bias={str(wanted): 100, str(unwanted): -100})
    text = narrow.choices[0].message.content
    assert text == expected(bundle, guide=Guide(EMPATHY, 2.0, 0.5), logit_bias=biased)
    assert text != "a" * 24  # a wish is no way out of the safe set


def test_strict_takes_the_arms_favourite_inside_the_safe_set(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client, {"safe_set_delta": 2.0, "safe_set_mode": "strict"}, temperature=2)
    alignment = answer.model_extra["alignment"]
    assert (alignment["safe_set_mode"], alignment["safe_set_delta"]) == ("strict", 2.0)
    assert answer.choices[0].message.content == expected(bundle, guide=Guide(EMPATHY, 2.0, 2.0, strict=True))
    soft = chat(client, {"safe_set_delta": 2.0}, temperature=2)
    assert soft.model_extra["alignment"]["safe_set_mode"] == "soft"
    assert soft.choices[0].message.content != answer.choices[0].message.content
    unguided = chat(client, {"guidance_weight": 0.0, "safe_set_mode": "strict"})
    assert unguided.model_extra["alignment"]["safe_set_mode"] is None
    assert unguided.choices[0].message.content == expected(bundle, guide=None)


def test_tokens_come_with_their_parts(client: OpenAI, bundle: PublishedBundle) -> None:
    answer = chat(client, {"logprob_parts": True}, max_tokens=1, logprobs=True)
    request = GuidedRequest(PROMPT, 1, 9, Guide(EMPATHY, 2.0, 6.0), top_logprobs=0)
    sampled = sample_sequences(bundle.reference, [request])[0][0]
    token = answer.choices[0].logprobs.content[0]
    assert token.logprob == token.parts["guided"] == pytest.approx(sampled.logprob, abs=1e-4)
    assert token.parts["safe"] == pytest.approx(sampled.safe_logprob, abs=1e-4)
    assert token.parts["arm"] == pytest.approx(sampled.arm_logprob, abs=1e-4)
    assert token.parts["safe"] != token.parts["arm"]
    unguided = chat(client, {"logprob_parts": True, "guidance_weight": 0.0}, max_tokens=1, logprobs=True)
    parts = unguided.choices[0].logprobs.content[0].parts
    assert parts["arm"] is None
    assert parts["safe"] == parts["guided"]
    assert chat(client, max_tokens=1, logprobs=True).choices[0].logprobs.content[0].parts is None


def test_text_completions_report_parts_and_finite_scores(client: OpenAI) -> None:
    answer = client.completions.create(
        model="care",
        prompt="abcdefgh",
        max_tokens=2,
        echo=True,
        logprobs=0,
        extra_body={"logprob_parts": True, "safe_set_delta": 0.01},
    )
    logprobs: Any = answer.choices[0].logprobs
    assert logprobs.parts[0] is None
    assert [part["guided"] for part in logprobs.parts[1:]] == logprobs.token_logprobs[1:]
    assert min(logprobs.token_logprobs[1:]) == -9999.0  # outside of a safe set of one token or so
    assert all(-100 < part["safe"] <= 0 for part in logprobs.parts[1:])
    assert len(logprobs.tokens) == len(logprobs.parts)


def test_the_harm_scale_chooses_among_the_versions_that_are_served(
    decoder_process: DecoderProcess, client: OpenAI, token: str, bundle: PublishedBundle
) -> None:
    installation = decoder_process.installation
    mild = publish_bundle(installation.store, decoder_process.log.parent, seed=7, harm_scale=0.5)
    installation.point("acme", "scaled", bundle.manifest, version=1)
    installation.point("acme", "scaled", mild.manifest, version=2, alias="mild")
    installation.publish()
    decoder_process.wait_ready(token, "scaled", "scaled@mild")

    def told(model: str, **extra: Any) -> tuple[str, int, float]:
        alignment = chat(client, extra, model=model, max_tokens=1).model_extra["alignment"]
        return alignment["alias"], alignment["version"], alignment["harm_scale"]

    assert told("scaled") == told("scaled", harm_scale=1.5) == ("live", 1, 1.5)
    assert told("scaled", harm_scale=0.5) == told("scaled@mild") == ("mild", 2, 0.5)
    assert told("scaled@mild", harm_scale=1.5) == ("live", 1, 1.5)
    answer = chat(client, {"harm_scale": 0.5}, model="scaled")
    assert answer.choices[0].message.content == expected(mild)
    with pytest.raises(openai.UnprocessableEntityError, match=r"0\.5, 1\.5") as refused:
        chat(client, {"harm_scale": 1.0}, model="scaled")
    assert (refused.value.code, refused.value.param) == ("harm_scale_not_served", "harm_scale")
    installation.drop("acme", "scaled")
    installation.publish()
    wait_until(lambda: "scaled" not in decoder_process.states(token))


def test_a_profile_may_be_strict_by_default(
    decoder_process: DecoderProcess, client: OpenAI, token: str, bundle: PublishedBundle
) -> None:
    guidance = bundle.manifest.guidance.model_copy(update={"safe_set_mode": "strict"})
    unset = guidance.model_copy(update={"safe_set_mode": "soft", "safe_set_delta": None})
    installation = decoder_process.installation
    for profile, defaults in (("strictly", guidance), ("freely", unset)):
        installation.point("acme", profile, bundle.manifest.model_copy(update={"guidance": defaults}))
    installation.publish()
    decoder_process.wait_ready(token, "strictly", "freely")
    assert chat(client, model="strictly").choices[0].message.content == expected(
        bundle, guide=Guide(EMPATHY, 2.0, 6.0, strict=True)
    )
    assert chat(client, {"safe_set_mode": "soft"}, model="strictly").choices[0].message.content == expected(bundle)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        chat(client, {"safe_set_mode": "strict"}, model="freely")
    assert refused.value.param == "safe_set_mode"
    for profile in ("strictly", "freely"):
        installation.drop("acme", profile)
    installation.publish()
