"""From training to serving: an ARM on a small model guides a larger one, and an instruction steers beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from armature.client import APIStatusError, Client
from armature.contracts.aliases import AliasGate, GateRule
from armature.contracts.artifacts import ReportMetadata
from armature.contracts.preferences import ATTRIBUTES
from armature.contracts.profiles import ProfileVersionCreateRequest
from armature.contracts.sda import Sda, SdaSteering
from armature.contracts.specs.evaluation import EvaluationGuidance
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest, Instruction
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.checkpoints.loading import load_model
from armature.modeling.tokenization.instructions import encode_instructed_chat
from armature.modeling.tokenization.prompts import encode_chat
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support import main_job
from tests.support.generate import generate_guided
from tests.support.processes import wait_until
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, save_tiny_checkpoint, tiny_llama

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MESSAGES: Any = [{"role": "user", "content": "my gate is old"}]
STAGE = Sda(instruction="Be kind.", strength=2.0, adaptive_temperature=None)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[EmbeddedPlatform]:
    with EmbeddedPlatform(Options(tmp_path / "data", 0, 0, 0, {})) as running:
        yield running


def train(client: Client, folder: Path) -> tuple[str, str, main_job.Datasets]:
    """The id of the large base, that of an ARM that was trained on the small one for it, and the data."""
    ids = {}
    for name, layers in (("large", 3), ("small", 1)):
        model = save_tiny_checkpoint(folder / name, tiny_llama(layers, layers=layers), CHAT_TEMPLATE)
        ids[name] = str(main_job.import_model(client, model, name).base_model_id)
    data = main_job.upload_datasets(client)
    spec = main_job.arm_spec(ids["large"], None, data).model_copy(
        update={"backbone": "separate", "backbone_model": ids["small"]}
    )
    job = client.jobs.wait(client.jobs.create(spec).id, timeout=180)
    return ids["large"], main_job.output(job, "arm").id, data


def go_live(client: Client, base: str, arm: str, data: main_job.Datasets) -> None:
    """Through a gate, which an evaluation of this very version opens."""
    client.profiles.ensure("answers")
    request = ProfileVersionCreateRequest(base_model=base, arm=arm, guidance=main_job.GUIDANCE, sda=STAGE)
    version = client.profiles.create_version("answers", request)
    assert version.sda == STAGE
    gate = AliasGate(rules=[GateRule(metric="degenerate", at_most=1.0)])
    client.profiles.aliases.set_gate("answers", gate, "live")
    guidance = EvaluationGuidance(**main_job.GUIDANCE.model_dump(exclude={"preference"}))
    plain = main_job.evaluation_spec(base, data, None, arm).model_copy(update={"guidance": guidance})
    steered = plain.model_copy(update={"sda": SdaSteering(**STAGE.model_dump(exclude={"bounds"}))})
    for spec in (plain, steered):
        with pytest.raises(APIStatusError, match="no evaluation of it"):
            client.profiles.aliases.move("answers", version.version, "live")
        job = client.jobs.wait(client.jobs.create(spec).id, timeout=180)
    report = main_job.output(job, "report").metadata
    assert isinstance(report, ReportMetadata)
    assert {"arm_backbone", "base_model", "arm"} <= {parent.role for parent in job.parents}
    assert report.subject["sda"]["instruction"] == STAGE.instruction
    assert report.metrics["kl_to_safe"] > 0
    client.profiles.aliases.move("answers", version.version, "live")


def said(model: GuidedModel, **fields: Any) -> str:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    prompt = tuple(encode_chat(tokenizer, MESSAGES))
    request = GuidedRequest(prompt, 16, 7, arm_prompt=prompt if "guide" in fields else (), **fields)
    return str(tokenizer.decode(generate_guided(model, [request])[0], skip_special_tokens=True))


def is_listed(client: openai.OpenAI) -> bool:
    try:
        return "answers" in {model.id for model in client.models.list()}
    except openai.AuthenticationError:  # the decoder has not read the key yet
        return False


def test_a_small_arm_and_an_instruction_from_training_to_serving(platform: EmbeddedPlatform, tmp_path: Path) -> None:
    with Client(platform.api_url, platform.admin_key) as admin, main_job.join_team(admin, platform, "care") as team:
        base, arm, data = train(team.client, tmp_path)
        go_live(team.client, base, arm, data)
        team.client.artifacts.download(arm, tmp_path / "arm")
        with openai.OpenAI(base_url=f"{platform.decoder_url}/v1", api_key=team.token, max_retries=8) as client:
            wait_until(lambda: is_listed(client), 60)
            options = {"both": {}, "arm": {"sda": {"strength": 0}}, "instruction": {"guidance_weight": 0}}
            answers = {
                name: client.chat.completions.create(
                    model="answers",
                    messages=MESSAGES,
                    max_tokens=16,
                    seed=7,
                    extra_body={"preference": {"empathy": 1.0}, **fields},
                )
                for name, fields in options.items()
            }
    adapted = load_adapter(load_model(tmp_path / "small"), tmp_path / "arm")
    model = GuidedModel(load_model(tmp_path / "large"), frozenset({1}), 259, ATTRIBUTES, "reference", adapted)
    below = encode_instructed_chat(byte_tokenizer(CHAT_TEMPLATE), MESSAGES, STAGE.instruction)
    guide = {"guide": Guide((1.0, 0.0, 0.0, 0.0, 0.0), main_job.GUIDANCE.guidance_weight, 5.0)}
    told = {"instruction": Instruction(2.0, safe_set_delta=5.0), "instructed_prompt": tuple(below)}
    for name, fields in {"both": {**guide, **told}, "arm": guide, "instruction": told}.items():
        assert answers[name].choices[0].message.content == said(model, **fields), name
    alignment = {name: answer.model_extra["alignment"] for name, answer in answers.items() if answer.model_extra}
    assert alignment["both"]["sda"]["instruction"] == STAGE.instruction
    assert alignment["arm"]["sda"] is None
    assert alignment["instruction"]["guidance_weight"] == 0
