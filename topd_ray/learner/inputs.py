"""TrainBatch -> the tensors that `DistillationModel.forward` takes.

Axes as in messages.py.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor

from topd_ray.engines.tensors import to_torch
from topd_ray.errors import UserError
from topd_ray.messages import (
    HiddenSignal,
    Ints,
    SampledSignal,
    TeacherSignal,
    TopkSignal,
    TrainBatch,
)

Signal = Literal["hidden", "topk", "sampled"]


def forward_inputs(batch: TrainBatch, *, num_ids: int) -> tuple[Tensor, ...]:
    """Return the arguments of `DistillationModel.forward`, in their order.

    Args:
        batch: A micro-batch.
        num_ids: V, the number of ids.

    Returns:
        Copies of the batch's arrays; ids, lengths and indices as int64.

    Raises:
        UserError: The teacher kept the id of a token that the student does not have.
    """
    return (
        _ids(batch.input_ids_L),
        _ids(batch.length_S),
        _ids(batch.trunk_S),
        _ids(batch.branch_S),
        _ids(batch.position_TU),
        _ids(batch.response_ids_T),
        to_torch(batch.logp_T),
        to_torch(batch.weight_T),
        to_torch(batch.reverse_T),
        to_torch(batch.forward_T),
        _ids(batch.window_Q),
        _ids(batch.target_ids_QK),
        to_torch(batch.target_weights_QK),
        *_signal_inputs(batch.signal, num_ids),
    )


def padded(batch: TrainBatch, min_tokens: int) -> TrainBatch:
    """Return a micro-batch with at least so many tokens.

    The further tokens are a segment for themselves and train nothing.
    """
    missing = min_tokens - len(batch.input_ids_L)
    if missing <= 0:
        return batch
    return replace(
        batch,
        input_ids_L=np.append(batch.input_ids_L, np.zeros(missing, np.int32)),
        length_S=np.append(batch.length_S, np.int32(missing)),
        trunk_S=np.append(batch.trunk_S, np.int32(len(batch.trunk_S))),
        branch_S=np.append(batch.branch_S, np.int32(0)),
    )


def empty_batch(signal: Signal, *, width: int, policy_version: int) -> TrainBatch:
    """Return a micro-batch that trains nothing: one token, no trained position.

    A rank that runs out of rollouts runs it, because the collectives of sharded weights
    and gradients need every rank in every forward and backward pass.

    Args:
        signal: The kind of teacher signal of the other micro-batches.
        width: Their number of columns: E for `hidden`, M for `topk`; unused for
            `sampled`.
        policy_version: Version of the weights that the learner holds.

    Returns:
        A batch with S = L = 1 and T = U = Q = 0.
    """
    no_ints = np.zeros(0, np.int32)
    no_floats = np.zeros(0, np.float32)
    return TrainBatch(
        rollout_ids=(),
        policy_version=policy_version,
        input_ids_L=np.zeros(1, np.int32),
        length_S=np.ones(1, np.int32),
        trunk_S=np.zeros(1, np.int32),
        branch_S=np.zeros(1, np.int32),
        position_TU=no_ints,
        response_ids_T=no_ints,
        logp_T=no_floats,
        weight_T=no_floats,
        reverse_T=np.zeros(0, np.bool_),
        forward_T=np.zeros(0, np.bool_),
        signal=_no_signal(signal, width),
        window_Q=no_ints,
        target_ids_QK=np.zeros((0, 1), np.int32),
        target_weights_QK=np.zeros((0, 1), np.float32),
    )


def _no_signal(signal: Signal, width: int) -> TeacherSignal:
    no_rows = np.zeros((0, width), np.float32)
    if signal == "hidden":
        return HiddenSignal(hidden_ND=no_rows)
    if signal == "topk":
        return TopkSignal(ids_NM=no_rows.astype(np.int32), logq_NM=no_rows)
    return SampledSignal(logq_N=np.zeros(0, np.float32))


def _signal_inputs(signal: TeacherSignal, num_ids: int) -> tuple[Tensor, ...]:
    match signal:
        case HiddenSignal(hidden_ND=hidden_TE):
            return (to_torch(hidden_TE),)
        case TopkSignal(ids_NM=ids_TM, logq_NM=logq_TM):
            # checked here: on a GPU an id out of range is an assertion of a kernel
            if (largest := int(ids_TM.max(initial=0))) >= num_ids:
                raise UserError(
                    f"the teacher names id {largest}, the student's tokenizer has"
                    f" {num_ids} ids; both need the same tokenizer"
                )
            return _ids(ids_TM), to_torch(logq_TM)
        case SampledSignal(logq_N=logq_T):
            return (to_torch(logq_T),)


def _ids(array: Ints) -> Tensor:
    return to_torch(array).long()


__all__ = ["Signal", "empty_batch", "forward_inputs", "padded"]
