"""The teacher's reader: one prefill a rollout gives its hidden states and the candidate loss."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from topd_ray.config import CandidatesConfig, TeacherConfig
from topd_ray.engines.protocols import ScoringEngine
from topd_ray.errors import TopdError
from topd_ray.messages import Floats, HiddenStates, Rollout, ScoredRollout
from topd_ray.teacher.token_loss import token_loss
from topd_ray.weights.tensors import output_head

_HEAD_CHUNK = 1024  # positions whose full-vocabulary log-probabilities exist at one time


class TeacherActor:
    """Rollout -> ScoredRollout. Keeps nothing between calls, so any call can be retried."""

    def __init__(
        self,
        config: TeacherConfig,
        candidates: CandidatesConfig,
        folder: Path,
        open_engine: Callable[[], ScoringEngine],
    ) -> None:
        self._loss, self._dtype = candidates.loss, config.engine.dtype
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._head_VD = output_head(folder).to(device)
        self._engine = open_engine()

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Hidden states on the student's own tokens and the loss of each response position.

        The state that predicts y_t is the one at the token before it: of prompt and response,
        positions P-1 .. P+N-2.
        """
        sequences = [
            np.concatenate([rollout.prompt_ids_P, rollout.response_ids_N[:-1]])
            for rollout in rollouts
        ]
        states = self._engine.hidden_states(sequences)
        return [self._scored(*one) for one in zip(rollouts, sequences, states, strict=True)]

    def _scored(self, rollout: Rollout, sequence: Floats, states_LD: Floats) -> ScoredRollout:
        if len(states_LD) != len(sequence):
            raise TopdError(
                f"rollout {rollout.rollout_id}: the teacher returned {len(states_LD)} hidden "
                f"states for {len(sequence)} tokens; refusing to guess which is which"
            )
        hidden_ND = np.ascontiguousarray(states_LD[len(rollout.prompt_ids_P) - 1 :])
        return ScoredRollout(
            rollout=rollout,
            teacher_hidden_ND=self._packed(hidden_ND),
            token_loss_N=token_loss(
                self._loss,
                logp_N=rollout.logp_N,
                response_ids_N=rollout.response_ids_N,
                top_ids_NM=rollout.top_ids_NM,
                top_logp_NM=rollout.top_logp_NM,
                teacher_hidden_ND=hidden_ND,
                teacher_head_VD=self._head_VD,
                chunk=_HEAD_CHUNK,
            ),
        )

    def _packed(self, hidden_ND: Floats) -> HiddenStates:
        """Half the bytes where the teacher computed in bfloat16 anyway."""
        if self._dtype == "float32":
            return hidden_ND
        bits: HiddenStates = (
            torch.from_numpy(hidden_ND).to(torch.bfloat16).view(torch.uint16).numpy()
        )
        return bits
