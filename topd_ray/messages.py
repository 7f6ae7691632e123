"""The messages that actors exchange, in the order in which they are made.

    Prompt -> RolloutRequest -> Rollout (-> rewritten Rollout) -> ScoredRollout
           -> CandidateSet -> ProbeSet (-> Takeover) -> TrainBatch -> StepReport

Messages are frozen and hold ids, numpy arrays and plain values only. Arrays that come
out of the object store are read-only: copy before you write. Log-probabilities and
losses are in nats; logp is the student, logq the teacher.

Axes: P prompt tokens, N response tokens, O those of them that the student sampled, M
most likely ids kept a position, D width of the teacher, W windows, K tokens of a
continuation (padded with -1), L tokens of a takeover or of a micro-batch, S its
segments, T trained positions, U positions of resampled windows behind them, Q window
positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Half of numpy's own widths: ids and losses need no more, and all of it is copied
# between processes.
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
HiddenStates = NDArray[np.float32] | NDArray[np.uint16]
"""float32, or the bits of bfloat16 in uint16 (numpy has no bfloat16)."""

FinishReason = Literal["stop", "length", "cut"]
PAD = -1
"""Fills ragged token-id arrays; never a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, tokenised with the student's chat template.

    Every later stage works on token ids; no text is tokenised again.
    """

    prompt_id: str
    """Name of the prompt in its data file; repeats in every epoch."""
    position: int
    """Place in the run's shuffled order, counted over all epochs: unique in a run."""
    token_ids_P: Ints
    """The student's prompt, up to the first response token."""
    answer: str | None
    """Text of the right answer, for evaluation; None where the data has none."""
    problem: str = ""
    """Text of the user's last turn, from which a teacher's prompt may be built."""
    earlier_turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of every other turn, in order, for a teacher's prompt."""
    reference: str | None = None
    """Text of the reference solution; None where the data has none."""
    teacher_ids_P: Ints | None = None
    """The teacher's prompt; None where it is the student's, or needs the rollout."""
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
    """One response to a prompt, whose first O tokens the student sampled.

    O = N for a sample of the student. A response of the data or a rewrite by the
    teacher has O = 0. Where the teacher took over at position t, O = t. The student's
    probabilities are known for its own tokens alone.
    """

    rollout_id: str
    """Unique in a run, see `rollout_id`."""
    prompt_id: str
    """`Prompt.prompt_id` of the prompt."""
    position: int
    """`Prompt.position` of the prompt."""
    policy_version: int
    """Version of the weights that sampled it."""
    prompt_ids_P: Ints
    """The student's prompt."""
    teacher_prompt_ids_P: Ints
    """The teacher's prompt, whose length may differ; often equal to the student's."""
    response_ids_N: Ints
    """At least one token; ends with EOS when `finish_reason` is "stop"."""
    logp_O: Floats
    """The student's log-probabilities of the O tokens that it sampled."""
    top_ids_OM: Ints
    """The student's most likely ids where it sampled, best first.

    PAD where there are fewer than M.
    """
    top_logp_OM: Floats
    """Log-probabilities of `top_ids_OM`; -inf where the id is PAD."""
    finish_reason: FinishReason
    """"stop" when the response ended with EOS, "length" at the token limit, "cut" where
    the engine was told to end it: its last token is the fork that the teacher found.
    """

    @property
    def num_own(self) -> int:
        """O: how many of the response tokens the student sampled, the first ones."""
        return len(self.logp_O)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRollout:
    """The beginning of a rollout that the student still decodes."""

    rollout_id: str
    """That of the rollout."""
    policy_version: int
    """Version of the weights that sample it."""
    prompt_ids_P: Ints
    """The student's prompt."""
    teacher_prompt_ids_P: Ints
    """The teacher's prompt."""
    response_ids_N: Ints
    """All tokens so far, at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenSignal:
    """The teacher's whole distribution, as hidden states.

    The learner applies the teacher's output head to them.
    """

    hidden_ND: HiddenStates
    """States after the final norm, at the position that predicts each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopkSignal:
    """The teacher's likeliest ids at each position."""

    ids_NM: Ints
    """Ids, best first; each at most once in a row."""
    logq_NM: Floats
    """Log-probabilities of the ids under the full softmax; the rest is the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSignal:
    """The teacher's probability of the response tokens alone."""

    logq_N: Floats
    """Log-probability of each response token."""


TeacherSignal = HiddenSignal | TopkSignal | SampledSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with the teacher's signal at every response position.

    Example: prompt [20, 21, 22], response [6, 7, 8, 9, 2], a teacher of width 64::

        ScoredRollout(
            rollout=rollout,  # N = 5
            signal=HiddenSignal(hidden_ND=states),  # (5, 64)
            token_loss_N=[0.1, 2.3, 0.0, 0.4, 0.2],
            logq_N=[-0.2, -5.1, -0.1, -0.9, -0.3],
            entropy_N=[0.3, 0.2, 0.1, 0.8, 0.4],
        )
    """

    rollout: Rollout
    """The rollout that was scored."""
    signal: TeacherSignal
    """The teacher's signal at the N response positions."""
    token_loss_N: Floats
    """The loss that picks candidates (D1).

    -logq of the token where the student's probabilities are unknown.
    """
    logq_N: Floats
    """The teacher's log-probability of each response token."""
    entropy_N: Floats
    """The teacher's entropy at each position, nats; (0,) where nothing asks for it."""


HIGH = 0
"""Group of the candidates: positions that are probed for their high loss."""
RANDOM = 1
"""Group of the controls that are drawn at random."""
LOW = 2
"""Group of the controls with the lowest loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """The positions of one rollout that are to be probed; may be empty.

    Example: the scored rollout above, with one candidate::

        CandidateSet(
            rollout_id="00000012.0",
            policy_version=3,
            prompt_ids_P=[20, 21, 22],
            teacher_prompt_ids_P=[20, 21, 22],
            response_ids_N=[6, 7, 8, 9, 2],
            positions_W=[1],  # the prefix is 20, 21, 22, 6
            losses_W=[2.3],
            groups_W=[HIGH],
            truncated=False,
        )
    """

    rollout_id: str
    """The rollout that the positions belong to."""
    policy_version: int
    """Version of the weights that sampled the rollout."""
    prompt_ids_P: Ints
    """The student's prompt."""
    teacher_prompt_ids_P: Ints
    """The teacher's prompt, whose length may differ."""
    response_ids_N: Ints
    """The response."""
    positions_W: Ints
    """Indices t into the response; the window's prefix ends just before t.

    Ascending inside a group; the candidates come first, then each control group.
    """
    losses_W: Floats
    """Token loss at each position."""
    groups_W: Ints
    """HIGH, RANDOM or LOW."""
    truncated: bool
    """Whether the response ended at the token limit instead of with EOS."""
    cut: bool = False
    """Whether the student was stopped, so that how it would have gone on is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """The windows of one rollout: both continuations, and the transport between them.

    Example: the candidate above, with K = 4 and a fresh continuation by the student
    that ended after three tokens::

        ProbeSet(
            rollout_id="00000012.0",
            policy_version=3,
            positions_W=[1],
            losses_W=[2.3],
            groups_W=[HIGH],
            resampled=True,
            student_ids_WK=[[7, 12, 2, PAD]],
            num_student_W=[3],
            teacher_ids_WK=[[11, 8, 9, 2]],
            num_teacher_W=[4],
            plan_WKK=plan,  # (1, 4, 4); the last row is 0
            d_ot_W=[0.31],
            converged_W=[True],
        )
    """

    rollout_id: str
    """The rollout that the windows belong to."""
    policy_version: int
    """Version of the weights that sampled the rollout."""
    positions_W: Ints
    """`CandidateSet.positions_W`."""
    losses_W: Floats
    """`CandidateSet.losses_W`."""
    groups_W: Ints
    """`CandidateSet.groups_W`."""
    resampled: bool
    """Whether the student's continuations are fresh samples (D3).

    Otherwise they are the rollout's own tokens from the position on.
    """
    student_ids_WK: Ints
    """The student's continuation of each prefix, PAD behind its end."""
    num_student_W: Ints
    """Number of tokens of the student's continuation, at least 1."""
    teacher_ids_WK: Ints
    """The teacher's continuation of each prefix, PAD behind its end."""
    num_teacher_W: Ints
    """Number of tokens of the teacher's continuation, at least 1."""
    plan_WKK: Floats
    """Transport plan gamma: rows student, columns teacher; 0 in the padding."""
    d_ot_W: Floats
    """D_OT = <plan, cost>: 0 for identical windows, nan for a non-finite cost."""
    converged_W: Flags
    """Whether the solver finished the window; only then are plan and D_OT used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The teacher's continuation of one rollout from its fork on.

    Example: the rollout above with a fork at t = 1, where the student said 7::

        Takeover(
            rollout_id="00000012.0",
            policy_version=3,
            position=1,
            response_ids_L=[11, 8, 9, 2],
            finish_reason="stop",
            signal=HiddenSignal(hidden_ND=states),  # (4, 64)
            logq_L=[-0.1, -0.4, 0.0, -0.2],
        )
    """

    rollout_id: str
    """The rollout that is continued."""
    policy_version: int
    """Version of the weights that sampled the rollout."""
    position: int
    """t: tokens before it are the student's; N where there is no fork."""
    response_ids_L: Ints
    """The teacher's tokens from t on; none where there is no fork."""
    finish_reason: FinishReason
    """How the trained response ends."""
    signal: TeacherSignal
    """The teacher's signal at the L positions."""
    logq_L: Floats
    """The teacher's log-probability of each of its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """One micro-batch of one learner rank: tokens as one sequence, and targets.

    The sequence consists of segments without gaps. A segment is a rollout (prompt and
    response but for the last token, which predicts nothing) or a resampled window. A
    rollout attends to itself causally. A window continues a rollout, its trunk: it
    attends to the first `branch` tokens of the trunk, and to itself causally.

    Example: the rollout and the divergent window above. The window's tokens 7, 12, 2
    are predicted by the trunk's token 6 and by the window's tokens 7 and 12::

        TrainBatch(
            rollout_ids=("00000012.0",),
            policy_version=3,
            input_ids_L=[20, 21, 22, 6, 7, 8, 9, 7, 12],
            length_S=[7, 2],
            trunk_S=[0, 0],
            branch_S=[0, 4],  # the window sees 20, 21, 22, 6
            position_TU=[2, 3, 4, 5, 6, 7, 8],  # T = 5, U = 2
            response_ids_T=[6, 7, 8, 9, 2],
            logp_T=logp,  # (5,)
            weight_T=[1, 1, 1, 1, 1],
            reverse_T=[],  # the objective's divergence at every position
            forward_T=[],
            signal=HiddenSignal(hidden_ND=states),  # (5, 64)
            window_Q=[1, 5, 6],  # Q = 3
            target_ids_QK=[[11, 8, 9, 2]] * 3,
            target_weights_QK=weights,  # (3, 4)
        )
    """

    rollout_ids: tuple[str, ...]
    """The rollouts, in the order of their segments; empty when there are none."""
    policy_version: int
    """Version of the weights that sampled the rollouts."""
    input_ids_L: Ints
    """Token ids of all segments."""
    length_S: Ints
    """Number of tokens of each segment, at least 1."""
    trunk_S: Ints
    """Index of the segment that a window continues, which precedes it.

    For a rollout, the index of its segment.
    """
    branch_S: Ints
    """Number of tokens of its trunk that a window sees, at least 1; 0 for a rollout."""
    position_TU: Ints
    """Indices into L of the hidden states that predict trained tokens.

    First those of the T response tokens, then those of the U tokens that the positions
    inside resampled windows predict.
    """
    response_ids_T: Ints
    """The response tokens, rollout by rollout."""
    logp_T: Floats
    """The student's log-probability when it sampled the token; inf where it did not."""
    weight_T: Floats
    """Weight of each token's loss.

    1, or less where the token is down-weighted, or 0 where it is not selected.
    """
    reverse_T: Flags
    """Where KL(student || teacher) counts; (0,) with `forward_T` where every position
    has the objective's divergence.
    """
    forward_T: Flags
    """Where KL(teacher || student) counts."""
    signal: TeacherSignal
    """The teacher's signal at the T positions."""
    window_Q: Ints
    """Index into T + U of each position of each divergent window.

    Windows that overlap repeat an index.
    """
    target_ids_QK: Ints
    """The teacher's tokens in the window, PAD where there are fewer than K."""
    target_weights_QK: Floats
    """Soft target (D8) of each window position over `target_ids_QK`.

    Rows sum to 1; 0 where the id is PAD.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGap:
    """A sampled token whose log-probability differs between rollout engine and learner.

    Example: TokenGap(rollout_id="00000012.0", index=41, token_id=9, engine_logp=-0.31,
    learner_logp=-2.84).
    """

    rollout_id: str
    """The rollout that the token is of."""
    index: int
    """Place of the token in prompt and response, from 0."""
    token_id: int
    """The token."""
    engine_logp: float
    """Its log-probability when the rollout engine sampled it, in nats."""
    learner_logp: float
    """Its log-probability by the learner's weights, in nats."""

    @property
    def nats(self) -> float:
        """Size of the difference; infinite where one of the two is not a number."""
        difference = abs(self.learner_logp - self.engine_logp)
        return math.inf if math.isnan(difference) else difference


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums (not means) of the micro-batches that a rank has accumulated in a step.

    Losses are in nats and carry the tokens' weights.
    """

    opd: float = 0.0
    """Sum of the token losses: L_OPD, or the one that kd, opsd and trd have instead."""
    traj: float = 0.0
    """Sum of KL(target || student) over window positions."""
    rollout_kl: float = 0.0
    """Sum over sampled tokens of an estimate of KL(sampling policy || trained
    policy).
    """
    reverse_kl: float = 0.0
    """Sum of KL(student || teacher) over the positions of `TrainBatch.reverse_T`."""
    forward_kl: float = 0.0
    """Sum of KL(teacher || student) over the positions of `TrainBatch.forward_T`."""
    num_reverse: int = 0
    """Number of those positions."""
    num_forward: int = 0
    """Number of these positions."""
    num_tokens: int = 0
    """Number of response tokens of any weight."""
    num_sampled: int = 0
    """How many of them the student sampled."""
    num_window_positions: int = 0
    """Number of positions of divergent windows."""
    worst_gap: TokenGap | None = None
    """The sampled token with the largest gap; None where the student sampled none."""

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(
            opd=self.opd + other.opd,
            traj=self.traj + other.traj,
            rollout_kl=self.rollout_kl + other.rollout_kl,
            reverse_kl=self.reverse_kl + other.reverse_kl,
            forward_kl=self.forward_kl + other.forward_kl,
            num_reverse=self.num_reverse + other.num_reverse,
            num_forward=self.num_forward + other.num_forward,
            num_tokens=self.num_tokens + other.num_tokens,
            num_sampled=self.num_sampled + other.num_sampled,
            num_window_positions=self.num_window_positions + other.num_window_positions,
            worst_gap=max(
                self.worst_gap,
                other.worst_gap,
                key=lambda gap: -1.0 if gap is None else gap.nats,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The result of one optimizer step, over all ranks and micro-batches."""

    step: int
    """Number of the step, from 1."""
    policy_version: int
    """Version of the weights after the step; a skipped step counts too."""
    loss: float
    """loss_opd + lambda * loss_traj, in nats."""
    loss_opd: float
    """Mean token loss over the step's response tokens."""
    loss_traj: float
    """Sum of L_traj, divided by the step's response tokens like `loss_opd`."""
    rollout_kl: float
    """Nats a sampled token between the log-probabilities of rollout engine and
    learner.

    The rounding of two engines when on-policy, more with every step of staleness.
    """
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate of the step."""
    num_tokens: int
    """Response tokens of the step."""
    num_window_positions: int
    """Positions of divergent windows of the step."""
    skipped: bool
    """Whether loss or gradient was not finite, so that no weight changed."""
