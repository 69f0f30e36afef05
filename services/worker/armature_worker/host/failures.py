"""Exceptions of a recipe as the errors that its job's owner is told. What only the operator should see is logged."""

from __future__ import annotations

import resource
import sys

from armature.errors import ArmatureError, DeviceFault, OutOfMemory
from armature.logging import get_logger

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"

_log = get_logger(__name__)


def explain(error: Exception) -> ArmatureError:
    """The error to store with the job."""
    if isinstance(error, ArmatureError):
        _log.warning("job failed", code=error.error_code, error=error.message)
        return error
    if _is_out_of_memory(error):
        _log.warning("out of memory", exc_info=error)
        return OutOfMemory(f"the job needs more memory than the worker has; {_usage()}")
    if is_device_fault(error):
        _log.error("the device failed", exc_info=error)
        return DeviceFault("the device failed while it ran the job; the worker's log tells more")
    _log.error("job failed unexpectedly", exc_info=error)
    return ArmatureError("the job met an internal error; the worker's log tells more")


def is_device_fault(error: BaseException) -> bool:
    """Whether the process can not use its GPU any more: such a fault sticks to every later call."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # a job without torch can not have exhausted its device
    if isinstance(error, MemoryError) or _CPU_ALLOCATOR in str(error):
        return True
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _usage() -> str:
    """How much it had when it wanted more."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"its process held {peak} bytes at the most"
    free, total = torch.cuda.mem_get_info()
    return (
        f"it held {torch.cuda.max_memory_allocated()} bytes at the most of the device's {total}, and {free} were free"
    )
