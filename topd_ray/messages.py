"""What crosses an actor boundary, in the order in which it flows.

    Prompt -> Rollout -> ScoredRollout -> CandidateSet -> ProbeSet -> TrainBatch -> StepReport

Messages are frozen and hold ids, numpy arrays and plain values only. Arrays that come out of the
object store are read-only. Axes: P prompt tokens, N response tokens, M most likely ids kept a
position, D width of the teacher, W windows, K tokens of a continuation (padded with -1), R rows of
a micro-batch, L padded length of a row, T trained positions, Q window positions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
HiddenStates = NDArray[np.float32] | NDArray[np.uint16]
"""float32, or the bits of bfloat16 in uint16 (numpy has no bfloat16)."""

FinishReason = Literal["stop", "length"]
PAD = -1
"""Fills ragged token-id arrays; never a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, tokenised once with the student's chat template; token ids from here on."""

    prompt_id: str
    position: int
    """Place in the run's shuffled order, counted over all epochs: unique in a run."""
    token_ids_P: Ints
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response sampled by the student, with what it thought of its own tokens."""

    rollout_id: str
    prompt_id: str
    position: int
    sample_index: int
    policy_version: int
    prompt_ids_P: Ints
    response_ids_N: Ints
    """At least one token; ends with EOS when `finish_reason` is "stop"."""
    logp_N: Floats
    """Student's log-probability of each response token, in nats."""
    top_ids_NM: Ints
    """The student's most likely ids at each position, best first; PAD where there are fewer."""
    top_logp_NM: Floats
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with the teacher's view of every response position."""

    rollout: Rollout
    teacher_hidden_ND: HiddenStates
    """After the final norm, at the position that predicts each response token."""
    token_loss_N: Floats
    """The loss that picks candidates (D1), in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """The positions of one rollout that are worth a probe; may be empty."""

    rollout_id: str
    policy_version: int
    prompt_ids_P: Ints
    response_ids_N: Ints
    positions_W: Ints
    """Indices t into the response; the window's prefix ends just before t."""
    losses_W: Floats
    truncated: bool
    """The response ended at the token limit, not by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """Both continuations of every candidate of one rollout, and the transport between them."""

    rollout_id: str
    policy_version: int
    positions_W: Ints
    losses_W: Floats
    student_ids_WK: Ints
    num_student_W: Ints
    teacher_ids_WK: Ints
    num_teacher_W: Ints
    plan_WKK: Floats
    """Rows student, columns teacher; zero in the padding."""
    d_ot_W: Floats
    """<plan, cost>: 0 for identical windows, nan where the plan did not converge."""
    converged_W: Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One micro-batch of one learner rank: whole rollouts, padded, and their window targets."""

    rollout_ids: tuple[str, ...]
    policy_version: int
    input_ids_RL: Ints
    lengths_R: Ints
    position_T: Ints
    """Flat index r * L + l of the hidden state that predicts each trained response token."""
    teacher_hidden_TD: HiddenStates
    window_Q: Ints
    """Index into T of each position of each divergent window (overlapping windows repeat)."""
    target_ids_QK: Ints
    target_weights_QK: Floats
    """Soft target of the window position: rows sum to 1 over target_ids; 0 where the id is PAD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums (not means) over the micro-batches a rank has accumulated since the last step, nats."""

    opd: float = 0.0
    traj: float = 0.0
    num_tokens: int = 0
    num_window_positions: int = 0

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(
            opd=self.opd + other.opd,
            traj=self.traj + other.traj,
            num_tokens=self.num_tokens + other.num_tokens,
            num_window_positions=self.num_window_positions + other.num_window_positions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did."""

    step: int
    policy_version: int
    loss: float
    loss_opd: float
    loss_traj: float
    grad_norm: float
    lr: float
    num_tokens: int
    num_window_positions: int
    skipped: bool
    """True where the loss or the gradient was not finite and no weight changed."""
