"""The teacher: one prefill a rollout gives its signal and its token losses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topd_ray.config import CandidatesConfig, TeacherConfig
from topd_ray.engines.protocols import (
    GenerationEngine,
    GenerationRequest,
    ScoringEngine,
)
from topd_ray.engines.tensors import to_torch
from topd_ray.errors import TopdError, WeightsError
from topd_ray.messages import (
    Floats,
    HiddenSignal,
    HiddenStates,
    Ints,
    PartialRollout,
    Rollout,
    SampledSignal,
    ScoredRollout,
    TeacherSignal,
    TopkSignal,
)
from topd_ray.models.facts import read_facts
from topd_ray.models.tensors import EMBEDDING_NAMES, HEAD_NAMES, output_head
from topd_ray.models.vocabulary import num_ids
from topd_ray.teacher.kept import KeptReadings, ReadSoFar
from topd_ray.teacher.product import head_dtype
from topd_ray.teacher.reading import Reading, read_response
from topd_ray.weights.buckets import WeightBucket, open_buckets

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Positions whose logits exist at one time: 0.6 GB in float32 for 150k ids.
_HEAD_CHUNK = 1024
_CHECK_PROMPT = 4
_CHECK_TOKENS = 8
_CHECK_LIMITS = {"float32": 1e-3, "bfloat16": 0.25}
"""Mean nats by which an engine's own log-probabilities may differ from states times
head. In bfloat16 an engine rounds its logits: a logit between 16 and 32 by up to 1/16.
Measured on vLLM: 2e-7 in float32, 0.03 in bfloat16 (SmolLM2).
"""


class TeacherActor:
    """Turns rollouts into scored rollouts.

    Its only state is the weights, so any call can be repeated. What it has read ahead
    saves reading it again, and changes no result but by rounding.
    """

    def __init__(
        self,
        config: TeacherConfig,
        candidates: CandidatesConfig,
        folder: Path,
        open_engine: Callable[[], ScoringEngine],
        *,
        with_entropy: bool = False,
        max_staleness: int = 0,
    ) -> None:
        """Read the output head and open the engine.

        `with_entropy`: whether scored rollouts carry the teacher's entropy.
        `max_staleness`: policy versions for which states that were read ahead are kept.
        """
        self._with_entropy = with_entropy
        self._read_ahead = KeptReadings(max_staleness=max_staleness)
        self._config = config
        self._loss = candidates.loss
        self._head_names = EMBEDDING_NAMES if read_facts(folder).tied else HEAD_NAMES
        self._num_ids = num_ids(folder)
        self._take_head(output_head(folder))
        self._engine = open_engine()

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Return each rollout with the teacher's signal and its token losses (D1).

        The teacher reads the response behind its own prompt of P tokens. The state
        that predicts y_t is the one at the token before it, so N response tokens take
        the states at positions P-1 .. P+N-2, and y_N is not read.

        Raises TopdError when the engine returns another number of states than tokens.
        """
        scored = [
            self._scored(rollout, _rows(states, 0, len(rollout.response_ids_N)))
            for rollout, states in zip(rollouts, self._states(rollouts), strict=True)
        ]
        for rollout in rollouts:
            self._read_ahead.drop(rollout.rollout_id)
        return scored

    def read_ahead(self, partials: Sequence[PartialRollout]) -> list[ReadSoFar]:
        """Read the beginnings of rollouts that the student still decodes.

        The states are kept for `score`. A beginning may be sent again, longer or not.

        Returns:
            The log-probabilities and entropies of all tokens so far, one a rollout.

        Raises:
            TopdError: The engine returned another number of states than tokens.
        """
        readings = []
        for partial, states in zip(partials, self._states(partials), strict=True):
            before = self._read_ahead.of(partial)
            reading = before
            if len(partial.response_ids_N) > before.num_read:
                new = self._reading(
                    states[-1],
                    partial.response_ids_N[before.num_read :],
                    with_entropy=True,
                )
                reading = ReadSoFar(
                    policy_version=partial.policy_version,
                    response_ids_N=partial.response_ids_N,
                    states=states,
                    logq_N=np.concatenate([before.logq_N, new.logq_N]),
                    entropy_N=np.concatenate([before.entropy_N, new.entropy_N]),
                )
                self._read_ahead.keep(partial.rollout_id, reading)
            readings.append(reading)
        return readings

    def _states(
        self, rollouts: Sequence[Rollout | PartialRollout]
    ) -> list[list[HiddenStates]]:
        """Return the states that predict each token, in pieces; read what is missing.

        Raises TopdError when the engine returns another number of states than tokens.
        """
        kept = [self._read_ahead.of(rollout) for rollout in rollouts]
        missing = [
            index
            for index, rollout in enumerate(rollouts)
            if len(rollout.response_ids_N) > kept[index].num_read
        ]
        sequences = [
            np.concatenate(
                [
                    rollouts[index].teacher_prompt_ids_P,
                    rollouts[index].response_ids_N[:-1],
                ]
            )
            for index in missing
        ]
        # The first token's state is the last one of the prompt. A rollout of which
        # nothing was read is read whole: another sample of its prompt has left a cache
        # that may reach into the response.
        firsts = [
            len(rollouts[index].teacher_prompt_ids_P) - 1 + kept[index].num_read
            for index in missing
        ]
        starts = [
            first if kept[index].num_read else 0
            for index, first in zip(missing, firsts, strict=True)
        ]
        pieces = [reading.states for reading in kept]
        read = self._engine.hidden_states(sequences, starts) if missing else []
        for index, sequence, first, start, states_LD in zip(
            missing, sequences, firsts, starts, read, strict=True
        ):
            if len(states_LD) != len(sequence) - start:
                raise TopdError(
                    f"rollout {rollouts[index].rollout_id}: the teacher returned"
                    f" {len(states_LD)} hidden states for {len(sequence) - start}"
                    " tokens; refusing to guess which is which"
                )
            states_ND = _rows([states_LD], first - start)
            pieces[index] = [*pieces[index], states_ND]
        return pieces

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Load the student's weights of `policy_version`, output head included.

        Self-distillation calls this. Raises TopdError, and changes nothing, when the
        weights are incomplete or of another version.
        """
        weights = list(open_buckets(buckets, policy_version=policy_version))
        heads = [array for name, array in weights if name in self._head_names]
        if not heads:
            raise TopdError(
                f"weights of policy_version {policy_version} hold no "
                f"{' or '.join(self._head_names)}; a teacher takes all weights or none"
            )
        self._engine.load_weights(weights)
        self._read_ahead.clear()
        self._take_head(to_torch(heads[0]))

    def refuse_mismatch(self, engine: GenerationEngine) -> None:
        """Compare the log-probabilities of a few tokens as the engine gives them with
        those of its states and the head.

        Finds a head of other weights, and logits that are more than head times state.

        Args:
            engine: The decoding side of the teacher's engine.

        Raises:
            WeightsError: They differ by more than rounding; names the worst token.
        """
        prompt_ids_P = np.linspace(0, self._num_ids - 1, _CHECK_PROMPT).astype(np.int32)
        (answer,) = engine.generate([_check_request(prompt_ids_P)])
        (states_LD,) = self._engine.hidden_states(
            [np.concatenate([prompt_ids_P, answer.token_ids_N[:-1]])]
        )
        reading = self._reading(
            _rows([states_LD], len(prompt_ids_P) - 1),
            answer.token_ids_N,
        )
        gap_N = np.abs(answer.logp_N - reading.logq_N)
        limit = _CHECK_LIMITS[self._config.engine.dtype]
        if gap_N.mean() <= limit:
            return
        worst = int(gap_N.argmax())
        raise WeightsError(
            "the teacher's engine decodes another model than it scores with: log p of"
            f" {len(gap_N)} tokens differs by {gap_N.mean():.3g} nats on average, and"
            f" rounding in {self._config.engine.dtype} explains {limit:g}; worst: token"
            f" {answer.token_ids_N[worst]} at {worst}, {answer.logp_N[worst]:.4f} where"
            f" it decodes, {reading.logq_N[worst]:.4f} as states times head. Its logits"
            " are more than that product, or its head is of other weights: try"
            " teacher.engine.backend=hf, or another teacher"
        )

    def _take_head(self, head_RD: Tensor) -> None:
        # Not the head of the engine: its logits in bfloat16 are off by up to 1/16 nat.
        # This one also shows where the engine's is another (`refuse_mismatch`).
        self._head_is_bfloat16 = head_RD.dtype == torch.bfloat16
        device = _device()
        states = _DTYPES[self._config.engine.dtype]
        self._head_RD = head_RD.to(device, head_dtype(head_RD, states, device))

    def _scored(self, rollout: Rollout, hidden_ND: HiddenStates) -> ScoredRollout:
        """Return the scored rollout; `hidden_ND` are the states of its tokens."""
        compares = self._loss == "reverse_kl" and _sampled(rollout)
        reading = self._reading(
            hidden_ND,
            rollout.response_ids_N,
            student_top=(rollout.top_ids_OM, rollout.top_logp_OM) if compares else None,
            with_entropy=self._with_entropy,
        )
        return ScoredRollout(
            rollout=rollout,
            signal=self._signal(hidden_ND, reading),
            token_loss_N=self._token_loss(rollout, reading),
            logq_N=reading.logq_N,
            entropy_N=reading.entropy_N,
        )

    def read(
        self, response_ids_N: Ints, hidden_ND: HiddenStates
    ) -> tuple[TeacherSignal, Floats]:
        """Return the signal of tokens that the teacher decoded, and their log q.

        Args:
            response_ids_N: The tokens.
            hidden_ND: The states that predicted them.
        """
        reading = self._reading(hidden_ND, response_ids_N)
        return self._signal(hidden_ND, reading), reading.logq_N

    def _reading(
        self,
        hidden_ND: HiddenStates,
        response_ids_N: Ints,
        *,
        student_top: tuple[Ints, Floats] | None = None,
        with_entropy: bool = False,
    ) -> Reading:
        return read_response(
            hidden_ND=hidden_ND,
            head_RD=self._head_RD,
            head_is_bfloat16=self._head_is_bfloat16,
            num_ids=self._num_ids,
            response_ids_N=response_ids_N,
            top_k=self._config.top_k if self._config.signal == "topk" else 0,
            student_top=student_top,
            chunk=_HEAD_CHUNK,
            with_entropy=with_entropy,
        )

    def _signal(self, hidden_ND: HiddenStates, reading: Reading) -> TeacherSignal:
        if self._config.signal == "topk":
            return TopkSignal(ids_NM=reading.top_ids_NK, logq_NM=reading.top_logq_NK)
        if self._config.signal == "sampled":
            return SampledSignal(logq_N=reading.logq_N)
        if self._config.engine.dtype == "float32" or hidden_ND.dtype == np.uint16:
            return HiddenSignal(hidden_ND=hidden_ND)
        # The engine computed in bfloat16, so its bits are the whole state in half the
        # bytes.
        bits = torch.from_numpy(hidden_ND).to(torch.bfloat16).view(torch.uint16).numpy()
        return HiddenSignal(hidden_ND=bits)

    def _token_loss(self, rollout: Rollout, reading: Reading) -> Floats:
        """Return the loss that picks candidates, (N,).

        A response that the student did not sample has no student probabilities: its
        loss is the teacher's -log q in every case.
        """
        if not _sampled(rollout) or self._loss == "teacher_nll":
            return -reading.logq_N
        if self._loss == "reverse_kl":
            return reading.reverse_kl_N
        return rollout.logp_O - reading.logq_N


def _rows(
    pieces: Sequence[HiddenStates], start: int, end: int | None = None
) -> HiddenStates:
    """Return rows of the pieces together, contiguous."""
    rows: HiddenStates = np.concatenate(list[Any](pieces))[start:end]
    return rows


def _check_request(prompt_ids_P: Ints) -> GenerationRequest:
    return GenerationRequest(
        request_id="check",
        prompt_ids=prompt_ids_P,
        max_tokens=_CHECK_TOKENS,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        num_top=1,
    )


def _sampled(rollout: Rollout) -> bool:
    """Return whether the student sampled this response.

    Otherwise it came with the data, or the teacher rewrote it.
    """
    return rollout.num_own > 0


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


__all__ = ["TeacherActor"]
