"""transformers: slow and plain, for machines without vLLM. Same contract.

Axes: B sequences of a batch, L padded length, V vocabulary, M most likely ids.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topd_ray.config.base import EngineConfig
from topd_ray.engines.checks import check_requests, check_sequences, whole_weights
from topd_ray.engines.model_folder import eos_ids, weight_shapes
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.engines.tensors import to_torch
from topd_ray.errors import TopdError
from topd_ray.messages import PAD, Floats, Ints


@dataclass(slots=True)
class _Row:
    """One request being decoded, with a source of randomness of its own."""

    request: GenerationRequest
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    top_ids: list[Ints] = field(default_factory=list)
    top_logp: list[Floats] = field(default_factory=list)

    def finished(self, eos: tuple[int, ...]) -> bool:
        return len(self.tokens) == self.request.max_tokens or self.tokens[-1] in eos


class HfGeneration:
    """Decodes `max_num_seqs` requests at a time, left-padded, until the last of them is done."""

    def __init__(self, folder: Path, engine: EngineConfig, *, max_model_len: int) -> None:
        self._eos, self._shapes = eos_ids(folder), weight_shapes(folder)
        self._max_num_seqs, self._max_model_len = engine.max_num_seqs, max_model_len
        self._model = _load(folder, engine)
        self._turn = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished; a later call ends an earlier one."""
        check_requests(requests, self._max_model_len)
        return self._run(requests)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Copy all weights into the model; nothing is cached between calls."""
        whole = whole_weights(weights, self._shapes)
        self._turn += 1
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, array in whole:
                parameters[name].copy_(to_torch(array))

    def close(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()

    def _run(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self._turn += 1
        turn = self._turn
        for start in range(0, len(requests), self._max_num_seqs):
            for generation in self._decode(requests[start : start + self._max_num_seqs]):
                yield generation
                if turn != self._turn:
                    raise TopdError("a later call of the same engine ended this generation")

    def _decode(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        rows = [_Row(r, torch.Generator().manual_seed(r.seed)) for r in requests]
        ids_BL, mask_BL = _left_padded([r.prompt_ids for r in requests], self._model.device)
        unfinished, cache = set(range(len(rows))), None
        while unfinished:
            logits_BV, cache = self._forward(ids_BL, mask_BL, cache)
            _extend(rows, unfinished, logits_BV)
            for index in sorted(unfinished):
                if rows[index].finished(self._eos):
                    unfinished.remove(index)
                    yield _generation(rows[index], self._eos)
            ids_BL = torch.tensor([[row.tokens[-1]] for row in rows], device=ids_BL.device)
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)

    @torch.no_grad()
    def _forward(
        self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """Logits of the next token, in float32 on the CPU, and the grown cache."""
        positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        output = self._model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float().cpu(), output.past_key_values


class HfScoring:
    """One plain forward pass a sequence."""

    def __init__(self, folder: Path, engine: EngineConfig, *, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self._body = _load(folder, engine).base_model

    @torch.no_grad()
    def hidden_states(self, sequences: Sequence[Ints]) -> list[Floats]:
        """Last hidden state after the final norm of every token: one (len, D) array a sequence."""
        check_sequences(sequences, self._max_model_len)
        return [self._states(sequence) for sequence in sequences]

    def close(self) -> None:
        """Free the model."""
        self._body = None
        gc.collect()

    def _states(self, sequence: Ints) -> Floats:
        ids_BL = torch.tensor(sequence[None].astype(np.int64), device=self._body.device)
        states: Floats = self._body(ids_BL).last_hidden_state[0].float().cpu().numpy()
        return states


def _load(folder: Path, engine: EngineConfig) -> Any:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[engine.dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


def _left_padded(
    sequences: Sequence[Ints], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, every sequence ending in the last column."""
    length = max(map(len, sequences))
    ids_BL = torch.zeros(len(sequences), length, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for row, sequence in enumerate(sequences):
        ids_BL[row, length - len(sequence) :] = torch.from_numpy(sequence.astype(np.int64))
        mask_BL[row, length - len(sequence) :] = 1
    return ids_BL.to(device), mask_BL.to(device)


def _extend(rows: Sequence[_Row], unfinished: set[int], logits_BV: torch.Tensor) -> None:
    """Draw each row's next token and keep its log-probabilities."""
    logp_BV = logits_BV.log_softmax(-1)
    tokens = [_draw(row, logits) for row, logits in zip(rows, logits_BV, strict=True)]
    for index in unfinished:
        row, logp_V = rows[index], logp_BV[index]
        row.tokens.append(tokens[index])
        if row.request.num_top:
            top = logp_V.topk(min(row.request.num_top, len(logp_V)))
            row.logp.append(float(logp_V[tokens[index]]))
            row.top_ids.append(top.indices.numpy().astype(np.int32))
            row.top_logp.append(top.values.numpy())


def _draw(row: _Row, logits_V: torch.Tensor) -> int:
    """Greedy, or by inverting the cumulative distribution over the nucleus at one uniform draw."""
    if row.request.temperature == 0:
        return int(logits_V.argmax())
    p_V, ids_V = (logits_V.double() / row.request.temperature).softmax(-1).sort(descending=True)
    cumulative_V = p_V.cumsum(-1)
    # The nucleus is the shortest list of likely tokens that reaches top_p.
    last = min(int(torch.searchsorted(cumulative_V, row.request.top_p)), len(p_V) - 1)
    uniform = torch.rand((), dtype=torch.float64, generator=row.generator)
    return int(ids_V[torch.searchsorted(cumulative_V[:last], uniform * cumulative_V[last])])


def _generation(row: _Row, eos: tuple[int, ...]) -> Generation:
    num_tokens, num_top = len(row.tokens), row.request.num_top
    top_ids_NM = np.full((num_tokens, num_top), PAD, np.int32)
    top_logp_NM = np.full((num_tokens, num_top), -np.inf, np.float32)
    if num_top:
        top_ids_NM[:, : len(row.top_ids[0])] = row.top_ids
        top_logp_NM[:, : len(row.top_ids[0])] = row.top_logp
    return Generation(
        request_id=row.request.request_id,
        token_ids_N=np.asarray(row.tokens, np.int32),
        logp_N=np.asarray(row.logp, np.float32),
        top_ids_NM=top_ids_NM,
        top_logp_NM=top_logp_NM,
        finish_reason="stop" if row.tokens[-1] in eos else "length",
    )


__all__ = ["HfGeneration", "HfScoring"]
