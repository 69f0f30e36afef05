"""The error taxonomy: a subclass is a meaning, and it carries its code, HTTP status and whether a retry can help.

One handler (:mod:`armature.http.errors`) turns these into the envelope that OpenAI's clients read; a failed job
stores the same object. ``code`` is the stable name clients may branch on; docs/errors.md lists every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ArmatureError(Exception):
    """Base of every error the platform raises on purpose.

    Args:
        message: One sentence for a person; never holds secrets or stack traces.
        param: The field the error is about, as a dotted path (``spec.selection.density``).
        code: Overrides the class's code where one class serves several causes.
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
    """The request is well-formed and its content can not be accepted."""

    code, status, type = "invalid_request", 422, "invalid_request_error"


class MalformedBody(InvalidRequest):
    """The body is not the strict JSON that the platform reads."""

    code, status = "malformed_body", 400


class DuplicateKey(MalformedBody):
    """An object of the body names a key twice; readers would disagree on which value counts."""

    code = "duplicate_key"


class UnknownField(InvalidRequest):
    """The body holds a field that the route does not know."""

    code = "unknown_field"


class MissingField(InvalidRequest):
    """The body lacks a required field."""

    code = "missing_field"


class NonFiniteNumber(InvalidRequest):
    """NaN or an infinity stands where a number is needed."""

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
    """The prompt and the tokens asked for do not fit into the model's context."""

    code, status = "context_length_exceeded", 400


class PayloadTooLarge(InvalidRequest):
    """The body is larger than the route accepts."""

    code, status = "payload_too_large", 413


class HeadersTooLarge(InvalidRequest):
    """The headers are larger than any request needs."""

    code, status = "headers_too_large", 431


class SlowBody(InvalidRequest):
    """The body arrives so slowly that waiting for it would only keep a connection busy."""

    code, status = "slow_body", 408


class MethodNotAllowed(InvalidRequest):
    """The route exists and does not take this method; the Allow header lists those that it takes."""

    code, status = "method_not_allowed", 405


class UnsupportedMediaType(InvalidRequest):
    """The content type is not one that the route reads."""

    code, status = "unsupported_media_type", 415


class WrongKind(InvalidRequest):
    """An id names something that exists and is not what the field needs."""

    code = "wrong_kind"


class InvalidDataset(InvalidRequest):
    """A data set breaks its format; the message names the line."""

    code = "invalid_dataset"


class InvalidCheckpoint(InvalidRequest):
    """A base model's folder is incomplete, unsafe (remote code, pickle) or not what it claims to be."""

    code = "invalid_checkpoint"


class InvalidSafetensors(InvalidCheckpoint):
    """A safetensors file is malformed."""

    code = "invalid_safetensors"


class InvalidAdapter(InvalidCheckpoint):
    """An adapter's files are malformed, do not fit the model, or load without the effect recorded at training."""

    code = "invalid_adapter"


class ChecksumMismatch(InvalidRequest):
    """Bytes received are not the bytes announced."""

    code = "checksum_mismatch"


# --- who asks -------------------------------------------------------------------------------------------------------


class Unauthenticated(ArmatureError):
    """No key, or one that is unknown, revoked or expired."""

    code, status, type = "invalid_api_key", 401, "authentication_error"


class PermissionDenied(ArmatureError):
    """The key is good and lacks the scope."""

    code, status, type = "missing_scope", 403, "permission_error"


class QuotaExceeded(ArmatureError):
    """The tenant's limits do not allow it, however long one waits; what is there has to go first."""

    code, status, type = "quota_exceeded", 403, "quota_error"


class ImportNotAllowed(PermissionDenied):
    """The platform's operator does not allow imports from this folder, or from the hub."""

    code = "import_not_allowed"


class NotFound(ArmatureError):
    """The resource does not exist, or belongs to another tenant: both look alike from outside."""

    code, status, type = "not_found", 404, "not_found_error"


# --- the state does not allow it ------------------------------------------------------------------------------------


class Conflict(ArmatureError):
    """The resource's state does not allow the request."""

    code, status, type = "conflict", 409, "conflict_error"


class NameTaken(Conflict):
    """The tenant has another resource of that name."""

    code = "name_taken"


class VersionConflict(Conflict):
    """The alias does not point at the version that the caller expects; somebody moved it first."""

    code = "version_conflict"


class GateNotPassed(Conflict):
    """The alias is gated, and the version's evaluations do not show what the gate asks for."""

    code = "gate_not_passed"


class InUse(Conflict):
    """Something still refers to the resource, so it can not be deleted."""

    code = "in_use"


class InvalidTransition(Conflict):
    """A job can not move from its state to the one asked for."""

    code = "invalid_transition"


class JobAlreadyFinished(InvalidTransition):
    """The job is over, and a final state is never left."""

    code = "job_already_finished"


class IdempotencyInProgress(Conflict):
    """Another request with this Idempotency-Key is being served; repeating it gives its answer."""

    code, retryable = "idempotency_in_progress", True


class AnswerNotKept(Conflict):
    """The first request with this Idempotency-Key was served, and its answer held a secret, which is shown once."""

    code = "answer_not_kept"


class AdapterBaseMismatch(Conflict):
    """The adapter was trained on another backbone than the one it is paired with."""

    code = "adapter_base_mismatch"


class TokenizerMismatch(Conflict):
    """Two models that must share a vocabulary do not."""

    code = "tokenizer_mismatch"


class RateLimited(ArmatureError):
    """Too many requests; the answer carries Retry-After, and ``headers`` where more is known."""

    code, status, type, retryable = "rate_limited", 429, "rate_limit_error", True

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.headers = dict(headers)


# --- the platform can not do it now ---------------------------------------------------------------------------------


class Unavailable(ArmatureError):
    """A part that the request needs is not reachable; trying again later helps."""

    code, status, type, retryable = "unavailable", 503, "unavailable_error", True


class StorageUnavailable(Unavailable):
    """The object store does not answer."""

    code = "storage_unavailable"


class ArtifactCorrupt(ArmatureError):
    """Stored bytes do not hash to the digest in their manifest."""

    code = "artifact_corrupt"


class NotReady(Unavailable):
    """The model exists and is not loaded yet, or no longer."""

    code = "not_ready"


class InsufficientMemory(Unavailable):
    """The model does not fit beside what is loaded, or a job on any of its worker's devices."""

    code = "insufficient_memory"


class InsufficientDevices(Unavailable):
    """The job wants more devices than its worker has."""

    code = "insufficient_devices"


class NonFiniteLogits(ArmatureError):
    """The base model overflows on a prompt or an answer: what it gives for the next token are no numbers."""

    code = "non_finite_logits"


# --- a job can not finish -------------------------------------------------------------------------------------------


class WorkerLost(ArmatureError):
    """Every attempt's worker vanished."""

    code = "worker_lost"


class NonFiniteLoss(ArmatureError):
    """Training met a NaN or an infinity and stopped at once."""

    code = "non_finite_loss"


class TrainingStalled(ArmatureError):
    """Gradients are zero or the adapter did not change: the run would publish an untrained model."""

    code = "training_stalled"


class EmptyTaskVector(ArmatureError):
    """Training changed no selected weight, so there is no entry to keep."""

    code = "empty_harm_vector"


class OutOfMemory(ArmatureError):
    """The device ran out of memory."""

    code = "out_of_memory"


class RankLost(ArmatureError):
    """One of the processes that ran the job together ended before its time, in every attempt."""

    code, retryable = "process_lost", True


class DeviceFault(ArmatureError):
    """The device failed under the job; a fresh process may go on from the checkpoint."""

    code, retryable = "device_fault", True
