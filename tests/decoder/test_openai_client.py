"""The stock ``openai`` client against a decoder that runs as a process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI

from armature.contracts.profiles import ProfileManifest
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.tokenization.prompts import encode_chat, encode_text
from tests.support.generate import generate_guided
from tests.support.serving import ATTRIBUTES, DecoderProcess, PublishedBundle
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

HELLO = [{"role": "user", "content": "hello"}]
TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)


def expected_text(bundle: PublishedBundle, prompt: list[int], **fields: object) -> str:
    """What the model says when it is asked in memory, alone."""
    request = GuidedRequest(prompt=tuple(prompt), **fields)  # type: ignore[arg-type]
    ids = generate_guided(bundle.reference, [request])[0]
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def guide(preference: dict[str, float], weight: float = 2.0, delta: float | None = 6.0) -> Guide:
    total = sum(preference.values())
    return Guide(tuple(preference.get(name, 0.0) / total for name in ATTRIBUTES), weight, delta)


def test_the_tenants_models_are_listed(client: OpenAI, serving_bundles: dict[str, PublishedBundle]) -> None:
    models = {model.id: model for model in client.models.list()}
    assert models.keys() == {"care", "other"}
    manifest: ProfileManifest = serving_bundles["one"].manifest
    extra = models["care"].model_extra or {}
    assert (extra["root"], extra["parent"], extra["state"]) == (manifest.digest(), manifest.base.digest, "ready")
    assert extra["attributes"] == list(ATTRIBUTES)


def test_a_chat_response_names_what_was_applied(client: OpenAI, serving_bundles: dict[str, PublishedBundle]) -> None:
    preference = {"empathy": 3.0, "helpfulness": 1.0}
    answer = client.chat.completions.create(
        model="care",
        messages=HELLO,
        max_tokens=20,
        seed=7,
        temperature=0.8,
        extra_body={"preference": preference, "guidance_weight": 3.0, "safe_set_delta": 4.0},
    )
    bundle = serving_bundles["one"]
    expected = expected_text(
        bundle,
        encode_chat(TOKENIZER, HELLO),
        max_tokens=20,
        seed=7,
        temperature=0.8,
        guide=guide(preference, 3.0, 4.0),
    )
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    assert answer.usage.prompt_tokens == len(encode_chat(TOKENIZER, HELLO))
    assert answer.system_fingerprint == f"fp_{bundle.manifest.bundle_digest()[:16]}"
    assert bundle.manifest.harm_vector is not None
    assert bundle.manifest.arm is not None
    assert (answer.model_extra or {})["alignment"] == {
        "profile": "care",
        "alias": "live",
        "version": 1,
        "base_digest": bundle.manifest.base.digest,
        "harm_vector_digest": bundle.manifest.harm_vector.digest,
        "harm_scale": 1.5,
        "arm_digest": bundle.manifest.arm.digest,
        "preference": {"empathy": 0.75, "truthfulness": 0.0, "helpfulness": 0.25},
        "guidance_weight": 3.0,
        "safe_set_delta": 4.0,
        "safe_set_mode": "soft",
        "sda": None,
    }


def test_a_stream_adds_up_to_the_answer(client: OpenAI) -> None:
    arguments = {"model": "care", "messages": HELLO, "max_tokens": 24, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**arguments)  # type: ignore[call-overload]
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    chunks = list(
        client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert texts[0] != texts[1]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert chunks[0].model_extra["alignment"] == whole.model_extra["alignment"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []


def test_concurrent_preferences_get_what_they_get_alone(
    client: OpenAI, serving_bundles: dict[str, PublishedBundle]
) -> None:
    preferences = [{"empathy": 1.0}, {"helpfulness": 1.0}]

    def ask(index: int) -> str | None:
        return (
            client.chat.completions.create(
                model="care",
                messages=HELLO,
                max_tokens=60,
                seed=11,
                extra_body={"preference": preferences[index % 2]},
            )
            .choices[0]
            .message.content
        )

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    expected = [
        expected_text(
            serving_bundles["one"], encode_chat(TOKENIZER, HELLO), max_tokens=60, seed=11, guide=guide(preference)
        )
        for preference in preferences
    ]
    assert expected[0] != expected[1]
    assert answers == expected * 3


def test_weight_zero_is_the_safe_base(client: OpenAI, serving_bundles: dict[str, PublishedBundle]) -> None:
    answer = client.completions.create(
        model="care", prompt="abc", max_tokens=16, temperature=0, extra_body={"guidance_weight": 0.0}
    )
    expected = expected_text(serving_bundles["one"], encode_text(TOKENIZER, "abc"), max_tokens=16, temperature=0.0)
    assert answer.choices[0].text == expected
    assert (answer.model_extra or {})["alignment"]["safe_set_delta"] is None


def test_a_streamed_completion(client: OpenAI) -> None:
    arguments = {"model": "other", "prompt": "once", "max_tokens": 12, "seed": 5}
    whole = client.completions.create(**arguments)  # type: ignore[call-overload]
    pieces = client.completions.create(**arguments, stream=True)  # type: ignore[call-overload]
    assert "".join(choice.text for chunk in pieces for choice in chunk.choices) == whole.choices[0].text


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    arguments = {"model": "care", "messages": HELLO, "max_tokens": 60, "seed": 2}
    full = client.chat.completions.create(**arguments).choices[0].message.content  # type: ignore[call-overload]
    stop = full[10:13]
    for stream in (False, True):
        answer = client.chat.completions.create(**arguments, stop=[stop, "never said"], stream=stream)  # type: ignore[call-overload]
        if stream:
            text, reason = "", None
            for chunk in answer:
                text += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (full[: full.index(stop)], "stop")


def test_top_logprobs_are_sorted(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="care", messages=HELLO, max_tokens=5, seed=1, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 5
    for token in content:
        assert token.logprob <= 0
        assert [top.logprob for top in token.top_logprobs] == sorted(t.logprob for t in token.top_logprobs)[::-1]
        assert len(token.top_logprobs) <= 3


def test_another_tenants_model_does_not_exist(client: OpenAI) -> None:
    for name in ("calm", "care@canary", "care@", "@live", "CARE", "../care", "care@live@live", "сare"):
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model=name, messages=HELLO)
        assert error.value.code == "model_not_found"
        assert error.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_model_is_retrieved_as_it_is_listed(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert client.models.retrieve("care") == client.models.retrieve("care@live") == listed["care"]


def test_the_live_alias_may_be_written_out(client: OpenAI) -> None:
    assert client.completions.create(model="care@live", prompt="x", max_tokens=1).choices[0].text is not None


@pytest.mark.parametrize("key", ["nonsense", "ak_0123456789abcdef_" + "A" * 43])
def test_a_bad_key_is_an_authentication_error(decoder_process: DecoderProcess, token: str, key: str) -> None:
    half_right = f"ak_{token.split('_')[1]}_{'A' * 43}"
    with OpenAI(base_url=f"{decoder_process.url}/v1", api_key=key, max_retries=0) as stranger:
        for guess in (stranger, stranger.with_options(api_key=half_right)):
            with pytest.raises(openai.AuthenticationError):
                guess.models.list()


def test_a_prompt_beyond_the_context_is_a_bad_request(client: OpenAI) -> None:
    for content, limit in (("x" * 300, 1), ("x" * 100, 200), ("x" * 5000, 1)):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(
                model="care", messages=[{"role": "user", "content": content}], max_tokens=limit
            )
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.bad_input(22)
def test_special_tokens_in_a_prompt_are_text(client: OpenAI) -> None:
    answer = client.completions.create(model="care", prompt="<eos>", max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens >= len("<eos>")
