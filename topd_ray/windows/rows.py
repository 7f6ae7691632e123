"""One scored rollout and what is learned from its divergent windows -> its part of a
micro-batch.

Axes as in messages.py; within the part L tokens, N of which predict the response
tokens, and Q window positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from topd_ray.messages import Flags, Floats, Ints, ProbeSet, ScoredRollout
from topd_ray.transport import soft_targets
from topd_ray.windows.verdict import divergent


@dataclass(frozen=True, slots=True)
class Targets:
    """Soft targets (D8) of a rollout's divergent windows."""

    place_Q: Ints
    """What predicts a window position: n < N for what predicts response token n, N + u
    for the part's window token u.
    """
    ids_QK: Ints
    weights_QK: Floats


@dataclass(frozen=True, slots=True)
class Row:
    """Prompt and response (the trunk, without the last token, which predicts nothing),
    windows.
    """

    scored: ScoredRollout
    token_ids_L: Ints
    length_S: Ints
    """The trunk's tokens, then those of each window."""
    branch_S: Ints
    targets: Targets | None

    @property
    def name(self) -> str:
        """Id of the rollout."""
        return self.scored.rollout.rollout_id

    @property
    def num_tokens(self) -> int:
        """Of trunk and windows; what counts for the budget."""
        return len(self.token_ids_L)

    @property
    def num_window_tokens(self) -> int:
        """Tokens of resampled windows; each predicts the next token of its window."""
        return int(self.length_S[1:].sum())


def make_row(
    scored: ScoredRollout, probes: ProbeSet | None, *, threshold: float
) -> Row:
    """The row of a rollout; `probes` is None where nothing is learned from windows.

    A window taken from the rollout itself lies on the trunk already. A resampled one is
    appended: its first token is predicted by the trunk, where y_t is, and each other
    one by the window token before it, so its tokens are S_0..S_{n-2}; they see prompt
    and y_<t and themselves.
    """
    prompt_P, response_N = scored.rollout.prompt_ids_P, scored.rollout.response_ids_N
    parts, branches = [np.concatenate([prompt_P, response_N[:-1]])], [0]
    targets = None
    if probes is not None:
        real_W = divergent(probes, threshold)
        targets = _targets(probes, real_W, len(response_N))
        if probes.resampled:
            # one token alone is predicted by the trunk and predicts nothing
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
        before_W = np.cumsum(num_student_W - 1) - (num_student_W - 1)
        place_WK = np.where(
            step_WK == 0, place_WK, num_tokens + before_W[:, None] + step_WK - 1
        )
    return Targets(
        place_Q=place_WK[inside_WK].astype(np.int32),
        ids_QK=ids_WKK[inside_WK].astype(np.int32),
        weights_QK=weights_WKK[inside_WK].astype(np.float32),
    )
