"""What crosses an actor boundary, in the order in which it flows.

    Prompt -> RolloutRequest -> Rollout (-> rewritten Rollout) -> ScoredRollout
           -> CandidateSet -> ProbeSet -> TrainBatch -> StepReport

Messages are frozen and hold ids, numpy arrays and plain values only. Arrays that come
out of the object store are read-only. Axes: P prompt tokens, N response tokens, M most
likely ids kept a position, D width of the teacher, W windows, K tokens of a
continuation (padded with -1), L tokens of a micro-batch, S its segments, T trained
positions, U positions of resampled windows behind them, Q window positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
    """One prompt, tokenised once with the student's chat template; token ids from here
    on.
    """

    prompt_id: str
    position: int
    """Place in the run's shuffled order, counted over all epochs: unique in a run."""
    token_ids_P: Ints
    answer: str | None
    problem: str = ""
    """Text of the user's last turn, for a teacher whose prompt is built from it."""
    earlier_turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of every other turn, in order: a teacher's prompt keeps them."""
    reference: str | None = None
    """Text of the reference solution, where the data has one."""
    teacher_ids_P: Ints | None = None
    """The teacher's own prompt, where it can be known beforehand; None: the
    student's.
    """
    response_ids_N: Ints | None = None
    """The response that came with the data (`objective.trajectory: given`), at most
    `rollout.max_response_tokens` long.
    """
    response_finish_reason: FinishReason = "stop"
    """How that response ended: "length" where a token limit cut it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One sample that a rollout engine is to draw for a prompt.

    Requests, not prompts, are dealt to the engines: with one prompt a step, every
    engine still gets its share of the samples.

    Example: `RolloutRequest(prompt=prompt, sample_index=1).rollout_id` is
    "00000012.1" for a prompt at position 12.
    """

    prompt: Prompt
    sample_index: int
    """Counts the samples of one prompt, from 0."""

    @property
    def rollout_id(self) -> str:
        """Return the name of the rollout that answers this request."""
        return rollout_id(self.prompt, self.sample_index)


def rollout_id(prompt: Prompt, sample_index: int) -> str:
    """Return the name of one sample of one prompt, unique in a run.

    The name is the prompt's position in the run's order, then the sample, so names
    sort as requests are made.
    """
    return f"{prompt.position:08d}.{sample_index}"


def rollout_requests(
    prompts: Sequence[Prompt], samples_per_prompt: int
) -> list[RolloutRequest]:
    """Return the requests for all samples, prompt by prompt and sample by sample."""
    return [
        RolloutRequest(prompt=prompt, sample_index=sample)
        for prompt, sample in product(prompts, range(samples_per_prompt))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response to a prompt: sampled by the student, given, or rewritten by the
    teacher.
    """

    rollout_id: str
    prompt_id: str
    position: int
    policy_version: int
    prompt_ids_P: Ints
    teacher_prompt_ids_P: Ints
    """What stands before the response where the teacher reads it; the same as the
    student's unless the teacher has a context of its own.
    """
    response_ids_N: Ints
    """At least one token; ends with EOS when `finish_reason` is "stop"."""
    logp_N: Floats
    """Student's log-probability of each response token, in nats; (0,) where it did not
    sample.
    """
    top_ids_NM: Ints
    """The student's most likely ids at each position, best first; PAD where there are
    fewer. (0, 0) where it did not sample.
    """
    top_logp_NM: Floats
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenSignal:
    """The teacher whole: the learner applies its output head."""

    hidden_ND: HiddenStates
    """After the final norm, at the position that predicts each response token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopkSignal:
    """The teacher's likeliest ids."""

    ids_NM: Ints
    """Best first; every id once a row."""
    logq_NM: Floats
    """Their log-probabilities under the full softmax, in nats; the rest is the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSignal:
    """The teacher's opinion of the sampled token alone."""

    logq_N: Floats


TeacherSignal = HiddenSignal | TopkSignal | SampledSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with the teacher's view of every response position."""

    rollout: Rollout
    signal: TeacherSignal
    token_loss_N: Floats
    """The loss that picks candidates (D1), in nats; -log p_T where the student did not
    sample.
    """


HIGH, RANDOM, LOW = 0, 1, 2
"""Why a position is probed: its high loss (a candidate), or as a control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """The positions of one rollout that are worth a probe; may be empty."""

    rollout_id: str
    policy_version: int
    prompt_ids_P: Ints
    teacher_prompt_ids_P: Ints
    response_ids_N: Ints
    positions_W: Ints
    """Indices t into the response; the window's prefix ends just before t. Ascending
    inside a group, groups one after the other.
    """
    losses_W: Floats
    groups_W: Ints
    """HIGH, RANDOM or LOW."""
    truncated: bool
    """The response ended at the token limit, not by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """Both continuations of every candidate of one rollout, and the transport between
    them.
    """

    rollout_id: str
    policy_version: int
    positions_W: Ints
    losses_W: Floats
    groups_W: Ints
    resampled: bool
    """The student's continuations are fresh, not the rollout's own tokens (D3)."""
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
    """One micro-batch of one learner rank: rollouts and windows as one sequence, and
    their targets.

    The sequence is made of segments, one behind the other without a gap. A rollout (but
    for its last token, which predicts nothing) sees itself causally; a resampled window
    hangs off a rollout, its trunk, and sees the first `branch` tokens of that and
    itself causally.
    """

    rollout_ids: tuple[str, ...]
    policy_version: int
    input_ids_L: Ints
    length_S: Ints
    """Tokens of each segment; at least one."""
    trunk_S: Ints
    """Index of the rollout's segment that a window hangs off, before it; a rollout's
    own.
    """
    branch_S: Ints
    """How many tokens of its trunk a window sees, at least one; 0 for a rollout."""
    position_TU: Ints
    """Index into L of the hidden state that predicts each trained response token (T),
    then of those that predict tokens of resampled windows (U).
    """
    response_ids_T: Ints
    logp_T: Floats
    """Student's log-probability when it sampled the token; (0,) where it did not
    sample.
    """
    weight_T: Floats
    """Of each token's loss: 1; less where it is down-weighted, 0 where it is not
    selected.
    """
    signal: TeacherSignal
    """Of the T positions."""
    window_Q: Ints
    """Index into T + U of each position of each divergent window (overlapping windows
    repeat).
    """
    target_ids_QK: Ints
    target_weights_QK: Floats
    """Soft target of the window position: rows sum to 1 over target_ids; 0 where the id
    is PAD.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums (not means) over the micro-batches a rank has accumulated since the last
    step, nats.
    """

    opd: float = 0.0
    """Of the token loss: L_OPD, or what stands in its place in kd, opsd and trd."""
    traj: float = 0.0
    rollout_kl: float = 0.0
    """Estimate of KL(policy that sampled || policy that is trained); 0 where none
    sampled.
    """
    num_tokens: int = 0
    """Response tokens, whatever their weight."""
    num_window_positions: int = 0

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(
            opd=self.opd + other.opd,
            traj=self.traj + other.traj,
            rollout_kl=self.rollout_kl + other.rollout_kl,
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
    rollout_kl: float
    """Nats a token between the sampled log-probabilities and the learner's: two
    engines' rounding when on-policy, more with every step of staleness.
    """
    grad_norm: float
    lr: float
    num_tokens: int
    num_window_positions: int
    skipped: bool
    """True where the loss or the gradient was not finite and no weight changed."""
