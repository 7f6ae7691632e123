"""Hidden states of a teacher's middle layer, for the ground cost between contexts.

A run's teacher hands over the states behind its last layer alone, so a study reads the
others with a model that transformers opens in its process.

Axes: W windows, K tokens of a continuation, L tokens of a sequence, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from topd_ray.config.base import EngineConfig
from topd_ray.engines.hf import load_model
from topd_ray.engines.hf_slots import longest_extensions
from topd_ray.messages import CandidateSet, Floats, Ints, ProbeSet


class MiddleLayer:
    """The lower half of a model's layers.

    The states of the first layers are close to those of words without a context, the
    states of the last ones to the next word's distribution.
    """

    def __init__(self, folder: Path, engine: EngineConfig) -> None:
        """Load a model with transformers, and drop the upper half of its layers.

        Args:
            folder: Hugging Face folder of the model.
            engine: Its section; the number format is taken from it.
        """
        self._model = load_model(folder, engine).base_model
        self.depth = max(1, len(self._model.layers) // 2)
        del self._model.layers[self.depth :]
        # The final norm is made for the last layer.
        self._model.norm = torch.nn.Identity()

    def window_states(
        self, candidates: CandidateSet, probes: ProbeSet
    ) -> tuple[Floats, Floats]:
        """Return the states of both continuations of each window, (W, K, D) each.

        A token's state is the one at its own place, behind the window's prefix and the
        tokens of its continuation before it. The padding is 0.
        """
        prefixes = [
            np.concatenate(
                [candidates.teacher_prompt_ids_P, candidates.response_ids_N[:t]]
            )
            for t in probes.positions_W
        ]
        sides = (
            (probes.student_ids_WK, probes.num_student_W),
            (probes.teacher_ids_WK, probes.num_teacher_W),
        )
        sequences = [
            np.concatenate([prefix, ids_K[:num]])
            for ids_WK, num_W in sides
            for prefix, ids_K, num in zip(prefixes, ids_WK, num_W, strict=True)
        ]
        states = self.states(sequences)
        student_WKD, teacher_WKD = (
            _padded(
                states[start : start + len(prefixes)],
                [len(prefix) for prefix in prefixes],
                width=probes.student_ids_WK.shape[1],
            )
            for start in (0, len(prefixes))
        )
        return student_WKD, teacher_WKD

    def states(self, sequences: Sequence[Ints]) -> list[Floats]:
        """Return the states of the middle layer, one (L, D) array a sequence."""
        # The windows of one rollout are the beginnings of one sequence, which is read
        # once. Attention is causal, so what follows a token does not change its state.
        longest = longest_extensions(list(sequences))
        read = {int(index): self._read(sequences[index]) for index in set(longest)}
        return [
            read[int(index)][: len(sequence)]
            for index, sequence in zip(longest, sequences, strict=True)
        ]

    @torch.inference_mode()
    def _read(self, sequence: Ints) -> Floats:
        # One sequence a pass: a state does not depend on what is read beside it.
        ids_1L = torch.from_numpy(sequence[None].astype(np.int64))
        output = self._model(ids_1L.to(self._model.device), use_cache=False)
        states_LD: Floats = output.last_hidden_state[0].float().cpu().numpy()
        return states_LD


def _padded(
    states: Sequence[Floats], num_prefix: Sequence[int], *, width: int
) -> Floats:
    """Return the states behind each prefix, (W, K, D) with K = `width`."""
    padded_WKD = np.zeros((len(states), width, states[0].shape[1]), np.float32)
    for window, (states_LD, start) in enumerate(zip(states, num_prefix, strict=True)):
        padded_WKD[window, : len(states_LD) - start] = states_LD[start:]
    return padded_WKD


__all__ = ["MiddleLayer"]
