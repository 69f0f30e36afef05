"""Which base model, harm vector, scale and ARM belong together, decided on their metadata alone.

The API, the worker and the decoder apply this one rule: before a job or a profile version exists, before a job reads
weights, and before a bundle does. Nothing here needs a model, a tokenizer or the database.
"""

from __future__ import annotations

from dataclasses import dataclass

from armature.contracts.artifacts import AdapterMetadata, Backbone, CheckpointMetadata, TaskVectorMetadata
from armature.errors import AdapterBaseMismatch, TokenizerMismatch


@dataclass(frozen=True)
class Parts:
    """A base model, the harm vector subtracted from it and the ARM that guides them, by their metadata.

    A harm vector comes with its artifact's digest. ``arm_backbone`` is the model of an ARM that is not on the base.
    """

    base: CheckpointMetadata
    harm_vector: TaskVectorMetadata | None = None
    harm_vector_digest: str | None = None
    harm_scale: float = 0.0
    adapter: AdapterMetadata | None = None
    arm_backbone: CheckpointMetadata | None = None

    def backbone(self) -> Backbone:
        """Describe the base with the harm vector subtracted; without a vector the scale counts as 0."""
        plain = _plain(self.base)
        if self.harm_vector is None:
            return plain
        return plain.model_copy(update={"harm_vector_digest": self.harm_vector_digest, "harm_scale": self.harm_scale})

    def arm_is_on_the_base(self) -> bool:
        """Tell whether the ARM was trained on exactly this backbone."""
        return self.adapter is not None and _effective(self.adapter.backbone) == self.backbone()

    def check(self, prefix: str | None = None) -> None:
        """Refuse parts that were not made for each other.

        Args:
            prefix: Where a request names the parts, such as ``spec.``; None: the errors carry no ``param``.

        Raises:
            AdapterBaseMismatch: The harm vector was taken from another base, or the ARM was trained on another
                backbone.
            TokenizerMismatch: The ARM was trained with another tokenizer.
        """
        if self.harm_vector is not None:
            made_for, param = self.harm_vector.base_model_digest, _param(prefix, "harm_vector")
            _same("model_digest of the harm vector", made_for, self.base.model_digest, param)
        if self.adapter is None:
            return
        trained_on, param = self.adapter.backbone, _param(prefix, "arm")
        found = self.backbone() if self.arm_backbone is None else _plain(self.arm_backbone)
        is_elsewhere = self.adapter.backbone_kind == "separate" and self.arm_backbone is None
        if is_elsewhere and trained_on.model_digest != found.model_digest:
            message = "the ARM is on a model of its own (backbone separate); here its base model has to be that one"
            raise AdapterBaseMismatch(message, param=param)
        check_backbone("the ARM", trained_on, found, param)


def check_backbone(part: str, made_for: Backbone, found: Backbone, param: str | None = None) -> None:
    """Refuse ``found`` unless it is the backbone that ``part`` was made for; messages name both digests.

    Raises:
        TokenizerMismatch: The tokenizers differ.
        AdapterBaseMismatch: The base models, the harm vectors or their scales differ.
    """
    made_for, found = _effective(made_for), _effective(found)
    if made_for.tokenizer_digest != found.tokenizer_digest:
        message = _difference(f"tokenizer_digest of {part}", made_for.tokenizer_digest, found.tokenizer_digest)
        raise TokenizerMismatch(message, param=param)
    for field in ("model_digest", "harm_vector_digest", "harm_scale"):
        _same(f"{field} of {part}", getattr(made_for, field), getattr(found, field), param)


def check_vocabulary(guided: CheckpointMetadata, guiding: CheckpointMetadata, param: str) -> None:
    """Refuse a separate backbone whose token ids differ from the guided model's, as far as metadata tells.

    An old checkpoint has no digest of its tokens; then the comparison is left to the process that has the tokenizers,
    as is that of added tokens, which one side may lack.

    Raises:
        TokenizerMismatch: Both digests are known and differ.
    """
    first, second = guided.tokens_digest, guiding.tokens_digest
    if first and second and first != second:
        message = "the separate backbone has other token ids, or another end of sequence, than the base model"
        raise TokenizerMismatch(message, param=param)


def _plain(model: CheckpointMetadata) -> Backbone:
    return Backbone(model_digest=model.model_digest, tokenizer_digest=model.tokenizer_digest)


def _effective(backbone: Backbone) -> Backbone:
    """``backbone`` with the scale that has an effect: 0 where no vector is subtracted."""
    return backbone if backbone.harm_vector_digest else backbone.model_copy(update={"harm_scale": 0.0})


def _param(prefix: str | None, field: str) -> str | None:
    return None if prefix is None else f"{prefix}{field}"


def _same(what: str, made_for: object, found: object, param: str | None) -> None:
    if made_for != found:
        raise AdapterBaseMismatch(_difference(what, made_for, found), param=param)


def _difference(what: str, made_for: object, found: object) -> str:
    return f"{what}: made for {made_for}, found {found}"
