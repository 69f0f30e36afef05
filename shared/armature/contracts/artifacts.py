"""Artifacts: content-addressed, immutable, described by a manifest whose digest is their identity.

A blob is stored under its SHA-256, the manifest under its digest, both below the owning tenant's prefix. The manifest
lists the files, the inputs (parents, by digest) and how the artifact was made (producer).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from armature.contracts.base import Contract, Sha256, digest
from armature.contracts.pairs import PairsMetadata
from armature.contracts.preferences import AttributeName
from armature.contracts.weights import OriginOfWeights, SelectedShare, is_absent

ArtifactKind = Literal["checkpoint", "task_vector", "adapter", "lora", "report", "pairs"]


class BlobRef(Contract):
    """A file of an artifact: its path in the folder, and the digest and size of its bytes."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}$")]
    sha256: Sha256
    size: int = Field(ge=0, description="bytes")


class Parent(Contract):
    """An input of the artifact."""

    role: str
    digest: Sha256


class CheckpointMetadata(Contract):
    """Full weights. ``model_digest`` is the identity that adapters are matched against.

    It hashes config, tokenizer and weights (tensor by tensor, so sharding does not matter).
    """

    type: Literal["checkpoint"] = "checkpoint"
    model_digest: Sha256
    tokenizer_digest: Sha256
    weights_digest: Sha256
    architecture: str
    parameters: int = Field(ge=1)
    dtype: str
    vocab_size: int = Field(ge=1)
    context_length: int = Field(ge=1, description="tokens")
    chat_template: bool
    license_note: str | None = None
    vocabulary_digest: Sha256 | None = Field(
        None, description="of older checkpoints, over added tokens too; nothing compares it"
    )
    tokens_digest: Sha256 | None = Field(
        None,
        exclude_if=is_absent,  # older manifests keep their digests
        description="over the end of sequence and the ids of all tokens that are not added ones",
    )
    hidden_size: int | None = Field(None, ge=1)
    layers: int | None = Field(None, ge=1)
    origin: OriginOfWeights = None


TrainedRows = Annotated[
    dict[str, Annotated[int, Field(ge=0)]],
    Field(description="rows trained on, by data set; the others had no answer left within max_length"),
]


class TrainedWith(Contract):
    """What a job trained with where its spec may have left it to the platform."""

    learning_rate: float = Field(gt=0)
    steps: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1, description="rows or pairs in one forward pass of a process")


TrainingUsed = Annotated[TrainedWith | None, Field(exclude_if=is_absent)]
"""Left out of manifests that are older than it, which keep their digests."""


class TaskVectorMetadata(Contract):
    """A sparse parameter difference; a harm vector is one use of it."""

    type: Literal["task_vector"] = "task_vector"
    base_model_digest: Sha256
    rule: str
    density: float = Field(gt=0, le=1, description="share of the selected tensors' entries that is kept")
    kept: int = Field(ge=1, description="entries kept")
    total: int = Field(ge=1, description="entries in the selected tensors")
    norm: float = Field(ge=0, description="L2 norm of the kept entries")
    dense_norm: float = Field(ge=0, description="L2 norm of the whole difference over the selected tensors")
    tensors: int = Field(ge=1)
    rows: TrainedRows = Field(default_factory=dict)
    trained_with: TrainingUsed = None
    selected_share: SelectedShare = None


class Backbone(Contract):
    """The model that an ARM was trained on: a base, and the harm vector subtracted from it, if any."""

    model_digest: Sha256
    tokenizer_digest: Sha256
    harm_vector_digest: Sha256 | None = None
    harm_scale: float = Field(0.0, ge=0)


Dtype = Literal["float32", "bfloat16", "float16"]


class Reading(Contract):
    """Log-probabilities of a self-test's tokens, with the adapter on and off."""

    log_probs: list[float]
    base_log_probs: list[float]


def _is_empty(readings: dict[str, Reading]) -> bool:
    return not readings


class Canary(Contract):
    """The adapter's self-test: tokens, a preference, and the log-probabilities they gave at training.

    A loader repeats the forward pass, so an adapter that loads without effect is refused before it serves.
    """

    token_ids: list[int] = Field(min_length=1)
    preference: dict[str, float]
    log_probs: list[float] = Field(description="log pi_arm of the last position's top tokens")
    top_token_ids: list[int] = Field(min_length=1)
    base_log_probs: list[float] = Field(description="the same tokens with the adapter off")
    dtype: Dtype = Field("float32", description="dtype of the base's weights")
    readings: dict[Dtype, Reading] = Field(
        default_factory=dict,
        exclude_if=_is_empty,  # older manifests keep their digests
        description="by the dtype that the weights are served in, computed in float32; none in older adapters",
    )


LossForm = Literal["reference", "sum", "mean"]


class GridPoint(Contract):
    """The metrics of an ARM at one preference, by attribute with labels."""

    preference: dict[str, float]
    loss: dict[str, float] = Field(description="mean -log sigma(beta s m), not weighted by the preference")
    accuracy: dict[str, float] = Field(description="share of labelled pairs whose better answer has the higher reward")


class ArmValidation(Contract):
    """The metrics of an ARM on held-out pairs, at each vertex of the simplex and at its centroid."""

    step: int = Field(ge=1)
    pairs: int = Field(ge=1)
    points: list[GridPoint]


BackboneKind = Literal["safe", "base", "separate"]


AdapterKind = Literal["pblora", "modulated", "scaled"]


class AdapterMetadata(Contract):
    """An ARM: attributes by name, the adapter's kind and shape, the loss form that decoding must match."""

    type: Literal["adapter"] = "adapter"
    attributes: list[AttributeName]
    adapter_kind: AdapterKind = Field("pblora", exclude_if="pblora".__eq__)  # older manifests keep their digests
    rank_shared: int = Field(ge=0)
    rank_conditioned: int = Field(ge=1)
    alpha: float
    loss_form: LossForm
    beta: dict[str, float]
    backbone: Backbone
    backbone_kind: BackboneKind = Field(
        "base", description="the base minus the harm vector, the plain base, or a separate model"
    )
    canary: Canary
    parameters: int = Field(ge=1)
    rows: TrainedRows = Field(default_factory=dict)
    trained_with: TrainingUsed = None
    validation: ArmValidation | None = None
    selected_share: SelectedShare = None


class LoraMetadata(Contract):
    """An ARM at one fixed preference as a plain LoRA, for servers without preferences."""

    type: Literal["lora"] = "lora"
    preference: dict[str, float] = Field(description="weights by attribute, summing to 1")
    rank: int = Field(ge=1)
    backbone: Backbone = Field(description="the model that the LoRA is for")
    parameters: int = Field(ge=1)


class ReportMetadata(Contract):
    """An evaluation's metrics; the details are in the artifact's files."""

    type: Literal["report"] = "report"
    subject: dict[str, Any]
    metrics: dict[str, Any]


ArtifactMetadata = Annotated[
    CheckpointMetadata | TaskVectorMetadata | AdapterMetadata | LoraMetadata | ReportMetadata | PairsMetadata,
    Field(discriminator="type"),
]


class Producer(Contract):
    """The spec and version that made the artifact; no time or job id, so equal work has an equal digest."""

    kind: str
    spec: dict[str, Any]
    version: str = Field(description="Armature's version")


class ArtifactManifest(Contract):
    """The complete description of an artifact; :meth:`digest` identifies it across stores."""

    schema_version: Literal[1] = 1
    kind: ArtifactKind
    files: list[BlobRef]
    parents: list[Parent]
    metadata: ArtifactMetadata
    producer: Producer

    def digest(self) -> str:
        """Compute the SHA-256 over the canonical JSON of the manifest."""
        return digest(self.model_dump(mode="json"))


class ArtifactRef(Contract):
    """What is needed to fetch and verify an artifact without the database."""

    digest: Sha256
    manifest_key: str
