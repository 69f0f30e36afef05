"""The one compatibility rule, and that API, worker and decoder decide as it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.contracts.artifacts import AdapterMetadata, ArtifactManifest, ArtifactMetadata, ArtifactRef, Producer
from armature.contracts.base import digest
from armature.contracts.compatibility import Parts, check_vocabulary
from armature.contracts.preferences import Guidance
from armature.contracts.profiles import ProfileManifest
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.db.models import Artifact
from armature.errors import AdapterBaseMismatch, ArmatureError, TokenizerMismatch
from armature_api.inputs.compatibility import Combination, check_combination
from armature_decoder.bundles.disk import DiskArtifact
from armature_decoder.bundles.loader import BundleParts, check_parts
from armature_worker.context.local import LocalContext
from armature_worker.context.ports import LocalArtifact
from armature_worker.models.backbone import describe_arm, describe_backbone
from tests.support.api import adapter, checkpoint, task_vector

Outcome = tuple[type[ArmatureError], str | None] | None
"""The error's class and its ``param``; None: accepted."""

NOWHERE = Path("/nowhere")
names = st.sampled_from(["base", "other"])
tokenizers = st.sampled_from(["tokenizer", "other"])
vectors = st.sampled_from([None, digest("vector"), digest("another vector")])
scales = st.sampled_from([0.0, 1.0, 1.5])
models = st.builds(checkpoint, names, tokenizers)


@st.composite
def adapters(draw: st.DrawFn) -> AdapterMetadata:
    trained = adapter(draw(names), tokenizer=draw(tokenizers), harm_vector=draw(vectors), harm_scale=draw(scales))
    return trained.model_copy(update={"backbone_kind": draw(st.sampled_from(["safe", "base", "separate"]))})


@st.composite
def parts(draw: st.DrawFn) -> Parts:
    vector = draw(vectors)
    trained = draw(st.none() | adapters())
    return Parts(
        base=draw(models),
        harm_vector=None if vector is None else task_vector(draw(names)),
        harm_vector_digest=vector,
        harm_scale=draw(scales),
        adapter=trained,
        arm_backbone=draw(st.none() | models) if trained is not None else None,
    )


def outcome(check: Callable[[], object]) -> Outcome:
    try:
        check()
    except ArmatureError as error:
        return type(error), error.param
    return None


def in_api(parts: Parts) -> Outcome:
    def row(metadata: ArtifactMetadata | None, own_digest: str = "") -> Artifact | None:
        if metadata is None:
            return None
        return Artifact(digest=own_digest, manifest=manifest(metadata).model_dump(mode="json"))

    base = row(parts.base)
    assert base is not None
    combination = Combination(
        base=base,
        harm_vector=row(parts.harm_vector, parts.harm_vector_digest or ""),
        harm_scale=parts.harm_scale,
        arm=row(parts.adapter),
        arm_backbone=row(parts.arm_backbone),
        prefix="spec.",
    )
    assert combination.parts().backbone() == parts.backbone()
    return outcome(lambda: check_combination(combination))


def in_worker(parts: Parts) -> Outcome:
    metadata = {
        "base_model": parts.base,
        "harm_vector": parts.harm_vector,
        "arm": parts.adapter,
        "arm_backbone": parts.arm_backbone,
    }
    artifacts = {
        role: LocalArtifact(NOWHERE, manifest(known), parts.harm_vector_digest or "")
        for role, known in metadata.items()
        if known is not None
    }
    context = LocalContext(NOWHERE, artifacts=artifacts)
    spec = EvaluationRunSpec(base_model="m", harm_scale=parts.harm_scale, lexicon="d", prompts="d")

    def check() -> None:
        assert describe_backbone(spec, context) == parts.backbone()
        if parts.adapter is not None:
            assert describe_arm(spec, context) == parts.adapter

    return outcome(check)


def in_decoder(parts: Parts) -> Outcome:
    return outcome(lambda: check_parts(bundle(parts)))


def bundle(parts: Parts) -> BundleParts:
    def on_disk(metadata: ArtifactMetadata | None) -> DiskArtifact | None:
        if metadata is None:
            return None
        return DiskArtifact(NOWHERE, manifest(metadata), parts.harm_vector_digest or "")

    base, any_ref = on_disk(parts.base), ArtifactRef(digest="0" * 64, manifest_key="")
    assert base is not None
    profile = ProfileManifest(
        base=any_ref,
        backbone=parts.backbone(),
        harm_vector=any_ref if parts.harm_vector else None,
        harm_scale=parts.harm_scale,
        arm=any_ref if parts.adapter else None,
        arm_backbone=any_ref if parts.arm_backbone else None,
        attributes=[],
        loss_form=None,
        guidance=Guidance(),
    )
    disk = (on_disk(metadata) for metadata in (parts.harm_vector, parts.adapter, parts.arm_backbone))
    return BundleParts(profile, base, *disk)


def manifest(metadata: ArtifactMetadata) -> ArtifactManifest:
    producer = Producer(kind="test", spec={}, version="0")
    return ArtifactManifest(kind=metadata.type, files=[], parents=[], metadata=metadata, producer=producer)


@given(parts())
def test_api_worker_and_decoder_decide_alike(parts: Parts) -> None:
    expected = outcome(lambda: parts.check("spec."))
    assert in_api(parts) == in_worker(parts) == expected
    assert in_decoder(parts) == (None if expected is None else (expected[0], None))


@given(parts())
def test_an_arm_fits_the_backbone_that_it_was_trained_on(parts: Parts) -> None:
    vector = parts.harm_vector and task_vector("base").model_copy(update={"base_model_digest": parts.base.model_digest})
    own = Parts(base=parts.arm_backbone or parts.base)
    backbone = replace(parts, harm_vector=vector).backbone() if parts.arm_backbone is None else own.backbone()
    trained = adapter().model_copy(update={"backbone": backbone})
    fitting = replace(parts, harm_vector=vector, adapter=trained)
    assert fitting.arm_is_on_the_base() == (fitting.backbone() == backbone)
    assert in_api(fitting) is in_worker(fitting) is in_decoder(fitting) is None


@given(parts(), scales, scales)
def test_a_scale_without_a_vector_counts_as_zero(parts: Parts, trained: float, asked: float) -> None:
    plain = replace(parts, harm_vector=None, harm_vector_digest=None, harm_scale=asked)
    assert plain.backbone().harm_scale == 0
    arm = adapter(harm_scale=trained).backbone.model_copy(
        update={"model_digest": plain.base.model_digest, "tokenizer_digest": plain.base.tokenizer_digest}
    )
    on_plain = replace(plain, adapter=adapter().model_copy(update={"backbone": arm}), arm_backbone=None)
    assert on_plain.arm_is_on_the_base()
    assert in_api(on_plain) is in_worker(on_plain) is in_decoder(on_plain) is None


SAFE = Parts(
    base=checkpoint(),
    harm_vector=task_vector(),
    harm_vector_digest=digest("vector"),
    harm_scale=1.5,
    adapter=adapter(harm_vector=digest("vector"), harm_scale=1.5),
)
SEPARATE = Parts(
    base=checkpoint("large"),
    adapter=adapter("small").model_copy(update={"backbone_kind": "separate"}),
    arm_backbone=checkpoint("small"),
)


@pytest.mark.parametrize(
    ("parts", "error", "field"),
    [
        (replace(SAFE, base=checkpoint("other")), AdapterBaseMismatch, "harm_vector"),
        (replace(SAFE, harm_vector=task_vector("other")), AdapterBaseMismatch, "harm_vector"),
        (replace(SAFE, adapter=None, harm_vector=task_vector("other")), AdapterBaseMismatch, "harm_vector"),
        (replace(SAFE, base=checkpoint(tokenizer="other")), TokenizerMismatch, "arm"),
        (replace(SAFE, harm_scale=1.0), AdapterBaseMismatch, "arm"),
        (replace(SAFE, harm_vector_digest=digest("other")), AdapterBaseMismatch, "arm"),
        (replace(SAFE, harm_vector=None, harm_vector_digest=None), AdapterBaseMismatch, "arm"),
        (replace(SAFE, adapter=adapter()), AdapterBaseMismatch, "arm"),
        (replace(SEPARATE, arm_backbone=None), AdapterBaseMismatch, "arm"),
        (replace(SEPARATE, arm_backbone=checkpoint("large")), AdapterBaseMismatch, "arm"),
        (replace(SEPARATE, arm_backbone=checkpoint("small", "other")), TokenizerMismatch, "arm"),
    ],
)
def test_one_difference_is_refused(parts: Parts, error: type[ArmatureError], field: str) -> None:
    assert outcome(lambda: parts.check("")) == (error, field)
    assert in_api(parts) == in_worker(parts) == (error, f"spec.{field}")
    assert in_decoder(parts) == (error, None)


def test_fitting_parts_are_accepted() -> None:
    for parts in (SAFE, SEPARATE, replace(SEPARATE, base=checkpoint("large", "other"))):
        assert in_api(parts) is in_worker(parts) is in_decoder(parts) is None


def test_messages_name_both_digests() -> None:
    with pytest.raises(AdapterBaseMismatch) as caught:
        replace(SAFE, harm_vector_digest=digest("other")).check()
    assert digest("vector") in caught.value.message
    assert digest("other") in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [{"harm_scale": 1.0}, {"harm_vector_digest": None}, {"model_digest": digest("other")}],
)
def test_a_decoder_refuses_a_profile_that_names_another_backbone(changes: dict[str, object]) -> None:
    fitting = bundle(SAFE)
    backbone = fitting.manifest.backbone.model_copy(update=changes)
    broken = replace(fitting, manifest=fitting.manifest.model_copy(update={"backbone": backbone}))
    with pytest.raises(AdapterBaseMismatch, match="of the profile"):
        check_parts(broken)


def test_known_vocabularies_must_agree() -> None:
    english, french, unknown = (checkpoint(words or "old", vocabulary=words) for words in ("en", "fr", None))
    check_vocabulary(english, english, "spec.arm")
    check_vocabulary(english, unknown, "spec.arm")
    check_vocabulary(unknown, french, "spec.arm")
    assert outcome(lambda: check_vocabulary(english, french, "spec.arm")) == (TokenizerMismatch, "spec.arm")
    guided = replace(SEPARATE, base=checkpoint("large", vocabulary="en"))
    assert in_api(replace(guided, arm_backbone=checkpoint("small", vocabulary="fr"))) == (TokenizerMismatch, "spec.arm")
