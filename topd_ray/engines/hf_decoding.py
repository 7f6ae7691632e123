"""One batch of requests, decoded together until the last of them is finished.

Axes: R requests, B of them still live, L tokens of a prompt, T tokens of a response, M
most likely ids, V vocabulary, D width of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topd_ray.engines.hf_sampling import Sampler
from topd_ray.engines.hf_slots import Places, SlotCache, longest_extensions
from topd_ray.engines.protocols import Generation, GenerationRequest, Progress
from topd_ray.messages import PAD, FinishReason, Ints


class Decoding:
    """Reads all prompts in one pass, then adds one token a step to every response.

    A prompt that another prompt begins with is read with that one.
    """

    def __init__(
        self,
        model: Any,
        requests: Sequence[GenerationRequest],
        eos: tuple[int, ...],
        num_ids: int,
    ) -> None:
        """`num_ids`: V; rows of the head behind it are padding, never sampled."""
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._num_ids = num_ids
        self._device = model.device
        self._dtype = model.dtype
        self._requests = requests
        self._eos = np.asarray(eos)
        self._limit_R = np.asarray([request.max_tokens for request in requests])
        self._sampler = Sampler(requests, model.device)
        self._answers = _Answers(requests, model.config.hidden_size)
        self._live_B = np.arange(len(requests))

    def run(self) -> Iterator[Generation]:
        """Yield each finished generation; those of one step in the requests' order."""
        for outputs in self.run_in_pieces(stride=0, cuts={}):
            yield from (one for one in outputs if isinstance(one, Generation))

    def run_in_pieces(
        self, *, stride: int, cuts: Mapping[str, int]
    ) -> Iterator[list[Progress | Generation]]:
        """Yield finished and cut generations, and progress after every `stride` tokens.

        With a stride of 0 there is no progress; see `RolloutEngine`.
        """
        hidden_BD, cache = self._read_prompts()
        for step in range(int(self._limit_R.max())):
            logits_BV = self._logits(hidden_BD)
            live_B = torch.from_numpy(self._live_B).to(self._device)
            ids_B = self._sampler.draw(logits_BV, live_B, step)
            tokens_B = self._answers.extend(
                step, self._live_B, ids_B, logits_BV, hidden_BD
            )
            ended_B = np.isin(tokens_B, self._eos) | (
                self._limit_R[self._live_B] == step + 1
            )
            cut_B = ~ended_B & (self._cut_lengths(cuts) <= step + 1)
            done_B = ended_B | cut_B
            outputs: list[Progress | Generation] = [
                self._answers.finished(request, step + 1, self._eos)
                for request in sorted(self._live_B[ended_B])
            ]
            outputs += [
                self._answers.cut(row, cuts[self._requests[row].request_id], step + 1)
                for row in sorted(self._live_B[cut_B].tolist())
            ]
            if stride and (step + 1) % stride == 0:
                outputs += [
                    self._answers.progress(request, step + 1)
                    for request in sorted(self._live_B[~done_B])
                ]
            if outputs:
                yield outputs
            if done_B.all():
                return
            if done_B.any():
                kept = cache.keep(np.flatnonzero(~done_B))
                self._live_B = self._live_B[kept]
                ids_B = ids_B[torch.from_numpy(kept)]
            hidden_BD = self._add(ids_B, cache)

    def _cut_lengths(self, cuts: Mapping[str, int]) -> NDArray[np.float64]:
        """Return the tokens that each live request is cut to; infinite for most."""
        names = (self._requests[row].request_id for row in self._live_B.tolist())
        return np.asarray([cuts.get(name, np.inf) for name in names])

    @torch.inference_mode()
    def _read_prompts(self) -> tuple[Tensor, SlotCache]:
        """Return the state after every prompt, and the cache with the prompts."""
        prompts = [request.prompt_ids for request in self._requests]
        extension_R = longest_extensions(prompts)
        distinct, row_R = np.unique(extension_R, return_inverse=True)
        ids_RL = right_padded([prompts[index] for index in distinct]).to(self._device)
        row = torch.from_numpy(row_R)
        length = torch.tensor([len(prompt) for prompt in prompts])
        cache = SlotCache(row.to(self._device), length.to(self._device))
        places_L = torch.arange(ids_RL.shape[1], device=self._device)
        future_LL = places_L[None] > places_L[:, None]
        mask_LL = torch.zeros(future_LL.shape, dtype=self._dtype, device=self._device)
        hidden_RLD = self._body(
            input_ids=ids_RL,
            attention_mask=mask_LL.masked_fill_(future_LL, -torch.inf)[None, None],
            position_ids=places_L[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_RLD[row, length - 1], cache

    @torch.inference_mode()
    def _add(self, ids_B: Tensor, cache: SlotCache) -> Tensor:
        """Append `ids_B` to the live requests; return the states that predict the next
        tokens.
        """
        hidden_B1D = self._body(
            input_ids=ids_B[:, None],
            attention_mask=cache.make_room(self._dtype),
            position_ids=cache.length_B[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.advance()
        states_BD: Tensor = hidden_B1D[:, 0]
        return states_BD

    @torch.inference_mode()
    def _logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BV: Tensor = self._head(hidden_BD)[:, : self._num_ids].float()
        return logits_BV


class _Answers:
    """The tokens decoded so far, in arrays of the largest size."""

    def __init__(self, requests: Sequence[GenerationRequest], width: int) -> None:
        """`width`: D of the model."""
        self._requests = requests
        self._wants_states_R = np.asarray([request.states for request in requests])
        self._num_top = max(request.num_top for request in requests)
        # Pages beyond the decoded tokens are never written, so they take no memory.
        shape = (len(requests), max(request.max_tokens for request in requests))
        self._tokens_RT = np.empty(shape, np.int32)
        self._logp_RT = np.empty(shape, np.float32)
        self._top_ids_RTM = np.empty((*shape, self._num_top), np.int32)
        self._top_logp_RTM = np.empty((*shape, self._num_top), np.float32)
        wanted = width if self._wants_states_R.any() else 0
        self._states_RTD = np.empty((*shape, wanted), np.float32)

    @torch.inference_mode()
    def extend(
        self,
        step: int,
        live_B: Places,
        ids_B: Tensor,
        logits_BV: Tensor,
        hidden_BD: Tensor,
    ) -> NDArray[np.int64]:
        """Store each live request's token, and what else it asks for.

        Returns the tokens (B,) as numpy array.
        """
        tokens_B: NDArray[np.int64] = ids_B.cpu().numpy()
        self._tokens_RT[live_B, step] = tokens_B
        if self._states_RTD.shape[2]:
            self._states_RTD[live_B, step] = hidden_BD.float().cpu().numpy()
        if self._num_top == 0:
            return tokens_B
        logp_BV = logits_BV.log_softmax(-1)
        num_ids = min(self._num_top, logp_BV.shape[1])
        top = logp_BV.topk(num_ids)
        self._logp_RT[live_B, step] = (
            logp_BV.gather(1, ids_B[:, None])[:, 0].cpu().numpy()
        )
        for kept_RTM, found_BM, pad in (
            (self._top_ids_RTM, top.indices, PAD),
            (self._top_logp_RTM, top.values, -np.inf),
        ):
            kept_RTM[live_B, step, :num_ids] = found_BM.cpu().numpy()
            kept_RTM[live_B, step, num_ids:] = pad
        return tokens_B

    def progress(self, row: int, num_tokens: int) -> Progress:
        """Return the tokens of one request so far, in a copy."""
        return Progress(
            request_id=self._requests[row].request_id,
            token_ids_N=self._tokens_RT[row, :num_tokens].copy(),
        )

    def finished(self, row: int, num_tokens: int, eos: NDArray[np.int64]) -> Generation:
        """Return the generation of one request, in copies of the arrays."""
        stopped = self._tokens_RT[row, num_tokens - 1] in eos
        return self._generation(row, num_tokens, "stop" if stopped else "length")

    def cut(self, row: int, num_tokens: int, num_decoded: int) -> Generation:
        """Return the first of the decoded tokens of one request as its generation."""
        cut = self._generation(row, num_tokens, "cut")
        return replace(cut, num_overshot=num_decoded - num_tokens)

    def _generation(self, row: int, num_tokens: int, why: FinishReason) -> Generation:
        request = self._requests[row]
        return Generation(
            request_id=request.request_id,
            token_ids_N=self._tokens_RT[row, :num_tokens].copy(),
            logp_N=self._logp_RT[row, : num_tokens if request.num_top else 0].copy(),
            top_ids_NM=self._top_ids_RTM[row, :num_tokens, : request.num_top].copy(),
            top_logp_NM=self._top_logp_RTM[row, :num_tokens, : request.num_top].copy(),
            finish_reason=why,
            states_ND=(
                self._states_RTD[row, :num_tokens].copy()
                if self._wants_states_R[row]
                else None
            ),
        )


def right_padded(sequences: Sequence[Ints]) -> Tensor:
    """Return token ids (sequences, longest), 0 in the padding to the right.

    No position attends to the padding, because attention is causal.
    """
    ids_RL = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in enumerate(sequences):
        ids_RL[row, : len(sequence)] = sequence
    return torch.from_numpy(ids_RL)


__all__ = ["Decoding", "right_padded"]
