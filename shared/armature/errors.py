"""The error taxonomy, one table of classes: meaning, code, HTTP status, and whether to retry.

One handler (:mod:`armature.http.errors`) converts them to the envelope that OpenAI's clients read; a failed job stores
the same object. ``code`` is stable, so clients may branch on it; docs/errors.md lists every code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ArmatureError(Exception):
    """Base of every error the platform raises on purpose.

    Args:
        message: One sentence to read; never contains secrets or stack traces.
        param: The field the error is about, as a dotted path (``spec.selection.density``).
        code: Overrides the class's code if one class serves several causes.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code


# --- the request is wrong -------------------------------------------------------------------------------------------


class InvalidRequest(ArmatureError):
    """The request is well-formed, but its content can not be accepted."""

    code, status, type = "invalid_request", 422, "invalid_request_error"


class MalformedBody(InvalidRequest):
    """The body is not the strict JSON that the platform reads."""

    code, status = "malformed_body", 400


class DuplicateKey(MalformedBody):
    """An object of the body has a key twice; parsers disagree on which value counts."""

    code = "duplicate_key"


class UnknownField(InvalidRequest):
    """The body has a field that the route does not have."""

    code = "unknown_field"


class MissingField(InvalidRequest):
    """The body lacks a required field."""

    code = "missing_field"


class NonFiniteNumber(InvalidRequest):
    """A number is NaN or infinite."""

    code = "non_finite_number"


class ZeroPreference(InvalidRequest):
    """Every weight of a preference is 0."""

    code = "zero_preference"


class InvalidCursor(InvalidRequest):
    """``after`` names no item of the list."""

    code, status = "invalid_cursor", 400


class InvalidIdempotencyKey(InvalidRequest):
    """The Idempotency-Key header is not 1 to 255 printable ASCII characters."""

    code, status = "invalid_idempotency_key", 400


class IdempotencyKeyReused(InvalidRequest):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_key_reused"


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the requested tokens do not fit into the model's context."""

    code, status = "context_length_exceeded", 400


class PayloadTooLarge(InvalidRequest):
    """The body is larger than the route accepts."""

    code, status = "payload_too_large", 413


class HeadersTooLarge(InvalidRequest):
    """The headers are larger than the limit."""

    code, status = "headers_too_large", 431


class SlowBody(InvalidRequest):
    """The body arrives too slowly to keep the connection for it."""

    code, status = "slow_body", 408


class MethodNotAllowed(InvalidRequest):
    """The route does not accept this method; the Allow header lists those that it accepts."""

    code, status = "method_not_allowed", 405


class UnsupportedMediaType(InvalidRequest):
    """The route does not accept this content type."""

    code, status = "unsupported_media_type", 415


class WrongKind(InvalidRequest):
    """An id refers to an existing resource that is not of the kind that the field needs."""

    code = "wrong_kind"


class InvalidDataset(InvalidRequest):
    """A data set breaks its format; the message names the line."""

    code = "invalid_dataset"


class InvalidCheckpoint(InvalidRequest):
    """A base model's folder is incomplete, unsafe (remote code, pickle) or inconsistent."""

    code = "invalid_checkpoint"


class InvalidSafetensors(InvalidCheckpoint):
    """A safetensors file is malformed."""

    code = "invalid_safetensors"


class InvalidAdapter(InvalidCheckpoint):
    """An adapter's files are malformed, do not fit the model, or fail the self-test recorded at training."""

    code = "invalid_adapter"


class ChecksumMismatch(InvalidRequest):
    """The received bytes do not have the announced digest."""

    code = "checksum_mismatch"


# --- the caller may not do it ---------------------------------------------------------------------------------------


class Unauthenticated(ArmatureError):
    """The API key is missing, unknown, revoked or expired."""

    code, status, type = "invalid_api_key", 401, "authentication_error"


class PermissionDenied(ArmatureError):
    """The API key is valid, but lacks the scope."""

    code, status, type = "missing_scope", 403, "permission_error"


class QuotaExceeded(ArmatureError):
    """The tenant is at a limit that only freeing resources lifts, not waiting."""

    code, status, type = "quota_exceeded", 403, "quota_error"


class ImportNotAllowed(PermissionDenied):
    """The operator does not allow imports from this folder or from the hub."""

    code = "import_not_allowed"


class NotFound(ArmatureError):
    """The resource does not exist or belongs to another tenant; the two are indistinguishable."""

    code, status, type = "not_found", 404, "not_found_error"


# --- the state does not allow it ------------------------------------------------------------------------------------


class Conflict(ArmatureError):
    """The resource's state does not allow the request."""

    code, status, type = "conflict", 409, "conflict_error"


class NameTaken(Conflict):
    """The tenant has another resource with this name."""

    code = "name_taken"


class VersionConflict(Conflict):
    """The alias does not point at the expected version: a concurrent request moved it first."""

    code = "version_conflict"


class GateNotPassed(Conflict):
    """The alias is gated, and the version's evaluations do not meet the gate's conditions."""

    code = "gate_not_passed"


class InUse(Conflict):
    """Something still refers to the resource, so it can not be deleted."""

    code = "in_use"


class InvalidTransition(Conflict):
    """A job can not move from its state to the requested one."""

    code = "invalid_transition"


class JobAlreadyFinished(InvalidTransition):
    """The job is over, and a final state is never left."""

    code = "job_already_finished"


class IdempotencyInProgress(Conflict):
    """Another request with this Idempotency-Key is in progress; a retry returns its response."""

    code, retryable = "idempotency_in_progress", True


class AnswerNotKept(Conflict):
    """The response of the first request with this Idempotency-Key had a secret, which is shown once."""

    code = "answer_not_kept"


class AdapterBaseMismatch(Conflict):
    """The adapter was trained on a backbone other than the one it is paired with."""

    code = "adapter_base_mismatch"


class TokenizerMismatch(Conflict):
    """Two models that must share a vocabulary have different ones."""

    code = "tokenizer_mismatch"


class RateLimited(ArmatureError):
    """Too many requests; the response has Retry-After and, if given, ``headers``."""

    code, status, type, retryable = "rate_limited", 429, "rate_limit_error", True

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.headers = dict(headers)


# --- the platform can not do it now ---------------------------------------------------------------------------------


class Unavailable(ArmatureError):
    """A part that the request needs can not be reached; retry later."""

    code, status, type, retryable = "unavailable", 503, "unavailable_error", True


class StorageUnavailable(Unavailable):
    """The object store can not be reached."""

    code = "storage_unavailable"


class EndpointUnavailable(Unavailable):
    """A chat endpoint that a job asks does not answer, or answers what no chat endpoint does."""

    code = "endpoint_unavailable"


class StorageRefused(StorageUnavailable):
    """The object store refuses the configured key or bucket; waiting does not help, its operator must act."""

    code, retryable = "storage_refused", False


class ArtifactCorrupt(ArmatureError):
    """Stored bytes do not have the digest in their manifest."""

    code = "artifact_corrupt"


class NotReady(Unavailable):
    """The model exists, but is being loaded or unloaded."""

    code = "not_ready"


class InsufficientMemory(Unavailable):
    """A model does not fit beside the loaded ones, or a job fits on no device of its worker."""

    code = "insufficient_memory"


class ModelTooLarge(InsufficientMemory):
    """A model needs more memory than the decoder may use at all."""

    code, retryable = "model_too_large", False


class ModelUnloadable(ArmatureError):
    """The decoder can not load a model's parts: its operator has to act, no change of the request helps."""

    code, status, type = "model_unloadable", 503, "unavailable_error"


class InsufficientDevices(Unavailable):
    """The job needs more devices than its worker has."""

    code = "insufficient_devices"


class NonFiniteLogits(ArmatureError):
    """The base model overflows on a prompt or answer: its logits are NaN or infinite."""

    code = "non_finite_logits"


# --- a job can not finish -------------------------------------------------------------------------------------------


class WorkerLost(ArmatureError):
    """The worker of every attempt was lost: its lease expired."""

    code = "worker_lost"


class NonFiniteLoss(ArmatureError):
    """The loss became NaN or infinite, and training stopped at once."""

    code = "non_finite_loss"


class TrainingStalled(ArmatureError):
    """Gradients are zero or the adapter did not change: the job would publish an untrained model."""

    code = "training_stalled"


class EmptyTaskVector(ArmatureError):
    """Training changed no selected weight, so the task vector has no entry."""

    code = "empty_harm_vector"


class OutOfMemory(ArmatureError):
    """The device ran out of memory."""

    code = "out_of_memory"


class RankLost(ArmatureError):
    """One of the job's ranks died, in every attempt."""

    code, retryable = "process_lost", True


class DeviceFault(ArmatureError):
    """The device failed; a new process can resume from the checkpoint."""

    code, retryable = "device_fault", True
