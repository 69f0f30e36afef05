"""evaluation.run with an instruction and with a separate ARM answers as the decoder does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armature.contracts.artifacts import ArtifactRef, Backbone, ReportMetadata
from armature.contracts.generation import ChatCompletionRequest
from armature.contracts.preferences import Guidance
from armature.contracts.profiles import ProfileManifest
from armature.contracts.sda import Sda, SdaSteering
from armature.errors import AdapterBaseMismatch, ContextLengthExceeded, InvalidRequest, TokenizerMismatch
from armature.inference.batch import sample_sequences
from armature.inference.model import GuidedModel, eos_token_ids
from armature.inference.request import GuidedRequest
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.instructions import encode_instructed_chat
from armature.modeling.tokenization.prompts import encode_chat
from armature_decoder.guidance import plan_guidance
from armature_worker.context.ports import LocalArtifact, RecipeResult
from armature_worker.data.tokenized import stream_seed
from tests.support.recipe_context import as_input
from tests.support.recipe_world import ATTRIBUTES, DATA, World, arm_spec, evaluation_spec
from tests.support.separate_bundles import ARM_TEMPLATE
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, save_tiny_checkpoint, swapped_tokenizer, tiny_llama

pytestmark = pytest.mark.slow

STEERING = SdaSteering(instruction="Be kind.", strength=2.5)
SDA = {"sda": STEERING.model_dump(mode="json")}
GUIDANCE = {"guidance_weight": 2.0, "safe_set_delta": 4.0}
SEPARATE = {"base_model": "large", "arm": "arm"}
ATTACKS = 1
"""The name of the random stream that attacks draw from."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Bases of two sizes with chat templates, one without, and an ARM on the small one for the large."""
    world = World(tmp_path_factory.mktemp("world"))
    for name, layers, template in (("large", 3, CHAT_TEMPLATE), ("small", 1, ARM_TEMPLATE), ("base", 2, None)):
        source = world.folder / f"{name}-source"
        world.import_model(save_tiny_checkpoint(source, tiny_llama(layers, layers=layers), template), name)
    spec = arm_spec(base_model="large", backbone="separate", backbone_model="small")
    world.artifacts["arm"] = as_input(world.run(spec).outputs[0])
    return world


def read(result: RecipeResult) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = result.outputs[0].path
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return json.loads((folder / "report.json").read_text()), samples


def metadata_of(artifact: LocalArtifact) -> Any:
    return artifact.manifest.metadata


def manifest(world: World, *, arm: bool, sda: bool) -> ProfileManifest:
    """The profile manifest that serves the same models in a decoder."""

    def ref(name: str) -> ArtifactRef:
        return ArtifactRef(digest=world.artifacts[name].digest, manifest_key=name)

    base = metadata_of(world.artifacts["large"])
    return ProfileManifest(
        base=ref("large"),
        backbone=Backbone(model_digest=base.model_digest, tokenizer_digest=base.tokenizer_digest),
        harm_vector=None,
        harm_scale=0.0,
        arm=ref("arm") if arm else None,
        arm_backbone=ref("small") if arm else None,
        attributes=ATTRIBUTES if arm else [],
        loss_form="reference" if arm else None,
        guidance=Guidance(guidance_weight=2.0 if arm else 0.0, safe_set_delta=4.0),
        sda=Sda(**STEERING.model_dump()) if sda else None,
    )


def decode(world: World, *, arm: bool, sda: bool, max_tokens: int = 8) -> list[str]:
    """Answer each harmful prompt through the decoder's stages, at every vertex and the centroid."""
    folders = {name: artifact.path for name, artifact in world.artifacts.items()}
    tokenizer, small = load_tokenizer(folders["large"]), load_tokenizer(folders["small"])
    base = load_model(folders["large"])
    model = GuidedModel(base, eos_token_ids(base, tokenizer), len(tokenizer))
    preferences: list[dict[str, float] | None] = [None]
    if arm:
        own = load_adapter(load_model(folders["small"]), folders["arm"])
        model = GuidedModel(base, model.eos_ids, len(tokenizer), tuple(ATTRIBUTES), "reference", own)
        preferences = [{name: 1.0} for name in ATTRIBUTES] + [dict.fromkeys(ATTRIBUTES, 0.5)]
    requests = []
    for row, preference in enumerate(preferences):
        for column, asked in enumerate(DATA["harmful_prompts"]):
            messages = [{"role": "user", "content": asked["prompt"]}]
            given = ChatCompletionRequest.model_validate(
                {"model": "care", "messages": messages, "preference": preference}
            )
            plan = plan_guidance(manifest(world, arm=arm, sda=sda), given)
            below = encode_instructed_chat(tokenizer, messages, plan.instruction_text) if plan.instruction_text else ()
            request = GuidedRequest(
                tuple(encode_chat(tokenizer, messages)),
                max_tokens,
                stream_seed(3, ATTACKS, row, column),
                instructed_prompt=tuple(below),
                arm_prompt=tuple(encode_chat(small, messages)) if arm else (),
                guide=plan.guide,
                instruction=plan.instruction,
            )
            requests.append(request)
    return [
        str(tokenizer.decode([token.token for token in tokens if token.finish_reason != "stop"]))
        for tokens in sample_sequences(model, requests)
    ]


@pytest.mark.parametrize(("arm", "sda"), [(False, True), (True, False), (True, True)])
def test_an_evaluation_answers_as_the_decoder_does(arm: bool, sda: bool, world: World) -> None:
    changes: dict[str, Any] = {"arm": "arm" if arm else None, "sda": SDA["sda"] if sda else None}
    only = {
        "benign_pairs": None,
        "prompts": None,
        "guidance": GUIDANCE,
        "sampling": {"max_tokens": 8, "temperature": 1.0},
    }
    result = world.run(evaluation_spec(base_model="large", **changes, **only))
    report, samples = read(result)
    assert [sample["answer"] for sample in samples] == decode(world, arm=arm, sda=sda)
    plain = world.run(evaluation_spec(base_model="large", **only))
    assert {sample["answer"] for sample in samples} != {sample["answer"] for sample in read(plain)[1]}
    described = result.outputs[0].metadata
    assert isinstance(described, ReportMetadata)
    assert described.subject == report["subject"]
    assert report["subject"]["sda"] == (SDA["sda"] if sda else None)
    assert report["subject"]["arm_backbone"] == (world.artifacts["small"].digest if arm else None)
    parents = {parent.role: parent.digest for parent in result.outputs[0].parents}
    assert parents.get("arm_backbone") == report["subject"]["arm_backbone"]


def test_likelihoods_are_those_of_the_backbone_whatever_steers_it(world: World) -> None:
    only = {"harmful_prompts": None, "prompts": None, "base_model": "large"}
    plain, steered = (read(world.run(evaluation_spec(**only, **more)))[0] for more in ({}, {"arm": "arm", **SDA}))
    assert plain["metrics"] == steered["metrics"]


def test_an_arm_on_its_own_model_alone_needs_no_second_one(world: World) -> None:
    only = {"harmful_prompts": None, "benign_pairs": None, "prompts_per_preference": 1}
    report, _ = read(world.run(evaluation_spec(base_model="small", arm="arm", **only)))
    assert report["subject"]["arm_backbone"] is None
    assert report["metrics"]["kl_to_safe"] > 0


def test_without_a_template_the_instruction_precedes_the_prompt(world: World) -> None:
    only = {"harmful_prompts": None, "benign_pairs": None, "prompts_per_preference": 1}
    steered, plain = (read(world.run(evaluation_spec(**only, **more)))[1] for more in (SDA, {}))
    assert [sample["answer"] for sample in steered] != [sample["answer"] for sample in plain]
    off = {"sda": {"instruction": "x" * 400, "strength": 0.0}}  # too long, and never read
    _, samples = read(world.run(evaluation_spec(**only, **off)))
    assert [sample["answer"] for sample in samples] == [sample["answer"] for sample in plain]


def test_what_does_not_fit_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(ContextLengthExceeded, match="its instruction") as long:
        world.run(evaluation_spec(sda={"instruction": "x" * 250}, harmful_prompts=None))
    assert long.value.param == "spec.prompts"
    deaf = byte_tokenizer("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}hello")
    source = save_tiny_checkpoint(tmp_path / "deaf", tiny_llama(5))
    deaf.save_pretrained(source)
    other = World(tmp_path)
    other.import_model(source, "deaf")
    with pytest.raises(InvalidRequest, match="with the instruction") as refused:
        other.run(evaluation_spec(base_model="deaf", **SDA))
    assert refused.value.param == "spec.sda.instruction"


def test_models_that_do_not_go_together_are_refused(world: World, tmp_path: Path) -> None:
    small = world.artifacts["small"]
    swapped_tokenizer().save_pretrained(save_tiny_checkpoint(tmp_path / "swapped", tiny_llama(1, layers=1)))
    broken = {
        TokenizerMismatch: replace(small, path=tmp_path / "swapped"),
        AdapterBaseMismatch: replace(small, path=save_tiny_checkpoint(tmp_path / "other", tiny_llama(9, layers=1))),
    }
    for error, artifact in broken.items():
        changed = World(tmp_path / error.__name__, {**world.artifacts, "small": artifact})
        with pytest.raises(error):
            changed.run(evaluation_spec(**SEPARATE))
