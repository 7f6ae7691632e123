"""One scored rollout and its divergent windows -> its row: its part of a micro-batch.

Axes as in messages.py, but of one row: L its tokens, N of which predict the response
tokens, S its segments (the trunk and resampled windows), Q its window positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from topd_ray.messages import Flags, Floats, Ints, ProbeSet, ScoredRollout
from topd_ray.transport import soft_targets
from topd_ray.windows.verdict import divergent


@dataclass(frozen=True, slots=True)
class Targets:
    """Soft targets (D8) of the positions of a rollout's divergent windows."""

    place_Q: Ints
    """The position that predicts each window position.

    n < N is the position that predicts response token n; N + u is that of token u of
    the row's resampled windows.
    """
    ids_QK: Ints
    """The teacher's tokens of the window, PAD where there are fewer than K."""
    weights_QK: Floats
    """Weight of each of these tokens; rows sum to 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """The trunk of one rollout, then its resampled windows, and their targets.

    The trunk is prompt and response without the last token, which predicts nothing.
    """

    scored: ScoredRollout
    """The rollout."""
    token_ids_L: Ints
    """Token ids of the trunk, then of each window."""
    length_S: Ints
    """Number of tokens of the trunk, then of each window."""
    branch_S: Ints
    """Number of tokens of the trunk that a window sees; 0 for the trunk."""
    targets: Targets | None
    """Targets of the divergent windows; None when none are learned from."""

    @property
    def name(self) -> str:
        """The id of the rollout."""
        return self.scored.rollout.rollout_id

    @property
    def num_tokens(self) -> int:
        """Number of tokens of trunk and windows; the token budget counts them."""
        return len(self.token_ids_L)

    @property
    def num_window_tokens(self) -> int:
        """Number of tokens of windows; each predicts the next token of its window."""
        return int(self.length_S[1:].sum())


def make_row(
    scored: ScoredRollout, probes: ProbeSet | None, *, threshold: float
) -> Row:
    """Return the row of a rollout, with targets for its divergent windows.

    A window that is part of the rollout lies on the trunk already. A resampled window
    S_0..S_{n-1} (D3) becomes a segment: the trunk predicts S_0, at the position that
    predicts y_t, and each window token predicts the next one. So the segment holds
    S_0..S_{n-2}; it sees the prompt, y_<t and itself.

    Args:
        scored: The rollout.
        probes: Its windows; None when windows are not learned from.
        threshold: D_OT above which a candidate is divergent.

    Returns:
        The row, with targets for all positions of the divergent windows.
    """
    prompt_P = scored.rollout.prompt_ids_P
    response_N = scored.rollout.response_ids_N
    parts = [np.concatenate([prompt_P, response_N[:-1]])]
    branches = [0]
    targets = None
    if probes is not None:
        real_W = divergent(probes, threshold)
        targets = _targets(probes, real_W, len(response_N))
        if probes.resampled:
            # A window of one token needs no segment: the trunk predicts it, and it
            # predicts nothing.
            behind_W = np.flatnonzero(real_W & (probes.num_student_W > 1))
            parts += [
                probes.student_ids_WK[w, : probes.num_student_W[w] - 1]
                for w in behind_W
            ]
            branches += (len(prompt_P) + probes.positions_W[behind_W]).tolist()
    return Row(
        scored=scored,
        token_ids_L=np.concatenate(parts).astype(np.int32),
        length_S=np.array([len(part) for part in parts], np.int32),
        branch_S=np.array(branches, np.int32),
        targets=targets,
    )


def _targets(probes: ProbeSet, real_W: Flags, num_tokens: int) -> Targets:
    """Return the targets of the windows in `real_W`; `num_tokens` is N."""
    num_student_W = probes.num_student_W[real_W]
    weights_WKK = soft_targets(
        torch.from_numpy(probes.plan_WKK[real_W]), torch.from_numpy(num_student_W)
    ).numpy()
    step_WK = np.arange(probes.student_ids_WK.shape[1])[None, :]
    inside_WK = step_WK < num_student_W[:, None]
    ids_WKK = np.broadcast_to(
        probes.teacher_ids_WK[real_W][:, None, :], weights_WKK.shape
    )
    place_WK = probes.positions_W[real_W][:, None] + step_WK
    if probes.resampled:
        # The window's first position lies on the trunk; the others follow each other
        # behind the N trunk positions, window by window.
        before_W = np.cumsum(num_student_W - 1) - (num_student_W - 1)
        place_WK = np.where(
            step_WK == 0, place_WK, num_tokens + before_W[:, None] + step_WK - 1
        )
    return Targets(
        place_Q=place_WK[inside_WK].astype(np.int32),
        ids_QK=ids_WKK[inside_WK].astype(np.int32),
        weights_QK=weights_WKK[inside_WK].astype(np.float32),
    )
