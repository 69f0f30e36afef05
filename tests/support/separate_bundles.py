"""A bundle whose ARM is on a small model of its own and guides a bigger base."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from armature.contracts.artifacts import AdapterMetadata, ArtifactMetadata, ArtifactRef, Backbone
from armature.contracts.preferences import Guidance
from armature.contracts.profiles import ProfileManifest
from armature.inference.model import GuidedModel, eos_token_ids
from armature.modeling.adapters.arm import save_adapter
from armature.modeling.adapters.probe import record_probe
from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_tokenizer
from armature.storage.artifacts import publish_folder
from armature.storage.base import ArtifactStore
from tests.support.adapters import add_random_adapter
from tests.support.serving import PRODUCER, PublishedBundle
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, save_tiny_checkpoint, tiny_llama

ATTRIBUTES = ("empathy", "truthfulness")
ARM_TEMPLATE = "{{ bos_token }}{% for message in messages %}<{{ message.content }}>{% endfor %}"


def publish_separate_bundle(
    store: ArtifactStore, workdir: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> PublishedBundle:
    """Publish a base of three layers, an ARM's own of one (with its own chat template) and a random adapter on that.

    ``tokenizer`` is the small model's, if it is not the byte tokenizer.
    """

    def publish(name: str, metadata: ArtifactMetadata) -> ArtifactRef:
        return publish_folder(store, "ten_a", workdir / name, metadata=metadata, parents=[], producer=PRODUCER)[1]

    large, small = tiny_llama(21, layers=3), tiny_llama(22, layers=1)
    save_tiny_checkpoint(workdir / "large", large, CHAT_TEMPLATE)
    small.save_pretrained(workdir / "small")
    (tokenizer or byte_tokenizer(ARM_TEMPLATE)).save_pretrained(workdir / "small")
    base, own = (
        describe_checkpoint(open_checkpoint(workdir / name), load_tokenizer(workdir / name))
        for name in ("large", "small")
    )
    adapted = add_random_adapter(small, ATTRIBUTES, seed=4)
    save_adapter(adapted, workdir / "arm")
    adapter = AdapterMetadata(
        attributes=list(ATTRIBUTES),
        rank_shared=4,
        rank_conditioned=4,
        alpha=8.0,
        loss_form="reference",
        beta=dict.fromkeys(ATTRIBUTES, 2.0),
        backbone=Backbone(model_digest=own.model_digest, tokenizer_digest=own.tokenizer_digest),
        backbone_kind="separate",
        canary=record_probe(adapted, [5, 6, 7], {"empathy": 1.0}),
        parameters=sum(p.numel() for name, p in adapted.named_parameters() if "pblora" in name),
    )
    manifest = ProfileManifest(
        base=publish("large", base),
        backbone=Backbone(model_digest=base.model_digest, tokenizer_digest=base.tokenizer_digest),
        harm_vector=None,
        harm_scale=0.0,
        arm=publish("arm", adapter),
        arm_backbone=publish("small", own),
        attributes=list(ATTRIBUTES),
        loss_form="reference",
        guidance=Guidance(guidance_weight=2.0, safe_set_delta=6.0),
    )
    eos = eos_token_ids(large, byte_tokenizer())
    return PublishedBundle(manifest, GuidedModel(large, eos, 259, ATTRIBUTES, "reference", adapted))
