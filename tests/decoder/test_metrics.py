"""What the decoder counts: vLLM's suffixes, the phases of an answer, and what guidance did."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from armature.inference.batch import Sampled
from armature.inference.request import Guide, GuidedRequest
from armature_decoder.engine.step_clock import StepClock
from armature_decoder.request_metrics import Progress, RequestMetrics, Timeline
from tests.support.processes import wait_until
from tests.support.serving import DecoderProcess

DOCS = (Path(__file__).parents[2] / "docs/decoder.md").read_text()
GUIDED = Guide((1.0,), 2.0, 3.0)


def samples(text: str) -> dict[str, float]:
    """Values by sample name and label values."""
    return {
        "/".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(decoder: DecoderProcess, client: OpenAI, **fields: Any) -> tuple[Any, dict[str, float]]:
    """An answer, and by how much each sample grew."""
    before = samples(decoder.metrics())
    answer = client.completions.create(**{"model": "care", "prompt": "abcd", "max_tokens": 8, "seed": 1, **fields})
    after = samples(decoder.metrics())
    return answer, {name: value - before.get(name, 0.0) for name, value in after.items()}


def test_the_docs_name_every_metric_and_no_other(decoder_process: DecoderProcess, client: OpenAI) -> None:
    counted(decoder_process, client)
    counted(decoder_process, client, extra_body={"guidance_weight": 0.0})
    families = {family.name for family in text_string_to_metric_families(decoder_process.metrics())}
    there = {name for name in families if not name.endswith("_created") and not name.startswith("armature_http_")}
    section = DOCS[DOCS.index("## Metrics") :]
    documented = set(re.findall(r"`(armature_[a-z0-9_]+)(?:\{[a-z_]+\})?`", section))
    assert {name.removesuffix("_total") for name in there} == {name.removesuffix("_total") for name in documented}


def test_an_answer_is_counted_in_each_of_its_phases(decoder_process: DecoderProcess, client: OpenAI) -> None:
    answer, grown = counted(decoder_process, client, n=2, temperature=0)
    tokens = answer.usage.completion_tokens
    assert grown["armature_request_params_n_sum"] == 2
    assert grown["armature_request_params_max_tokens_sum"] == 8
    assert grown["armature_request_prompt_tokens_sum"] == grown["armature_prompt_tokens_total"] == 4
    assert grown["armature_request_generation_tokens_sum"] == grown["armature_generation_tokens_total"] == tokens
    assert grown["armature_request_max_num_generation_tokens_sum"] == tokens / 2
    for phase in ("queue", "prefill", "decode", "inference"):
        assert grown[f"armature_request_{phase}_time_seconds_count"] == 2, phase
    parts = sum(grown[f"armature_request_{phase}_time_seconds_sum"] for phase in ("queue", "prefill", "decode"))
    assert parts == pytest.approx(grown["armature_e2e_request_latency_seconds_sum"], abs=1e-6)
    assert grown["armature_request_time_per_output_token_seconds_count"] == 2
    assert grown["armature_step_seconds_count/all"] >= tokens / 2 - 1
    assert grown["armature_safe_set_tokens_total"] == tokens
    assert samples(decoder_process.metrics())["armature_slots/free"] > 0


def test_one_token_in_sixteen_is_measured(decoder_process: DecoderProcess, client: OpenAI) -> None:
    answer, grown = counted(decoder_process, client, n=3, max_tokens=32, logit_bias={"1": -100})
    assert answer.usage.completion_tokens == 3 * 32
    assert grown["armature_guided_divergence_nats_count"] == 3 * 2
    assert grown["armature_guided_divergence_nats_sum"] > 0


def test_iteration_tokens_include_prefill_of_each_stream(decoder_process: DecoderProcess, client: OpenAI) -> None:
    plain = {"guidance_weight": 0.0}
    for extra, streams in ((plain, 1), ({}, 2)):
        fresh = [7, 8, streams, *range(100, 120)]
        before = _turns(decoder_process)
        counted(decoder_process, client, prompt=fresh, extra_body=extra, logit_bias={"1": -100})
        steps = 7  # the first of eight tokens comes with the prompt
        after = (before[0] + len(fresh) * streams + steps, before[1] + 1 + steps)
        wait_until(lambda after=after: _turns(decoder_process) == after)  # a turn is counted when it is over


@pytest.mark.parametrize("wanted", [0, 3])
def test_a_prompt_is_scored_once_for_all_its_answers(
    decoder_process: DecoderProcess, client: OpenAI, wanted: int
) -> None:
    prompts = [[9, wanted, *range(130, 150)], [9, wanted, *range(150, 160)]]
    fields: dict[str, Any] = {"extra_body": {"guidance_weight": 0.0}, "logit_bias": {"1": -100}, "logprobs": 1}
    alone = client.completions.create(model="care", prompt=prompts[0], seed=1, echo=True, max_tokens=wanted, **fields)
    before = _turns(decoder_process)[0]
    answer, _ = counted(decoder_process, client, prompt=prompts, n=3, echo=True, max_tokens=wanted, **fields)
    computed = 3 if wanted else 1  # answers need the prompt computed, if not scored
    total = sum(map(len, prompts)) * computed + 6 * max(0, wanted - 1)
    wait_until(lambda: _turns(decoder_process)[0] == before + total)
    assert answer.choices[0] == alone.choices[0]
    for number, prompt in enumerate(prompts):
        mine = answer.choices[3 * number : 3 * number + 3]
        scores = [choice.logprobs.token_logprobs[: len(prompt)] for choice in mine]
        assert scores[0][1:] == scores[1][1:] == scores[2][1:]
        assert [len(choice.logprobs.tokens) for choice in mine] == [len(prompt) + wanted] * 3
        for choice in mine:
            assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)


def _turns(decoder: DecoderProcess) -> tuple[float, float]:
    now = samples(decoder.metrics())
    return now["armature_iteration_tokens_total_sum"], now["armature_iteration_tokens_total_count"]


def test_a_safe_set_of_one_token_rejects_what_guidance_favours(decoder_process: DecoderProcess, client: OpenAI) -> None:
    strong = {"guidance_weight": 32.0, "safe_set_delta": 0.0}
    _, grown = counted(decoder_process, client, extra_body=strong)
    assert grown["armature_safe_set_tokens_total"] == 8
    assert 1 <= grown["armature_safe_set_rejections_total"] <= 8
    _, grown = counted(decoder_process, client, extra_body={"guidance_weight": 0.0})
    assert grown["armature_safe_set_tokens_total"] == grown["armature_guided_divergence_nats_count"] == 0


def test_the_overhead_appears_after_guided_and_unguided_steps(decoder_process: DecoderProcess, client: OpenAI) -> None:
    counted(decoder_process, client)
    counted(decoder_process, client, extra_body={"guidance_weight": 0.0})
    wait_until(lambda: any("guided_overhead_ratio" in name for name in samples(decoder_process.metrics())))


def test_the_overhead_compares_steps_of_one_size() -> None:
    clock, plain, guided = StepClock(), GuidedRequest((1,), 1), GuidedRequest((1,), 1, guide=GUIDED)
    assert clock.guided_overhead is None
    assert clock.stepped([plain], 1.0) == "none"
    assert clock.stepped([guided] * 2, 9.0) == "all"
    assert clock.stepped([guided, plain], 5.0) == "some"
    assert clock.guided_overhead is None  # one alone and two together say nothing about guidance
    for seconds in (1.2, 1.4):
        clock.stepped([guided], seconds)
    assert clock.guided_overhead == pytest.approx(1.3)
    for _ in range(3):
        clock.stepped([plain] * 2, 6.0)
    assert clock.guided_overhead == pytest.approx((1.3 + 1.5) / 2)


def test_what_did_not_happen_is_not_counted() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)
    scored = Progress(GuidedRequest((1, 2), 0), Timeline(arrived=5.0))
    metrics.finished(scored, "length")
    assert registry.get_sample_value("armature_request_success_total", {"finished_reason": "length"}) == 1
    assert registry.get_sample_value("armature_e2e_request_latency_seconds_count") == 0
    one = Progress(GuidedRequest((1,), 1, guide=GUIDED), Timeline(arrived=5.0, began=6.0), tokens=1)
    metrics.token(one, Sampled(3, "length", divergence=0.5, rejected=True), now=8.0)
    metrics.finished(one, "length")
    assert registry.get_sample_value("armature_request_queue_time_seconds_sum") == 1
    assert registry.get_sample_value("armature_request_prefill_time_seconds_sum") == 2
    assert registry.get_sample_value("armature_request_time_per_output_token_seconds_count") == 0
    assert registry.get_sample_value("armature_guided_divergence_nats_sum") == 0.5
    assert registry.get_sample_value("armature_safe_set_rejections_total") == 1
