"""Which errors leave a process that can compute no more."""

import re

from topd_ray.errors import EngineDiedError, TopdError

_TYPES = {"AcceleratorError", "DistBackendError", "EngineDeadError", "OutOfMemoryError"}
"""Classes of torch and vLLM, by name: the fake engine runs without either."""
_WORDS = re.compile(
    # of CUDA, its libraries, and compilers
    r"CUDA error|CUDA out of memory|CUDA driver error|Triton Error \[CUDA\]"
    r"|CUBLAS_STATUS_|CUDNN_STATUS_"
    # of collectives whose other ranks are gone
    r"|NCCL error|NCCL communicator|gloo/.*(closed|reset) by peer"
    # of vLLM, when one of its worker processes has died or does not answer
    r"|^Executor failed\.$|^cancelled$|^RPC call to \w+ timed out"
)


def is_fatal(error: BaseException) -> bool:
    """Return whether every later call of the same process would fail as well.

    A CUDA error spoils the process's context. A GPU that is full stays full, because
    the memory belongs to objects that live on. A process group does not outlive one of
    its processes. vLLM passes an error of its worker processes on as text.

    Args:
        error: What a call of an engine raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _TYPES or _WORDS.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def as_topd_error(error: BaseException, *, where: str = "") -> TopdError:
    """Return an `EngineDiedError` where the error is fatal, else a `TopdError`.

    Args:
        error: What a call of an engine raised.
        where: Put before its class and message.
    """
    kind = EngineDiedError if is_fatal(error) else TopdError
    return kind(f"{where}{type(error).__name__}: {error}")


__all__ = ["as_topd_error", "is_fatal"]
