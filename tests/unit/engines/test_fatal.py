"""Errors as torch, DeepSpeed and vLLM word them: which end a process, and which not."""

import pytest
import torch

from topd_ray.engines.fatal import as_topd_error, is_fatal
from topd_ray.errors import ActorDiedError, EngineDiedError, TopdError

FATAL = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("unspecified launch failure"),
    torch.OutOfMemoryError("Tried to allocate 20.00 MiB"),
    torch.distributed.DistBackendError("unhandled system error"),
    RuntimeError("cuBLAS: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("NCCL communicator was aborted on rank 1."),
    RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:534] reset by peer"),
    # vLLM: a worker process failed, died, is silent; the queue to it was closed
    RuntimeError("Worker failed with error 'CUDA out of memory.', please check the"),
    RuntimeError("Executor failed."),
    TimeoutError("RPC call to execute_model timed out."),
    RuntimeError("cancelled"),
]
ORDINARY = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("prompt is too long"),
    ConnectionError("Connection reset by peer"),
    RuntimeError("the call was cancelled by its caller"),
    TimeoutError("timed out"),
    TopdError("weight lm_head.weight is missing"),
]


@pytest.mark.parametrize("error", FATAL, ids=str)
def test_an_error_that_no_later_call_survives_is_fatal(error: Exception) -> None:
    assert is_fatal(error)
    reason = as_topd_error(error, where="the engine died: ")
    assert type(reason) is EngineDiedError
    assert isinstance(reason, ActorDiedError)  # a loss that another actor makes good
    assert str(reason) == f"the engine died: {type(error).__name__}: {error}"


@pytest.mark.parametrize("error", ORDINARY, ids=str)
def test_any_other_error_is_not(error: Exception) -> None:
    assert not is_fatal(error)
    assert type(as_topd_error(error)) is TopdError


def test_the_cause_of_an_error_counts() -> None:
    error = ValueError("cannot score")
    error.__cause__ = FATAL[0]
    assert is_fatal(error)
