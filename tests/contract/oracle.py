"""transformers, one sequence at a time, in float32: slow and obvious."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import EOS_ID
from topd_ray.engines.protocols import (
    Generation,
    GenerationEngine,
    GenerationRequest,
    NamedArray,
)
from topd_ray.messages import Ints

MAX_MODEL_LEN = 192


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perturbed(folder: Path, seed: int) -> torch.nn.Module:
    """The folder's model with every weight moved by a good part of its size."""
    model, generator = load(folder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def named_arrays(model: torch.nn.Module) -> list[NamedArray]:
    """As the learner sends them: every parameter once, read-only."""
    arrays = [(name, p.detach().numpy()) for name, p in model.named_parameters()]
    for _, array in arrays:
        array.setflags(write=False)
    return arrays


@torch.no_grad()
def bits(model: torch.nn.Module) -> list[NamedArray]:
    """The model's weights in bfloat16, as bits in uint16; the model itself is rounded
    to them.
    """
    arrays = []
    for name, parameter in model.named_parameters():
        rounded = parameter.bfloat16()
        arrays.append((name, rounded.view(torch.int16).numpy().view(np.uint16)))
        parameter.copy_(rounded)
    return arrays


@torch.no_grad()
def all_logp(model: torch.nn.Module, token_ids: Ints) -> np.ndarray:
    """(L, V): row l holds log-probabilities of the token after the first l + 1."""
    ids = torch.tensor(token_ids[None].astype(np.int64))
    return model(ids).logits[0].double().log_softmax(-1).numpy()


@torch.no_grad()
def hidden(model: torch.nn.Module, token_ids: Ints) -> np.ndarray:
    return (
        model.model(torch.tensor(token_ids[None].astype(np.int64)))
        .last_hidden_state[0]
        .numpy()
    )


def greedy(model: torch.nn.Module, prompt_ids: Ints, max_tokens: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_tokens and EOS_ID not in tokens:
        so_far = np.concatenate([prompt_ids, np.asarray(tokens, np.int32)])
        tokens.append(int(all_logp(model, so_far)[-1].argmax()))
    return tokens


def response_logp(
    model: torch.nn.Module, prompt_ids: Ints, token_ids_N: Ints
) -> np.ndarray:
    """(N, V): row n holds log-probabilities of response token n given all before it."""
    rows = all_logp(model, np.concatenate([prompt_ids, token_ids_N]))
    return rows[len(prompt_ids) - 1 : -1]


def prompts(seed: int, lengths: list[int]) -> list[Ints]:
    """Random prompts over the words that are not special."""
    rng = np.random.default_rng(seed)
    return [rng.integers(6, 64, length).astype(np.int32) for length in lengths]


def request(prompt_ids: Ints, **changes: object) -> GenerationRequest:
    fields: dict[str, object] = {
        "request_id": "r",
        "prompt_ids": prompt_ids,
        "max_tokens": 32,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "num_top": 0,
    }
    return GenerationRequest(**(fields | changes))  # type: ignore[arg-type]


def run(
    engine: GenerationEngine, requests: list[GenerationRequest]
) -> list[Generation]:
    """All generations, in the order of the requests (whose ids must differ)."""
    found = {g.request_id: g for g in engine.generate(requests)}
    return [found[r.request_id] for r in requests]


def tokens(
    engine: GenerationEngine, prompt_list: list[Ints], **changes: object
) -> list[list[int]]:
    requests = [
        request(prompt, request_id=f"r{i}", **changes)
        for i, prompt in enumerate(prompt_list)
    ]
    return [g.token_ids_N.tolist() for g in run(engine, requests)]
