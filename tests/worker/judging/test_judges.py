"""The judges: a likelihood ratio equals its definition, an endpoint is asked blind and in both orders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from armature.contracts.rubrics import Rubric
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.settings import EndpointSettings
from armature_worker.judging.endpoint import EndpointVerdicts, read_vote
from armature_worker.judging.likelihood_ratio import LikelihoodRatio
from armature_worker.judging.port import Comparison, Verdict
from armature_worker.models.chat_endpoint import ChatEndpoint
from tests.support.recipe_world import World
from tests.support.scripted_server import Answer, Request, run_script
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint, tiny_llama

RUBRIC = Rubric(
    description="Kind.", instructions_for=["be kind", "be good"], instructions_against=["be cold", "be bad"]
)


def comparison(*answers: str, wording: int = 0) -> Comparison:
    return Comparison("ann is sad.", (answers[0], answers[1]), "kindness", RUBRIC, wording)


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_margin_is_the_difference_of_log_ratios_per_token(
    template: str | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    world = World(tmp_path)
    artifact = world.import_model(save_tiny_checkpoint(tmp_path / "source", tiny_llama(3).to(dtype), template))
    answers = ("i hear you.", "go away now, please.")
    wording = 1 if template else 0
    (verdict,) = LikelihoodRatio(artifact, "cpu", 0.02).compare([comparison(*answers, wording=wording)])
    model, tokenizer = load_model(artifact.path), load_tokenizer(artifact.path)

    def mean_log_prob(instruction: str, answer: str) -> float:
        before = f"{instruction}\n\nann is sad.\n\n"
        if template:
            before = f"<bos>[system]{instruction}<eos>[user]ann is sad.<eos>[assistant]"
        prompt = tokenizer(before, add_special_tokens=False).input_ids
        own = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1].float()
        picked = logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None])
        return float(picked.mean())

    # the wording after the one that the answers were written under
    kind, cold = RUBRIC.instructions_for[1 - wording], RUBRIC.instructions_against[1 - wording]
    scores = [mean_log_prob(kind, answer) - mean_log_prob(cold, answer) for answer in answers]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert verdict.margin == pytest.approx(scores[0] - scores[1], abs=tolerance)


def test_an_answer_beyond_the_context_gets_no_verdict(tmp_path: Path) -> None:
    world = World(tmp_path)
    artifact = world.import_model(save_tiny_checkpoint(tmp_path / "source"))
    judge = LikelihoodRatio(artifact, "cpu", 0.0)
    fits, long = judge.compare([comparison("yes.", "no."), comparison("yes.", "n" * 300)])
    assert fits.margin is not None
    assert long.margin is None


def test_a_verdict_below_the_margin_is_a_tie() -> None:
    assert [Verdict(margin).choice(0.1) for margin in (0.2, -0.2, 0.05, 0.0, None)] == [0, 1, None, None, None]
    assert Verdict(0.0).choice(0.0) is None


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("It is kinder.\nVerdict: 1", 1.0),
        ("**Verdict:** 2", -1.0),
        ("verdict: Tie.", 0.0),
        ("Verdict: 1? No. Verdict: Answer 2", -1.0),
        ("The first.", None),
        ("Verdict: 12", None),
        ("", None),
    ],
)
def test_the_last_verdict_of_a_text_is_read(text: str, vote: float | None) -> None:
    assert read_vote(text) == vote


# --- endpoints --------------------------------------------------------------------------------------------------------


def chat(text: object, reason: str = "stop") -> Answer:
    return Answer(body=json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode())


def endpoint(url: str, pauses: list[float] | None = None) -> ChatEndpoint:
    settings = EndpointSettings.model_validate({"url": url, "api_key": "sk-1", "concurrency": 1})
    return ChatEndpoint(settings, "grader", "spec.judges.0", (pauses if pauses is not None else []).append)


def test_both_orders_decide_and_nothing_tells_the_sides(tmp_path: Path) -> None:
    def prefer_kind(request: Request) -> Answer:
        question = json.loads(request.body)["messages"][0]["content"]
        assert "be kind" not in question
        assert "Kind." in question
        return chat(f"Verdict: {1 if question.index('KIND') < question.index('COLD') else 2}")

    with run_script([prefer_kind]) as server:
        judge = EndpointVerdicts(endpoint(server.url), 100, 0.5)
        verdicts = judge.compare([comparison("KIND", "COLD"), comparison("COLD", "KIND")])
    assert verdicts == [Verdict(1.0, True), Verdict(-1.0, True)]
    assert len(server.requests) == 4


def test_a_judge_that_prefers_a_place_has_no_preference() -> None:
    with run_script([chat("Verdict: 1")]) as server:
        (verdict,) = EndpointVerdicts(endpoint(server.url), 100, 0.5).compare([comparison("a", "b")])
    assert (verdict, verdict.choice(0.5)) == (Verdict(0.0, False), None)


def test_an_unreadable_verdict_is_no_tie() -> None:
    with run_script([chat("Verdict: 1"), chat(None)]) as server:
        (verdict,) = EndpointVerdicts(endpoint(server.url), 100, 0.5).compare([comparison("a", "b")])
    assert verdict == Verdict(None)
