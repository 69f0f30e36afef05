"""Turn a recipe's exceptions into the errors stored with its job; details go to the log only."""

from __future__ import annotations

import resource
import sys

from armature.errors import ArmatureError, DeviceFault, OutOfMemory
from armature.logging import get_logger

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"

_log = get_logger(__name__)


def explain(error: Exception) -> ArmatureError:
    """Log ``error`` and return the error to store with the job."""
    if isinstance(error, ArmatureError):
        _log.warning("job failed", code=error.error_code, error=error.message)
        return error
    if _is_out_of_memory(error):
        _log.warning("out of memory", exc_info=error)
        return OutOfMemory(f"the job needs more memory than the worker has; {_usage()}")
    if is_device_fault(error):
        _log.error("device fault", exc_info=error)
        return DeviceFault("the device failed while it ran the job; the worker's log has the details")
    _log.error("job failed unexpectedly", exc_info=error)
    return ArmatureError("the job met an internal error; the worker's log has the details")


def is_device_fault(error: BaseException) -> bool:
    """Whether the process can not use its GPU any more: every later CUDA call would fail too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # None: a job without torch holds no device memory
    if isinstance(error, MemoryError) or _CPU_ALLOCATOR in str(error):
        return True
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _usage() -> str:
    """Describe the memory that the job held when an allocation failed."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return f"its process held {peak} bytes at the most"
    free, total = torch.cuda.mem_get_info()
    return (
        f"it held {torch.cuda.max_memory_allocated()} bytes at the most of the device's {total}, and {free} were free"
    )
