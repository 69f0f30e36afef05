"""Profile versions: which fields they share with the request that makes one, and what their digests cover."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from armature.contracts.answers import Alignment
from armature.contracts.artifacts import ArtifactRef, Backbone
from armature.contracts.base import digest
from armature.contracts.chat import ChatFormat
from armature.contracts.generation import GenerationRequest
from armature.contracts.preferences import Guidance, GuidanceBounds
from armature.contracts.profiles import (
    ARTIFACT_PARTS,
    ProfileManifest,
    ProfileVersionCreateRequest,
    ProfileVersionView,
    Stages,
)
from armature.contracts.specs.evaluation import EvaluationRunSpec
from tests.support.stages import STAGE_EXAMPLES, as_evaluated

REF = ArtifactRef(digest="0" * 64, manifest_key="")


def manifest(**fields: Any) -> ProfileManifest:
    plain: dict[str, Any] = {
        "base": REF,
        "backbone": Backbone(model_digest="1" * 64, tokenizer_digest="2" * 64),
        "harm_vector": None,
        "harm_scale": 0.0,
        "arm": None,
        "attributes": [],
        "loss_form": None,
        "guidance": Guidance(),
    }
    return ProfileManifest.model_validate({**plain, **fields})


def optional(model: type) -> set[str]:
    return {name for name, field in model.model_fields.items() if not field.is_required() and field.default is None}


def test_what_a_version_may_lack_is_an_artifact_a_stage_or_how_it_chats() -> None:
    shared = optional(ProfileVersionCreateRequest) & ProfileManifest.model_fields.keys()
    assert shared <= {*ARTIFACT_PARTS, *Stages.model_fields, "chat"}
    assert optional(ProfileManifest) <= {*ARTIFACT_PARTS, *Stages.model_fields, "chat"}


def test_the_artifacts_of_a_manifest_are_listed() -> None:
    annotations = {name: field.annotation for name, field in ProfileManifest.model_fields.items()}
    assert {name for name, one in annotations.items() if ArtifactRef in (one, *get_args(one))} == set(ARTIFACT_PARTS)
    assert manifest(arm=REF).artifacts == {"base": REF, "arm": REF}


@pytest.mark.parametrize("model", [GenerationRequest, Alignment, EvaluationRunSpec, ProfileVersionView])
def test_a_stage_has_a_field_wherever_one_is_named(model: type) -> None:
    assert optional(model) >= Stages.model_fields.keys()


@pytest.mark.parametrize("stage", STAGE_EXAMPLES)
def test_an_evaluation_takes_a_stage_as_a_version_has_it_without_its_bounds(stage: str) -> None:
    fields = {"kind": "evaluation.run", "base_model": "m", "lexicon": "words", "prompts": "asked"}
    spec = EvaluationRunSpec.model_validate({**fields, stage: as_evaluated(stage)})
    version = manifest(**{stage: STAGE_EXAMPLES[stage]}).stages()[stage].model_dump(mode="json", exclude={"bounds"})
    assert getattr(spec, stage).model_dump(mode="json") == version


@pytest.mark.parametrize("field", sorted(optional(ProfileManifest)))
def test_versions_older_than_an_optional_field_keep_their_digests(field: str) -> None:
    older = {name: value for name, value in manifest().model_dump(mode="json").items() if name != field}
    others = {name for name in optional(ProfileManifest) if older.get(name) is None}
    assert manifest().digest() == digest({name: value for name, value in older.items() if name not in others})
    assert ProfileManifest.model_validate_json(manifest().model_dump_json(exclude={field})) == manifest()


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": Guidance(guidance_weight=3.0)},
        {"bounds": GuidanceBounds(max_guidance_weight=3.0)},
        {"chat": ChatFormat(turns="alternating")},
        *({stage: example} for stage, example in STAGE_EXAMPLES.items()),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_versions_that_differ_in_what_needs_no_loading_share_a_bundle(changes: dict[str, Any]) -> None:
    assert manifest(**changes).digest() != manifest().digest()
    assert manifest(**changes).bundle_digest() == manifest().bundle_digest()


@pytest.mark.parametrize("part", ARTIFACT_PARTS)
def test_versions_that_differ_in_an_artifact_do_not_share_a_bundle(part: str) -> None:
    other = manifest(**{part: ArtifactRef(digest="3" * 64, manifest_key="")})
    assert other.bundle_digest() != manifest().bundle_digest()
